"""Numeric columns of a LeRobotDataset's parquet files, as whole numpy arrays over the chosen episodes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from jaxreflow.data.meta_files import read_parquet
from jaxreflow.data.metadata import Episode, Metadata
from jaxreflow.errors import DatasetError

# Kinds of dtype: integers alone, and with booleans and floats.
_WHOLE, _NUMBER = "iu", "biuf"


def read_columns(
    metadata: Metadata, episodes: Sequence[Episode], names: Sequence[str]
) -> tuple[dict[str, np.ndarray], Int[np.ndarray, " num_frames"]]:
    """The named columns `[num_frames, *shape]`, floats as float32, and each frame's row in its file.

    DatasetError names the file whose rows are not those that the metadata announces.
    """
    root, features = metadata.root, metadata.features
    lengths: Counter[str] = Counter()
    for episode in metadata.episodes:
        lengths[episode.data_file] += episode.length
    files: dict[str, list[int]] = {}
    for position, episode in enumerate(episodes):
        files.setdefault(episode.data_file, []).append(position)
    parts: dict[str, list[np.ndarray]] = {name: [np.empty(0)] * len(episodes) for name in names}
    rows: list[np.ndarray] = [np.empty(0)] * len(episodes)
    for file, positions in files.items():
        path = root / file
        columns = ["episode_index", *(name for name in names if name != "episode_index")]
        table = read_parquet(path, columns, most_rows=lengths[file])
        arrays = {
            name: _to_numpy(
                table[name],
                features[name].shape,
                f"{path}: column {name!r}",
                _WHOLE if name.endswith("_index") else _NUMBER,
            )
            for name in names
        }
        stored = _to_numpy(table["episode_index"], (1,), f"{path}: column 'episode_index'", _WHOLE).reshape(-1)
        order = np.argsort(stored, kind="stable")
        for position in positions:
            episode = episodes[position]
            low, high = np.searchsorted(stored, [episode.index, episode.index + 1], sorter=order)
            if high - low != episode.length:
                raise DatasetError(
                    f"{path}: episode {episode.index} has {high - low} rows, expected {episode.length} by meta/episodes*; "
                    "copy or download it again"
                )
            rows[position] = order[low:high]
            for name, array in arrays.items():
                parts[name][position] = array[rows[position]]
    return {name: np.concatenate(part) for name, part in parts.items()}, np.concatenate(rows)


def _to_numpy(column: pa.ChunkedArray, shape: tuple[int, ...], name: str, kinds: str) -> np.ndarray:
    count, nulls = len(column), column.null_count
    values = column.combine_chunks()
    while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        values = values.flatten()
        nulls += values.null_count
    flat = values.to_numpy(zero_copy_only=False)
    if nulls or flat.size != count * math.prod(shape) or flat.dtype.kind not in kinds:
        what = "whole numbers" if kinds == _WHOLE else "numbers"
        raise DatasetError(
            f"{name} holds gaps or entries that are not {what} of shape {list(shape)}, as in meta/info.json"
        )
    array = flat.reshape(count, *shape)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
