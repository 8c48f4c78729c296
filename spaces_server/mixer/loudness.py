"""Loudness: every speaker is led to the same, slowly, and never by what is not speech.

    1. DC is taken out, by a high-pass of first order
    2. the energy of the last 20 ms is measured as ears weigh it (ITU-R BS.1770-4, K-weighting)
    3. of the last 3 s of sound (short-term, EBU Tech 3341) what passes the gates is speech
    4. while there is speech, the gain goes towards what brings it to TARGET_LUFS

Only the energy is needed, not the weighted signal, so the weighting is done on the spectrum of each
frame (Parseval's theorem): within 0.1 LU of the standard's filters on speech.

The gates keep the gain still in pauses and in noise. A frame counts if it is louder than -55 LUFS,
no more than 10 LU below the mean (the two gates of BS.1770) and 10 LU above what the quietest
tenth of the frames has: that is the noise. What is as loud as the target counts whatever it is,
for it is not noise that would be raised.
"""

import math
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

# One channel at -26 LUFS, played on two loudspeakers, has the -23 LUFS of EBU R 128. It also is the
# loudness of speech at -26 dBov (ITU-T P.56), where telephony has always had it: whoever comes with
# a good level is left alone, and a voice has 15 dB for its peaks.
TARGET_LUFS: Final = -26.0
MAX_GAIN_DB: Final = 20.0  # up or down
MAX_SLEW_DB_PER_S: Final = 10.0
APPROACH_S: Final = 1.0  # time constant, near the target

WINDOW_SAMPLES: Final = 3 * 48_000
FIRST_SAMPLES: Final = 48_000 * 2 // 5  # 400 ms, a block of BS.1770: before that nothing is known
MEAN_SAMPLES: Final = 960  # 20 ms: the energy of less swings too far, in low noise, to tell it
LOOK_SAMPLES: Final = 4_800  # 100 ms, between two looks at the window
ABSOLUTE_GATE_LUFS: Final = -55.0
GATE_LU: Final = 10.0  # below the mean, and above the noise
NOISE_SHARE: Final = 0.1  # of the frames, the quietest

DC_CORNER_HZ: Final = 15.0  # -3 dB; at 60 Hz it takes 0.3 dB

# Coefficients of BS.1770-4, tables 1 and 2, at 48 kHz: numerator, denominator.
SHELF: Final = (
    (1.53512485958697, -2.69169618940638, 1.19839281085285),
    (1.0, -1.69065929318241, 0.73248077421585),
)
HIGH_PASS: Final = ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621))
_OFFSET_LU: Final = -0.691


def energy_of(lufs: float) -> float:
    """The K-weighted mean square that has this loudness."""
    return float(10 ** ((lufs - _OFFSET_LU) / 10))


def loudness_of(energy: float) -> float:
    """LUFS of a K-weighted mean square above 0."""
    return 10 * math.log10(energy) + _OFFSET_LU


_ABSOLUTE_GATE: Final = energy_of(ABSOLUTE_GATE_LUFS)
_TARGET: Final = energy_of(TARGET_LUFS)
_GATE: Final = 10 ** (GATE_LU / 10)
_KEEP: Final = math.exp(-2 * math.pi * DC_CORNER_HZ / 48_000)


class _Frames:
    """What follows from how long frames are; the times are the same for all."""

    def __init__(self, samples: int) -> None:
        self.weights = np.repeat(_spectrum_weights(samples), 2)
        # The recursion low[n] = keep * low[n - 1] + (1 - keep) * x[n], solved for a whole frame: a
        # sum.
        numbers = np.arange(1, samples + 1)
        self.decay = (_KEEP**numbers).astype(np.float32)
        self.growth = ((1 - _KEEP) / self.decay).astype(np.float32)
        self.ramp = (numbers / samples).astype(np.float32)
        self.window = WINDOW_SAMPLES // samples
        self.first = FIRST_SAMPLES // samples
        self.mean = MEAN_SAMPLES // samples
        self.look = LOOK_SAMPLES // samples
        seconds = samples / 48_000
        self.max_step_db = MAX_SLEW_DB_PER_S * seconds
        self.approach = seconds / APPROACH_S


def _spectrum_weights(samples: int) -> NDArray[np.float32]:
    """For each value of a frame's spectrum: what the squares of its real and its imaginary part add
    to the mean square."""
    delay = np.exp(-2j * np.pi * np.fft.rfftfreq(samples))
    weights = np.full(len(delay), 2.0)  # each but the ends stands for its negative frequency too
    weights[[0, -1]] = 1.0
    for above, below in (SHELF, HIGH_PASS):
        response = np.polyval(above[::-1], delay) / np.polyval(below[::-1], delay)
        weights *= np.abs(response) ** 2
    return (weights / samples**2).astype(np.float32)


_frames_of = cache(_Frames)


def k_weighted_energy(frame: NDArray[np.float32]) -> float:
    """The K-weighted mean square of a frame, shape (n,)."""
    spectrum = np.fft.rfft(frame).view(np.float32)
    return float(np.dot(spectrum * spectrum, _frames_of(len(frame)).weights))


class Leveller:
    """One speaker's levels: what is known of their voice, and the gain that it has for now.

    It outlasts talkspurts and mutes, and counts only the time that somebody sounds.
    """

    def __init__(self, frame_samples: int = 960) -> None:
        """frame_samples: of each frame that is given to it; 960 or 480."""
        self._every = _frames_of(frame_samples)
        self.gain_db = 0.0
        self._gain = 1.0
        self._goal_db = 0.0
        self._gate = math.inf  # energy from which on a frame is speech
        self._last = [0.0] * self._every.mean  # energies of the last frames, of MEAN_SAMPLES
        self._energies = np.zeros(self._every.window, np.float32)  # means of these, in a ring
        self._frames = 0  # how many sounded
        self._low = 0.0  # the high-pass's state: what it takes away

    def level(self, frame: NDArray[np.float32]) -> None:
        """Takes DC out of a frame that sounds, shape (frame_samples,), and turns it up or down, in
        place."""
        every = self._every
        self._remove_dc(frame)
        self._last = [*self._last[1:], k_weighted_energy(frame)]
        energy = sum(self._last) / every.mean
        self._energies[self._frames % every.window] = energy
        self._frames += 1
        if self._frames >= every.first and self._frames % every.look == 0:
            self._look()
        if energy > self._gate:
            step_db = (self._goal_db - self.gain_db) * every.approach
            self.gain_db += min(max(step_db, -every.max_step_db), every.max_step_db)
        before, self._gain = self._gain, 10 ** (self.gain_db / 20)
        frame *= self._gain if before == self._gain else before + (self._gain - before) * every.ramp

    def end(self, frame: NDArray[np.float32]) -> None:
        """The same for the silence that follows: what the high-pass still gives goes into it."""
        self._remove_dc(frame)
        frame *= self._gain
        self._low = 0.0

    def _remove_dc(self, frame: NDArray[np.float32]) -> None:
        low = np.add.accumulate(frame * self._every.growth)
        low += self._low
        low *= self._every.decay
        frame -= low
        self._low = float(low[-1])

    def _look(self) -> None:
        """Finds what of the window is speech, and the gain that it needs."""
        energies = self._energies[: self._frames]
        rank = int(len(energies) * NOISE_SHARE)
        noise = float(np.partition(energies, rank)[rank])
        relative = float(energies.mean()) / _GATE
        self._gate = max(_ABSOLUTE_GATE, relative, min(noise * _GATE, _TARGET))
        is_speech = energies > self._gate
        count = int(np.count_nonzero(is_speech))
        if count:
            needed_db = TARGET_LUFS - loudness_of(float(np.dot(energies, is_speech)) / count)
            self._goal_db = min(max(needed_db, -MAX_GAIN_DB), MAX_GAIN_DB)
