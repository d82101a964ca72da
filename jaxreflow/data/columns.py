"""Numeric columns of a LeRobotDataset's parquet files, as whole numpy arrays over the chosen episodes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from jaxreflow.data.meta_files import read_parquet
from jaxreflow.data.metadata import Episode, Metadata
from jaxreflow.errors import DatasetError

# Kinds of dtype: integers alone, and with booleans and floats.
_WHOLE, _NUMBER = "iu", "biuf"

# Of one episode in one file: the file, the rows, and the columns there.
_Part = tuple[str, np.ndarray, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Places:
    """Where each frame lies: `files[file[i]]` at `row[i]`."""

    files: tuple[str, ...]
    file: Int[np.ndarray, " num_frames"]
    row: Int[np.ndarray, " num_frames"]


def read_columns(
    metadata: Metadata, episodes: Sequence[Episode], names: Sequence[str]
) -> tuple[dict[str, np.ndarray], Places]:
    """The named columns `[num_frames, *shape]`, floats as float32, and where each frame lies.

    As in LeRobot, rows belong to the episode that their `episode_index` names. `meta/episodes*` only says where to look
    first: where the rows are not there, all files in `data/` are read. DatasetError names episodes without all their rows.
    """
    wanted = {episode.index: episode for episode in episodes}
    by_file: dict[str, list[int]] = {}
    for episode in episodes:
        by_file.setdefault(episode.data_file, []).append(episode.index)
    parts: dict[int, list[_Part]] = {}
    for file, indices in by_file.items():
        if file and metadata.has_file(file):
            _take(parts, metadata, file, indices, names)
    misplaced = [index for index, episode in wanted.items() if _rows(parts, index) != episode.length]
    if misplaced:
        for index in misplaced:
            parts.pop(index, None)
        for file in metadata.data_files():
            _take(parts, metadata, file, misplaced, names)
        _check_complete(metadata, wanted, misplaced, parts)
    ordered = [part for index in wanted for part in parts[index]]
    files = {file: number for number, file in enumerate(dict.fromkeys(part[0] for part in ordered))}
    places = Places(
        tuple(files),
        np.repeat([files[file] for file, _, _ in ordered], [len(rows) for _, rows, _ in ordered]),
        np.concatenate([rows for _, rows, _ in ordered]),
    )
    return {name: np.concatenate([columns[name] for _, _, columns in ordered]) for name in names}, places


def _rows(parts: Mapping[int, Sequence[_Part]], index: int) -> int:
    return sum(len(rows) for _, rows, _ in parts.get(index, ()))


def _take(
    parts: dict[int, list[_Part]], metadata: Metadata, file: str, indices: Iterable[int], names: Sequence[str]
) -> None:
    """Adds what a file has of these episodes."""
    path = metadata.root / file
    columns = ["episode_index", *(name for name in names if name != "episode_index")]
    table = read_parquet(path, columns, most_rows=metadata.most_frames)
    stored = _to_numpy(table["episode_index"], (1,), f"{path}: column 'episode_index'", _WHOLE).reshape(-1)
    order = np.argsort(stored, kind="stable")
    found = {}
    for index in indices:
        low, high = np.searchsorted(stored, [index, index + 1], sorter=order)
        if high > low:
            found[index] = order[low:high]
    if not found:
        return
    arrays = {
        name: _to_numpy(
            table[name],
            metadata.features[name].shape,
            f"{path}: column {name!r}",
            _WHOLE if name.endswith("_index") else _NUMBER,
        )
        for name in names
    }
    for index, rows in found.items():
        parts.setdefault(index, []).append((file, rows, {name: array[rows] for name, array in arrays.items()}))


def _check_complete(
    metadata: Metadata, wanted: Mapping[int, Episode], indices: Sequence[int], parts: Mapping[int, Sequence[_Part]]
) -> None:
    for index in indices:
        episode, found = wanted[index], _rows(parts, index)
        if found == episode.length:
            continue
        where = metadata.root / (episode.data_file or "data")
        if episode.data_file and not found and not metadata.has_file(episode.data_file):
            files = {other.data_file for other in wanted.values()}
            missing = [file for file in files if not metadata.has_file(file)]
            raise DatasetError(
                f"{where} is missing, episode {index} needs it by meta/info.json ({len(missing)} of {len(files)} files are "
                "missing, and no other file in data/ holds its rows); copy or download it"
            )
        raise DatasetError(
            f"{where}: episode {index} has {found} rows in all files of data/, expected {episode.length} by meta/episodes*; "
            "copy or download data/ and meta/ again"
        )


def _to_numpy(column: pa.ChunkedArray, shape: tuple[int, ...], name: str, kinds: str) -> np.ndarray:
    count, nulls = len(column), column.null_count
    values = column.combine_chunks()
    while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        values = values.flatten()
        nulls += values.null_count
    try:
        # LeRobot casts to the dtype in info.json. Whole numbers may be stored as floats or text; a fraction is refused.
        if kinds == _WHOLE and not pa.types.is_integer(values.type):
            values = values.cast(pa.int64())
        elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            values = values.cast(pa.float32())
        flat = values.to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        flat = np.empty(0, object)
    if nulls or flat.size != count * math.prod(shape) or flat.dtype.kind not in kinds:
        what = "whole numbers" if kinds == _WHOLE else "numbers"
        raise DatasetError(
            f"{name} holds gaps or entries that are not {what} of shape {list(shape)}, as in meta/info.json"
        )
    array = flat.reshape(count, *shape)
    return array.astype(np.float32) if array.dtype.kind == "f" else array
