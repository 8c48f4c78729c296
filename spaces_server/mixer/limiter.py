"""A look-ahead limiter: no sample of a mix above LIMIT, and no gain that jumps.

The mix is held back by LOOK_AHEAD_SAMPLES, so that the gain is down when a peak comes. It falls in
a straight line over that time, and comes back at RELEASE_DB_PER_S, slower than a voice swings, so
that nothing pumps. As long as no peak is near, the samples go through as they are.

The gain is found for steps of half a millisecond and is a straight line within each: it is no
higher than what the peaks on both sides of each node allow, hence nowhere higher than it may be.
"""

from copy import copy
from typing import Final

import numpy as np
from numpy.typing import NDArray

# What a listener decodes has higher peaks than what was encoded, and the denser a mix is, the more:
# at 32 kbit/s, 3 dB over voices and 9 dB over square waves. So a mix that needs to be turned down
# far ends lower: by half of what it exceeds LIMIT, in dB, down to DENSE_LIMIT. One speaker at
# -20 dBFS has peaks of -5 dBFS and is let through.
LIMIT: Final = 10 ** (-5 / 20)  # -5 dBFS
DENSE_LIMIT: Final = 10 ** (-10 / 20)  # -10 dBFS
STEP_SAMPLES: Final = 24  # 0.5 ms
LOOK_AHEAD_STEPS: Final = 3
LOOK_AHEAD_SAMPLES: Final = STEP_SAMPLES * LOOK_AHEAD_STEPS  # 1.5 ms: all the delay that it adds
RELEASE_DB_PER_S: Final = 20.0

_RELEASE: Final = RELEASE_DB_PER_S * STEP_SAMPLES / 48_000 * np.log(10) / 20  # nepers a step
_RAMP = np.linspace(0, 1, STEP_SAMPLES, endpoint=False, dtype=np.float32)
_MEAN: Final = np.full(LOOK_AHEAD_STEPS, 1 / LOOK_AHEAD_STEPS)


class Limiter:
    """The limiter of one mix, mono or, with one gain for both channels, stereo."""

    def __init__(self, channels: int = 1) -> None:
        self._channels = channels
        self.reset()

    def reset(self) -> None:
        """Silence was before."""
        shape = (LOOK_AHEAD_SAMPLES,) if self._channels == 1 else (LOOK_AHEAD_SAMPLES, 2)
        # Both are replaced, never written into: forks share them.
        self._delayed: NDArray[np.float32] = np.zeros(shape, np.float32)
        self._allowed = np.ones(LOOK_AHEAD_STEPS)  # gains of the last steps, not yet smoothed

    def fork(self) -> "Limiter":
        """Another one that goes on from here."""
        return copy(self)

    def limit(self, frame: NDArray[np.float32]) -> float:
        """Puts the next samples in the place of `frame`, shape (n,) or (n, 2), n a multiple of
        STEP_SAMPLES: what came LOOK_AHEAD_SAMPLES before, turned down where that is needed.
        -> the highest peak of what it holds, before that, 1 being full scale."""
        line = np.concatenate((self._delayed, frame))
        self._delayed = line[-LOOK_AHEAD_SAMPLES:].copy()
        frame[...] = line[: len(frame)]
        magnitudes = np.abs(line)
        peak = float(magnitudes.max())
        if peak > LIMIT or self._allowed.min() < 1.0:
            starts = np.arange(0, magnitudes.size, STEP_SAMPLES * self._channels)
            gains = self._gains(np.maximum.reduceat(magnitudes.ravel(), starts))
            frame *= gains if self._channels == 1 else gains[:, np.newaxis]
        return peak

    def _gains(self, peaks: NDArray[np.float32]) -> NDArray[np.float32]:
        """peaks (k + LOOK_AHEAD_STEPS,): of the steps held back, and of the new ones.  -> a gain
        for each sample of the first k."""
        steps = len(peaks) - LOOK_AHEAD_STEPS
        excess = np.maximum(peaks, LIMIT) / LIMIT
        allowed = np.maximum(excess**-1.5, DENSE_LIMIT / LIMIT / excess)
        # Down as soon as a peak is in sight, until it has passed ...
        lowest = allowed[:steps]
        for ahead in range(1, LOOK_AHEAD_STEPS + 1):
            lowest = np.minimum(lowest, allowed[ahead : ahead + steps])
        # ... and up no quicker than the release, from the lowest there was ...
        rise = _RELEASE * np.arange(steps + 1)
        lowest = np.log(np.concatenate((self._allowed[-1:], lowest))) - rise
        held = np.exp(np.minimum.accumulate(lowest) + rise)
        # ... and both in a straight line, by the mean over the look-ahead.
        held = np.concatenate((self._allowed, held[1:]))
        self._allowed = held[-LOOK_AHEAD_STEPS:]
        nodes = np.convolve(held, _MEAN, "valid").astype(np.float32)
        lines: NDArray[np.float32] = (
            nodes[:-1, np.newaxis] + (nodes[1:] - nodes[:-1])[:, np.newaxis] * _RAMP
        )
        return lines.ravel()
