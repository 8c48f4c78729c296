"""How late, or how long: the few figures that tell of many."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def percentiles(values_ms: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    """p50, p99 and max, of any number of values; without any, zeros."""
    found = np.percentile(values_ms if len(values_ms) else [0.0], [50, 99, 100])
    return dict(zip(("p50", "p99", "max"), np.round(found, 3).tolist(), strict=True))
