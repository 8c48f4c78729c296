"""How it sounds: PESQ-WB and STOI, where their libraries are installed."""

import numpy as np

from bench.jitter.receivers import Samples

SEGMENT_S = 8.0  # PESQ is meant for sentences of this length
MAX_SEGMENTS = 8


def quality(spoken: Samples, heard: Samples, delay_ms: float) -> tuple[float, float] | None:
    """-> (PESQ-WB, STOI), the means over segments of 8 s spread over all of it; None without the
    libraries.  delay_ms: by how much `heard` is later, on the whole."""
    try:
        from pesq import NoUtterancesError, pesq
        from pystoi import stoi
        from scipy.signal import resample_poly
    except ImportError:
        return None
    reference = resample_poly(spoken.ravel().astype(np.float64), 1, 3)
    degraded = resample_poly(heard.astype(np.float64), 1, 3)[round(delay_ms * 16) :]
    length = round(SEGMENT_S * 16_000)
    count = min(len(reference), len(degraded)) // length
    chosen = np.unique(np.linspace(0, count - 1, min(count, MAX_SEGMENTS)).astype(int))
    scores = []
    for number in chosen:
        part = slice(number * length, (number + 1) * length)
        if not reference[part].any():
            continue
        try:
            score = pesq(16_000, reference[part], degraded[part], "wb")
        except NoUtterancesError:  # it is silent where something was said: as bad as can be
            score = 1.0
        scores.append((score, stoi(reference[part], degraded[part], 16_000)))
    pesqs, stois = zip(*scores, strict=True)
    return float(np.mean(pesqs)), float(np.mean(stois))
