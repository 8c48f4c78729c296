"""Recorded speech, and how much of it is left at the other end."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spaces_client.wav import read_blocks

SPEECH = Path(__file__).resolve().parents[2] / ".." / "shared" / "speech"
VOICES = ["en_f", "fr_f", "it_m", "ru_f"]

Signal = NDArray[np.float64]


def voice_file(name: str) -> Path:
    path = SPEECH / f"{name}.wav"
    if not path.exists():
        pytest.skip("the recorded speech (../shared/speech) is not here")
    return path


def voice(name: str, seconds: float) -> list[NDArray[np.float32]]:
    """The beginning of a recording, in blocks of 20 ms at 48 kHz."""
    return list(read_blocks(voice_file(name)))[: int(seconds * 50)]


def at_16_khz(samples: NDArray[np.float32]) -> Signal:
    signal = pytest.importorskip("scipy.signal", reason="scipy comes with the extra `pesq`")
    resampled: Signal = signal.resample_poly(samples.astype(np.float64), 1, 3)
    return resampled


def aligned(heard: Signal, said: Signal) -> tuple[Signal, Signal]:
    """Cuts `heard` to where it matches `said` best; -> both, of one length."""
    signal = pytest.importorskip("scipy.signal", reason="scipy comes with the extra `pesq`")
    match = signal.correlate(heard, said, method="fft")
    lag = int(np.argmax(match)) - len(said) + 1
    assert lag >= 0, "heard before it was said"
    heard = heard[lag : lag + len(said)]
    return heard, said[: len(heard)]


def pesq_wb(heard: NDArray[np.float32], said: NDArray[np.float32]) -> float:
    """PESQ-WB (ITU-T P.862.2) of two recordings at 48 kHz, 1 to 4.64."""
    measure = pytest.importorskip("pesq", reason="PESQ is not installed: make pesq")
    degraded, reference = aligned(at_16_khz(heard), at_16_khz(said))
    return float(measure.pesq(16_000, reference, degraded, "wb"))
