"""Time-scale modification: what goes or comes is whole pitch periods, and nothing steps."""

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.stretch import MAX_LAG_SAMPLES, MIN_LAG_SAMPLES, lengthen, shorten

RATE = 48_000
FRAME = 960


def voice(pitch_hz: float, samples: int) -> NDArray[np.float32]:
    """A buzz of three harmonics."""
    at = np.arange(samples) / RATE * 2 * np.pi * pitch_hz
    return (0.3 * np.sin(at) + 0.2 * np.sin(2 * at + 1) + 0.1 * np.sin(3 * at)).astype(np.float32)


def steepest(signal: NDArray[np.float32]) -> float:
    return float(np.abs(np.diff(signal, axis=0)).max())


@pytest.mark.parametrize("pitch_hz", [80, 100, 120, 200, 300])
def test_whole_periods_go(pitch_hz: float) -> None:
    sound = voice(pitch_hz, FRAME)
    pcm = sound.copy()
    left = shorten(pcm, FRAME)
    periods = (FRAME - left) * pitch_hz / RATE
    assert periods >= 1
    assert periods == pytest.approx(round(periods), abs=0.01)
    np.testing.assert_allclose(pcm[:left], sound[:left], atol=2e-3)
    assert steepest(pcm[:left]) <= 1.05 * steepest(sound)


@pytest.mark.parametrize("pitch_hz", [80, 100, 120, 200, 300])
def test_whole_periods_come(pitch_hz: float) -> None:
    sound = voice(pitch_hz, FRAME + MAX_LAG_SAMPLES)
    pcm = np.zeros(FRAME + MAX_LAG_SAMPLES, np.float32)
    pcm[:FRAME] = sound[:FRAME]
    size = lengthen(pcm, FRAME)
    assert (size - FRAME) * pitch_hz / RATE == pytest.approx(
        round((size - FRAME) * pitch_hz / RATE), abs=0.01
    )
    assert size > FRAME
    np.testing.assert_allclose(pcm[:size], sound[:size], atol=2e-3)
    assert steepest(pcm[:size]) <= 1.05 * steepest(sound)


def test_both_channels_are_cut_at_one_place() -> None:
    left, right = voice(120, FRAME), voice(240, FRAME)
    pcm = np.stack((left, right), axis=1)
    size = shorten(pcm, FRAME)
    assert size < FRAME
    np.testing.assert_allclose(pcm[:size, 0], left[:size], atol=2e-3)
    np.testing.assert_allclose(pcm[:size, 1], right[:size], atol=2e-3)


def test_no_more_goes_than_is_allowed() -> None:
    assert FRAME - shorten(voice(300, FRAME), 200) in range(MIN_LAG_SAMPLES, 201)
    assert shorten(voice(300, FRAME), MIN_LAG_SAMPLES - 1) == FRAME
    assert shorten(voice(100, FRAME), 300) == FRAME  # a period is longer


def test_what_is_like_nothing_else_in_it_stays() -> None:
    """A sweep, and a single knock."""
    at = np.arange(FRAME) / RATE
    sweep = (0.5 * np.sin(2 * np.pi * (100 * at + 40_000 * at**2))).astype(np.float32)
    assert shorten(sweep.copy(), FRAME) == FRAME
    knock = np.zeros(FRAME, np.float32)
    knock[100:140] = 0.5
    assert shorten(knock.copy(), FRAME) == FRAME


@pytest.mark.parametrize("channels", [1, 2])
def test_in_silence_as_much_goes_or_comes_as_may(channels: int) -> None:
    shape = (FRAME + MAX_LAG_SAMPLES,) if channels == 1 else (FRAME + MAX_LAG_SAMPLES, channels)
    pcm = np.full(shape, 1e-4, np.float32)
    assert shorten(pcm[:FRAME], FRAME) == FRAME - MAX_LAG_SAMPLES
    assert lengthen(pcm, FRAME) == FRAME + MAX_LAG_SAMPLES


@pytest.mark.parametrize("size", [120, 240, 360, 480])
def test_short_frames_are_not_read_beyond_their_end(size: int) -> None:
    pcm = np.zeros(size + MAX_LAG_SAMPLES, np.float32)
    pcm[:size] = voice(350, size)
    assert 0 < shorten(pcm[:size].copy(), size) <= size
    assert size <= lengthen(pcm, size) <= len(pcm)
