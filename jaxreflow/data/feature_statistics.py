"""The statistics that LeRobot keeps of a feature: extremes, moments and quantiles."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped

_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def feature_statistics(values: Shaped[np.ndarray, "N ..."], frames: int) -> dict[str, np.ndarray]:
    """min, max, mean, std and five quantiles over the first axis, shaped as one entry (`[1]` for a scalar), and count `[frames]`.

    An image's entries are pixels `[3, 1, 1]` in [0, 1], any number of them per frame.
    """
    table = values.reshape(len(values), *(values.shape[1:] or (1,))).astype(np.float64)
    stats = {"min": table.min(axis=0), "max": table.max(axis=0), "mean": table.mean(axis=0), "std": table.std(axis=0)}
    quantiles = np.quantile(table, list(_QUANTILES.values()), axis=0)
    return {**stats, "count": np.array([frames]), **dict(zip(_QUANTILES, quantiles, strict=True))}
