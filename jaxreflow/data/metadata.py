"""What `meta/` of a LeRobotDataset says: frame rate, features, tasks, statistics, and where episodes lie."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxreflow.errors import DatasetError
from jaxreflow.support.strict_json import parse_json

Stats = dict[str, dict[str, np.ndarray]]
_Parsed = TypeVar("_Parsed")

LEGACY_VERSIONS = ("v2.0", "v2.1")
VERSIONS = (*LEGACY_VERSIONS, "v3.0")

# What LeRobot writes behind a field's name in a path template: nothing, or a number's width, such as 03d.
_FORMAT_SPEC = re.compile(r"(0?\d{1,2})?d?")
# More frames than any dataset has; sums of so many still fit int64.
_COUNT_LIMIT = 1 << 40
# More episodes than any dataset has.
_MOST_ROWS = 1 << 20


@dataclass(frozen=True)
class FeatureSpec:
    """One column: its dtype ("video" and "image" are cameras), and the shape and names of one entry."""

    dtype: str
    shape: tuple[int, ...]
    names: Any

    @property
    def dim_names(self) -> tuple[str, ...]:
        """Names of a vector's entries; their numbers where the dataset does not name each of them differently."""
        names = self.names
        if isinstance(names, dict):  # {"motors": ["hip", "knee"]}, or {"hip": 0, "knee": 1}
            names = [name for key, value in names.items() for name in (value if isinstance(value, list) else [key])]
        count = self.shape[0]
        if isinstance(names, list) and all(isinstance(name, str) and name for name in names):
            named = tuple(names)
            if len(named) == len(set(named)) == count:
                return named
        return tuple(str(number) for number in range(count))


@dataclass(frozen=True)
class Episode:
    """One episode: its frames are `first .. last` of the whole dataset, its files are relative to the dataset's folder.

    `videos` maps a camera to its file and the time in seconds at which the episode starts in that file.
    """

    index: int
    length: int
    first: int
    task: str
    data_file: str
    videos: dict[str, tuple[str, float]]

    @property
    def last(self) -> int:
        """Global index of the episode's last frame."""
        return self.first + self.length - 1


@dataclass(frozen=True)
class Metadata:
    """Everything that `meta/` holds, with episodes in the order of their index and tasks by `task_index`."""

    root: Path
    version: str
    fps: float
    features: dict[str, FeatureSpec]
    tasks: dict[int, str]
    episodes: tuple[Episode, ...]
    stats: Stats

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Names of the camera features, in the dataset's order."""
        return tuple(key for key, feature in self.features.items() if feature.dtype in ("video", "image"))


@dataclass(frozen=True)
class _Layout:
    """What `info.json` says about files."""

    root: Path
    data_path: str
    video_path: str
    video_keys: tuple[str, ...]
    chunks_size: int

    def path(self, template: str, **fields: Any) -> str:
        """Fills a path template of `info.json`; DatasetError if it is more than names of fields, or leaves the dataset's folder."""
        try:
            _check_template(template, fields)
            relative = template.format(**fields)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise DatasetError(
                f"{self.root}/meta/info.json: path template {template!r} cannot be filled from {sorted(fields)} "
                f"({error}); write it as LeRobot does, such as {{chunk_index:03d}}"
            ) from error
        # Lexical on purpose: the files of a hub snapshot are symlinks to blobs outside the folder.
        path = PureWindowsPath(relative)
        if path.anchor or ".." in path.parts or not path.parts or "\0" in relative:
            raise DatasetError(
                f"{self.root}/meta/info.json: path template {template!r} gives {relative!r}, which leaves the "
                "dataset's folder; repair it, or get the dataset from a source that you trust"
            )
        return relative


def _check_template(template: str, fields: Collection[str]) -> None:
    """ValueError unless a template names nothing but fields: `str.format` would also follow attributes and pad to any width."""
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is not None and name not in fields:
            raise ValueError(f"expected a field's name, found {name!r}")
        if conversion or (spec and not _FORMAT_SPEC.fullmatch(spec)):
            raise ValueError(f"{name!r}: expected no format but a number's width, found {spec or conversion!r}")


def read_metadata(root: Path) -> Metadata:
    """Reads `meta/` of a LeRobotDataset v3.0, v2.1 or v2.0; DatasetError names a missing or damaged file."""
    info_file = root / "meta" / "info.json"
    if not info_file.is_file():
        raise DatasetError(f"{root} is not a LeRobotDataset: expected {info_file}, found none; check the path")
    info = _parse(info_file, _json, info_file)
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version not in VERSIONS:
        raise DatasetError(
            f"{info_file}: codebase_version is {version!r}, expected one of {', '.join(VERSIONS)}; "
            "convert the dataset with the LeRobot that wrote it"
        )
    features, fps, layout = _parse(info_file, _read_info, root, info)
    if not 0 < fps < math.inf:
        raise DatasetError(f"{info_file}: fps is {fps}, expected a positive number")
    read_tasks, read_episodes, read_stats = (
        (_legacy_tasks, _legacy_episodes, _legacy_stats) if version in LEGACY_VERSIONS else (_tasks, _episodes, _stats)
    )
    episodes = tuple(sorted(read_episodes(layout), key=lambda episode: episode.index))
    if not episodes:
        raise DatasetError(f"{root}/meta/episodes* list no episode; copy or download the dataset again")
    return Metadata(root, version, fps, features, read_tasks(root), episodes, read_stats(root))


def read_parquet(file: Path, columns: list[str] | None = None, *, most_rows: int = _MOST_ROWS) -> pa.Table:
    """The named columns of a parquet file (all without names); DatasetError if it is missing, damaged or lacks one.

    More than `most_rows` rows are refused before they are read: compressed, a few bytes can be any number of them.
    """

    def read() -> pa.Table:
        with pq.ParquetFile(file) as parquet:
            # Not the columns' own counts: where a footer is damaged, to ask for one ends the process.
            rows = parquet.metadata.num_rows
            if rows > most_rows:
                raise ValueError(f"expected at most {most_rows} rows by meta/episodes*, found {rows}")
            table = parquet.read(columns=columns)
        absent = [name for name in columns or () if name not in table.column_names]
        if absent:
            raise DatasetError(
                f"{file} lacks the column {absent[0]!r} of meta/info.json; it has {', '.join(table.column_names)}"
            )
        return table

    return _parse(file, read)


def _parse(file: Path, read: Callable[..., _Parsed], *args: Any, **kwargs: Any) -> _Parsed:
    """Calls `read`, turning whatever damaged content makes it raise into a DatasetError that names `file`."""
    try:
        return read(*args, **kwargs)
    except FileNotFoundError as error:
        raise DatasetError(f"{file} is missing; copy or download the dataset again") from error
    except (KeyError, TypeError, ValueError, OverflowError, OSError, AttributeError, pa.ArrowException) as error:
        raise DatasetError(f"{file} is damaged or lacks a field ({type(error).__name__}: {error})") from error


def _read_info(root: Path, info: dict[str, Any]) -> tuple[dict[str, FeatureSpec], float, _Layout]:
    features = {
        key: FeatureSpec(
            str(spec["dtype"]), tuple(_whole(n, f"shape of {key}") for n in spec["shape"]), spec.get("names")
        )
        for key, spec in info["features"].items()
    }
    video_keys = tuple(key for key, feature in features.items() if feature.dtype == "video")
    video_path = _text(info["video_path"], "video_path") if video_keys else ""
    chunks_size = _whole(info["chunks_size"], "chunks_size")
    if not chunks_size:
        raise ValueError("chunks_size: expected at least 1, found 0")
    return (
        features,
        float(info["fps"]),
        _Layout(root, _text(info["data_path"], "data_path"), video_path, video_keys, chunks_size),
    )


def _json(file: Path) -> Any:
    return parse_json(file.read_text(encoding="utf-8"))


def _tasks(root: Path) -> dict[int, str]:
    file = root / "meta" / "tasks.parquet"
    return _parse(file, _table_of_tasks, file, read_parquet(file))


def _table_of_tasks(file: Path, table: pa.Table) -> dict[int, str]:
    # The task is the pandas index: a column named "task" or "__index_level_0__", as the version had it.
    text = [
        field.name for field in table.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    if len(text) != 1 or "task_index" not in table.column_names:
        raise DatasetError(f"{file}: expected the columns task_index and one of text, found {table.column_names}")
    return _task_names(table["task_index"].to_pylist(), table[text[0]].to_pylist())


def _task_names(indices: Sequence[Any], names: Sequence[Any]) -> dict[int, str]:
    return {_whole(index, "task_index"): _text(name, "task") for index, name in zip(indices, names, strict=True)}


def _episodes(layout: _Layout) -> Iterator[Episode]:
    folder = layout.root / "meta" / "episodes"
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise DatasetError(f"{folder} has no parquet files; copy or download the dataset again")
    columns = ["episode_index", "length", "tasks", "dataset_from_index", "data/chunk_index", "data/file_index"]
    for key in layout.video_keys:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    for file in files:
        # Per-episode statistics fill most of these files: only the columns in use are read.
        for row in _parse(file, read_parquet(file, columns).to_pylist):
            yield _parse(file, _episode, layout, row)


def _episode(layout: _Layout, row: dict[str, Any]) -> Episode:
    videos = {
        key: (
            layout.path(
                layout.video_path,
                video_key=key,
                chunk_index=_whole(row[f"videos/{key}/chunk_index"], "chunk_index"),
                file_index=_whole(row[f"videos/{key}/file_index"], "file_index"),
            ),
            float(row[f"videos/{key}/from_timestamp"]),
        )
        for key in layout.video_keys
    }
    chunk, number = (_whole(row[name], name) for name in ("data/chunk_index", "data/file_index"))
    data_file = layout.path(layout.data_path, chunk_index=chunk, file_index=number)
    index, length, first = (_whole(row[name], name) for name in ("episode_index", "length", "dataset_from_index"))
    return Episode(index, length, first, _first(row["tasks"]), data_file, videos)


def _stats(root: Path) -> Stats:
    file = root / "meta" / "stats.json"
    if not file.is_file():
        return {}
    return _parse(file, _arrays, _parse(file, _json, file))


def _arrays(stats: dict[str, dict[str, Any]]) -> Stats:
    return {
        key: {name: np.atleast_1d(np.asarray(value, np.float64)) for name, value in group.items()}
        for key, group in stats.items()
    }


def _first(tasks: Sequence[Any]) -> str:
    return _text(tasks[0], "tasks") if tasks else ""


def _whole(value: Any, name: str) -> int:
    """A count or an index, as it is stored; TypeError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _COUNT_LIMIT:
        raise TypeError(f"{name}: expected a whole number from 0, found {value!r}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected text, found {value!r}")
    value.encode()  # UnicodeEncodeError, a ValueError, for half a character, which JSON can hold
    return value


def _legacy_lines(root: Path, name: str) -> list[dict[str, Any]]:
    file = root / "meta" / name
    text = _parse(file, file.read_text, encoding="utf-8")
    return [_parse(file, parse_json, line) for line in text.splitlines() if line.strip()]


def _legacy_tasks(root: Path) -> dict[int, str]:
    lines = _legacy_lines(root, "tasks.jsonl")
    file = root / "meta" / "tasks.jsonl"
    return _parse(file, lambda: _task_names([line["task_index"] for line in lines], [line["task"] for line in lines]))


def _legacy_episodes(layout: _Layout) -> Iterator[Episode]:
    lines = _legacy_lines(layout.root, "episodes.jsonl")
    rows = _parse(
        layout.root / "meta" / "episodes.jsonl",
        lambda: sorted(
            (
                _whole(line["episode_index"], "episode_index"),
                _whole(line["length"], "length"),
                _first(line.get("tasks", ())),
            )
            for line in lines
        ),
    )
    first = 0
    for index, length, task in rows:
        fields = {"episode_chunk": index // layout.chunks_size, "episode_index": index}
        videos = {key: (layout.path(layout.video_path, video_key=key, **fields), 0.0) for key in layout.video_keys}
        yield Episode(index, length, first, task, layout.path(layout.data_path, **fields), videos)
        first += length


def _legacy_stats(root: Path) -> Stats:
    file = root / "meta" / "episodes_stats.jsonl"
    if not file.is_file():
        return _stats(root)
    lines = _legacy_lines(root, "episodes_stats.jsonl")
    return _parse(file, lambda: aggregate_stats([_arrays(line["stats"]) for line in lines]))


def aggregate_stats(parts: Sequence[Stats]) -> Stats:
    """Statistics of a union of disjoint parts: min, max, count, exact mean and std, by the law of total variance."""
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
    return result
