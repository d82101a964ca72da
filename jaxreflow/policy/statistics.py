"""Where normalisation statistics come from: files, a dataset, or buffers among the weights of old checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jaxreflow.errors import ProcessorError
from jaxreflow.policy.normalization import Stats
from jaxreflow.support.lfs import START, lfs_advice
from jaxreflow.support.safetensors_file import DTYPES, header_length
from jaxreflow.support.strict_json import parse_json

# Modules that LeRobot kept inside the policy until 0.3, from the least to the most authoritative for the same feature.
BUFFER_PREFIXES = ("normalize_targets.", "unnormalize_outputs.", "normalize_inputs.")


def read_stats(path: Path) -> Stats:
    """Statistics of a `stats.json` (feature -> name -> numbers) or a safetensors file (`feature.name` -> tensor).

    Raises:
        ProcessorError: the file is missing, damaged, or of another kind.
    """
    if not path.is_file():
        raise ProcessorError(
            f"--stats-from: no such file: {path}; expected `dataset`, `policy`, a stats.json or a safetensors file"
        )
    if path.suffix not in (".json", ".safetensors"):
        raise ProcessorError(f"--stats-from: {path} must end in .json or .safetensors")
    data = path.read_bytes()
    return parse_tensors(data, str(path)) if path.suffix == ".safetensors" else _parse_json(data, str(path))


def parse_tensors(data: bytes, where: str) -> Stats:
    """Statistics of a processor's state file, as float32.

    Raises:
        ProcessorError: `data` is no safetensors file, or a key has no statistic's name.
    """
    try:
        header_length(data[:8], len(data))
        tensors = safetensors.deserialize(data)
    except (safetensors.SafetensorError, ValueError) as error:
        if data.startswith(START):
            raise ProcessorError(lfs_advice(where)) from error
        raise ProcessorError(
            f"{where}: not a complete safetensors file ({error}); copy or download it again"
        ) from error
    stats: Stats = {}
    for key, info in tensors:
        if info["dtype"] not in DTYPES:
            raise ProcessorError(f"{where}: {key} is stored as {info['dtype']}; expected one of {', '.join(DTYPES)}")
        tensor = np.ndarray(info["shape"], DTYPES[info["dtype"]], bytes(info["data"]))
        feature, dot, name = key.rpartition(".")
        if not dot:
            raise ProcessorError(f"{where}: key {key!r} must be `feature.statistic`, like `action.mean`")
        stats.setdefault(feature, {})[name] = tensor.astype(np.float32)
    return stats


def format_tensors(stats: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """A processor's state file as LeRobot reads it: `feature.name` -> float32."""
    flat = {
        f"{key}.{name}": np.asarray(value, np.float32) for key, group in stats.items() for name, value in group.items()
    }
    return safetensors.numpy.save(flat)


def _parse_json(data: bytes, where: str) -> Stats:
    try:
        return to_float32(parse_json(data))
    except (ValueError, TypeError, AttributeError) as error:
        raise ProcessorError(
            f"{where}: expected a JSON object feature -> statistic -> numbers, "
            f"as in a dataset's meta/stats.json ({error})"
        ) from error


def to_float32(stats: Mapping[str, Mapping[str, Any]]) -> Stats:
    """A dataset's statistics in the dtype in which LeRobot normalises; a vector's `[d, 1]` and `[1, d]` become `[d]`."""
    arrays = {
        key: {name: np.atleast_1d(np.asarray(value, np.float32)) for name, value in group.items()}
        for key, group in stats.items()
    }
    return {
        key: {name: as_vector(value) if value.ndim == 2 else value for name, value in group.items()}
        for key, group in arrays.items()
    }


def as_vector(value: np.ndarray) -> np.ndarray:
    """`[d]` of a statistic with one axis of d numbers, such as `[d, 1]` or an image's `[3, 1, 1]`; others as they are."""
    return value.reshape(-1) if value.size == max(value.shape, default=1) else value


def rename_stats(stats: Stats, rename_map: Mapping[str, str]) -> Stats:
    """The same statistics under the policy's names, by a map from dataset names to policy names."""
    return {rename_map.get(key, key): group for key, group in stats.items()}


def chosen_stats(
    stats_from: str | Path | None, dataset_stats: Mapping[str, Mapping[str, Any]] | None, rename_map: Mapping[str, str]
) -> Stats | None:
    """The statistics that `stats_from` names, in the policy's names; None for the policy's own.

    Raises:
        ProcessorError: the dataset or the file has none.
    """
    if stats_from is None or str(stats_from) == "policy":
        return None
    if str(stats_from) != "dataset":
        return rename_stats(read_stats(Path(stats_from).expanduser()), rename_map)
    if not dataset_stats:
        raise ProcessorError(
            "--stats-from dataset: there is no dataset here, or it has no statistics; give a FILE instead, such as another "
            "dataset's meta/stats.json, or `policy` for those that the policy brings"
        )
    return rename_stats(to_float32(dataset_stats), rename_map)


def stats_in_weights(tensors: Mapping[str, np.ndarray], features: Iterable[str]) -> Stats:
    """Statistics from the buffers of an old checkpoint: `normalize_inputs.buffer_observation_state.mean` and its like.

    Dots in a feature's name are underscores there; a buffer of no known feature keeps its own name.
    """
    spelling = {f"buffer_{key.replace('.', '_')}": key for key in features}
    stats: Stats = {}
    for prefix in BUFFER_PREFIXES:
        for key, tensor in tensors.items():
            if key.startswith(prefix):
                buffer, _, name = key.removeprefix(prefix).rpartition(".")
                stats.setdefault(spelling.get(buffer, buffer), {})[name] = np.asarray(tensor, np.float32)
    return stats
