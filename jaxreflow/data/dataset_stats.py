"""A dataset's statistics by feature and name, and those of several parts together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreflow.data.meta_files import parse_file, read_json

Stats = dict[str, dict[str, np.ndarray]]


def stats_arrays(stats: dict[str, dict[str, Any]]) -> Stats:
    """The statistics of a JSON document as float64 arrays of at least one axis; what is no number is left out."""
    arrays = {
        key: {name: np.asarray(value) for name, value in group.items()}
        for key, group in stats.items()
        if isinstance(group, dict)
    }
    return {
        key: {name: np.atleast_1d(array.astype(np.float64)) for name, array in group.items() if _is_numeric(array)}
        for key, group in arrays.items()
    }


def _is_numeric(array: np.ndarray) -> bool:
    # null, which is NaN, makes an array of objects.
    return array.dtype.kind in "biuf" or all(value is None or isinstance(value, int | float) for value in array.flat)


def read_stats(root: Path) -> Stats:
    """The statistics in `meta/stats.json`, empty without that file; DatasetError if it is damaged."""
    file = root / "meta" / "stats.json"
    if not file.is_file():
        return {}
    return parse_file(file, stats_arrays, parse_file(file, read_json, file))


def aggregate_stats(parts: Sequence[Stats]) -> Stats:
    """Statistics of a union of disjoint parts: min, max, count, exact mean and std, by the law of total variance.

    A quantile that all parts have is their mean by count, as in LeRobot.
    """
    result: Stats = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        groups = [part[key] for part in parts if key in part]
        values = {name: np.stack([group[name] for group in groups]) for name in ("min", "max", "mean", "std", "count")}
        count = values["count"].sum(axis=0)
        weight = values["count"].reshape(len(groups), *[1] * (values["mean"].ndim - 1)) / count.sum()
        mean = (weight * values["mean"]).sum(axis=0)
        variance = (weight * (values["std"] ** 2 + (values["mean"] - mean) ** 2)).sum(axis=0)
        result[key] = {
            "min": values["min"].min(axis=0),
            "max": values["max"].max(axis=0),
            "mean": mean,
            "std": np.sqrt(variance),
            "count": count,
        }
        for name in (
            name for name in groups[0] if re.fullmatch(r"q\d+", name) and all(name in group for group in groups)
        ):
            result[key][name] = (weight * np.stack([group[name] for group in groups])).sum(axis=0)
    return result
