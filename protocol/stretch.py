"""Time-scale modification: a little less or a little more of a sound, at the same pitch.

What is taken out, or played once more, is a stretch after which the sound is most like itself: one
or more whole pitch periods of a voice.  The seam is a short cross-fade between two places that look
alike.  (After WSOLA: Verhelst and Roelands, ICASSP 1993; and NetEQ's accelerate and expand.)
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.opus import Samples

MIN_LAG_SAMPLES: Final = 120  # 2.5 ms: 400 Hz
MAX_LAG_SAMPLES: Final = 720  # 15 ms: 67 Hz
SEAM_SAMPLES: Final = 240  # 5 ms
# Below this likeness a seam would be heard: better to wait for a part of the sound that repeats.
LIKE: Final = 0.75
# -50 dBFS: so quiet that no seam is heard.
QUIET: Final = 3e-3
_COARSE: Final = 4  # the search is made at a quarter of the rate, and then refined
_NEAR: Final = 0.05  # lags whose likeness is that close to the best one's are as good

_RISE: Samples = np.linspace(0, 1, SEAM_SAMPLES, endpoint=False, dtype=np.float32)


def shorten(pcm: Samples, most_samples: int) -> int:
    """Takes one lag out of `pcm`, shape (n,) or (n, 2), in place; -> how many samples are left of
    it, from the front: n if it has nothing that can go without being heard."""
    size = len(pcm)
    lag = _lag(pcm, min(most_samples, MAX_LAG_SAMPLES, size - SEAM_SAMPLES))
    if lag:
        rise = _shaped(pcm)
        pcm[:SEAM_SAMPLES] += rise * (pcm[lag : lag + SEAM_SAMPLES] - pcm[:SEAM_SAMPLES])
        pcm[SEAM_SAMPLES : size - lag] = pcm[SEAM_SAMPLES + lag :].copy()
    return size - lag


def lengthen(pcm: Samples, size: int) -> int:
    """Plays one lag of `pcm[:size]` twice, in place; -> how many samples there are now: `size` if
    that would be heard.  `pcm` has room for MAX_LAG_SAMPLES more than `size`."""
    lag = _lag(pcm[:size], min(MAX_LAG_SAMPLES, size - SEAM_SAMPLES))
    if lag:
        rise = _shaped(pcm)
        again = pcm[:size].copy()
        pcm[lag + SEAM_SAMPLES : lag + size] = again[SEAM_SAMPLES:]
        seam = pcm[lag : lag + SEAM_SAMPLES]
        seam[:] = again[lag : lag + SEAM_SAMPLES]
        seam += rise * (again[:SEAM_SAMPLES] - seam)
    return size + lag


def _shaped(pcm: Samples) -> Samples:
    return _RISE if pcm.ndim == 1 else _RISE[:, None]


def _lag(pcm: Samples, most_samples: int) -> int:
    """The longest lag, at most this long, after which `pcm` is like its beginning; 0: there is
    none."""
    if most_samples < MIN_LAG_SAMPLES:
        return 0
    sound = pcm if pcm.ndim == 1 else pcm.sum(axis=1)
    if float(np.abs(sound).max()) < QUIET:
        return most_samples
    coarse = sound[: len(sound) // _COARSE * _COARSE].reshape(-1, _COARSE).sum(axis=1)
    lags = np.arange(MIN_LAG_SAMPLES // _COARSE, most_samples // _COARSE + 1)
    window = len(coarse) - int(lags[-1])
    likeness = _likeness(coarse, window)[lags]
    best = float(likeness.max())
    if best < LIKE:
        return 0
    # Of the peaks that are nearly as high as the highest, the last one.
    sides = np.concatenate(([-1.0], likeness, [-1.0]))
    peaks = (likeness >= sides[:-2]) & (likeness >= sides[2:]) & (likeness >= best - _NEAR)
    found = int(lags[np.flatnonzero(peaks)[-1]]) * _COARSE
    first = max(MIN_LAG_SAMPLES, found - _COARSE + 1)
    last = min(most_samples, found + _COARSE - 1)
    near = _likeness(sound[first : last + SEAM_SAMPLES], SEAM_SAMPLES, sound[:SEAM_SAMPLES])
    return first + int(near.argmax())


def _likeness(sound: Samples, window: int, like: Samples | None = None) -> NDArray[np.float64]:
    """The normalised correlation of `like` (the first `window` samples, if it is not given) with
    each stretch of as many samples; shape (len(sound) - window + 1,)."""
    like = sound[:window] if like is None else like
    products = np.correlate(sound, like, "valid")
    energies = np.empty(len(sound) + 1)
    energies[0] = 0
    np.cumsum(np.square(sound), out=energies[1:])
    both = float(np.dot(like, like)) * (energies[window:] - energies[: len(energies) - window])
    return np.asarray(products / np.sqrt(np.maximum(both, 1e-12)), np.float64)
