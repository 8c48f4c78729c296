"""How it sounds: PESQ-WB and STOI, where their libraries are installed."""

import numpy as np
from numpy.typing import NDArray

from bench.jitter.receivers import Samples

SEGMENT_S = 8.0  # PESQ is meant for sentences of this length
MAX_SEGMENTS = 8


def quality(
    spoken: Samples, heard: Samples, moments: NDArray[np.float64]
) -> tuple[float, float] | None:
    """-> (PESQ-WB, STOI), the means over segments of 8 s spread over all of it; None without the
    libraries.  moments: shape (n, 2), a time in `heard` and what place of `spoken` plays then, ms.

    Each segment of what was spoken is compared with what was heard from that segment's delay on,
    its median: whole words would be missing where the delay is another one than on the whole."""
    try:
        from pesq import NoUtterancesError, pesq
        from pystoi import stoi
        from scipy.signal import resample_poly
    except ImportError:
        return None
    reference = resample_poly(spoken.ravel().astype(np.float64), 1, 3)
    degraded = resample_poly(heard.astype(np.float64), 1, 3)
    heard_ms, spoken_ms = moments.T
    later_ms = heard_ms - spoken_ms
    segment_of = (spoken_ms / 1_000 // SEGMENT_S).astype(int)
    length = round(SEGMENT_S * 16_000)
    count = min(len(reference), len(degraded) - round(later_ms.max() * 16)) // length
    chosen = np.unique(np.linspace(0, count - 1, min(count, MAX_SEGMENTS)).astype(int))
    scores = []
    for number in chosen:
        begin = number * length
        original = reference[begin : begin + length]
        if not original.any():
            continue
        here_ms = later_ms[segment_of == number]
        begin += round(float(np.median(here_ms if len(here_ms) else later_ms)) * 16)
        result = degraded[begin : begin + length]
        try:
            score = pesq(16_000, original, result, "wb")
        except NoUtterancesError:  # it is silent where something was said: as bad as can be
            score = 1.0
        scores.append((score, stoi(original, result, 16_000)))
    pesqs, stois = zip(*scores, strict=True)
    return float(np.mean(pesqs)), float(np.mean(stois))
