"""Comfort noise: what ears get between two talkspurts, instead of a line that seems dead.

In silence the server sends nothing, and a speaker's room would come and go with their voice. So a
very quiet, soft noise fades in after somebody was heard, and out as soon as somebody sounds: speech
itself is left as it is. It is for loudspeakers and headphones. A file keeps its true silence, which
is easier to cut, to measure and to compress.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from protocol.profile import VOICE, Profile
from spaces_client.audio import SAMPLE_RATE_HZ, AudioOutput, Pull, Samples

LEVEL_DBFS: Final = -72.0  # RMS: below the noise of a quiet room, above nothing at all
FADE_IN_SAMPLES: Final = SAMPLE_RATE_HZ * 3 // 10  # 300 ms
FADE_OUT_SAMPLES: Final = SAMPLE_RATE_HZ // 50  # 20 ms
_LOOP_SAMPLES: Final = 3 * SAMPLE_RATE_HZ  # longer than ears know a noise again
_BAND_HZ: Final = (100.0, 8_000.0)


def _noise() -> Samples:
    """Pink within _BAND_HZ, of LEVEL_DBFS; its end continues in its beginning."""
    hz = np.fft.rfftfreq(_LOOP_SAMPLES, 1 / SAMPLE_RATE_HZ)
    inside = (hz >= _BAND_HZ[0]) & (hz <= _BAND_HZ[1])
    spectrum = np.zeros(len(hz), np.complex128)
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, np.count_nonzero(inside))
    spectrum[inside] = np.exp(1j * phases) / np.sqrt(hz[inside])
    noise = np.fft.irfft(spectrum, _LOOP_SAMPLES)
    scaled: Samples = (noise * 10 ** (LEVEL_DBFS / 20) / noise.std()).astype(np.float32)
    return scaled


class ComfortNoise(AudioOutput):
    """An output that fills silences, once there was sound, before it hands them on to another."""

    def __init__(self, output: AudioOutput) -> None:
        self._output = output
        self._noise = _noise()

    @property
    def delay_ms(self) -> float:
        return self._output.delay_ms

    def start(self, pull: Pull, profile: Profile = VOICE) -> None:
        if profile.music:  # its pauses are silent, and nothing is added to it
            self._output.start(pull, profile)
            return
        self._at = 0  # in _noise
        self._gain = 0.0
        self._heard = False

        def fill(out: Samples, now_ns: int) -> None:
            pull(out, now_ns)
            self._add(out)

        self._output.start(fill, profile)

    def stop(self) -> None:
        self._output.stop()

    def _add(self, out: Samples) -> None:
        sounds = bool(out.any())
        self._heard |= sounds
        if not self._heard:
            return
        if sounds:
            gain = max(0.0, self._gain - len(out) / FADE_OUT_SAMPLES)
        else:
            gain = min(1.0, self._gain + len(out) / FADE_IN_SAMPLES)
        if gain or self._gain:
            fade = np.linspace(self._gain, gain, len(out), dtype=np.float32)
            out += fade * self._noise.take(range(self._at, self._at + len(out)), mode="wrap")
        self._gain = gain
        self._at = (self._at + len(out)) % _LOOP_SAMPLES
