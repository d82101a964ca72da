"""What `meta/` of a LeRobotDataset says: frame rate, features, tasks, statistics, and where episodes lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from jaxreflow.data.dataset_stats import Stats, aggregate_stats, stats_arrays
from jaxreflow.data.file_layout import FileLayout
from jaxreflow.data.meta_files import parse_file, read_json, read_parquet, text_value, whole_number
from jaxreflow.errors import DatasetError
from jaxreflow.support.strict_json import parse_json

LEGACY_VERSIONS = ("v2.0", "v2.1")
VERSIONS = (*LEGACY_VERSIONS, "v3.0")


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


def read_metadata(root: Path) -> Metadata:
    """Reads `meta/` of a LeRobotDataset v3.0, v2.1 or v2.0; DatasetError names a missing or damaged file."""
    info_file = root / "meta" / "info.json"
    if not info_file.is_file():
        raise DatasetError(f"{root} is not a LeRobotDataset: expected {info_file}, found none; check the path")
    info = parse_file(info_file, read_json, info_file)
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version not in VERSIONS:
        raise DatasetError(
            f"{info_file}: codebase_version is {version!r}, expected one of {', '.join(VERSIONS)}; "
            "convert the dataset with the LeRobot that wrote it"
        )
    features, fps, layout = parse_file(info_file, _read_info, root, info)
    if not 0 < fps < math.inf:
        raise DatasetError(f"{info_file}: fps is {fps}, expected a positive number")
    read_tasks, read_episodes, read_stats = (
        (_legacy_tasks, _legacy_episodes, _legacy_stats) if version in LEGACY_VERSIONS else (_tasks, _episodes, _stats)
    )
    episodes = tuple(sorted(read_episodes(layout), key=lambda episode: episode.index))
    if not episodes:
        raise DatasetError(f"{root}/meta/episodes* list no episode; copy or download the dataset again")
    return Metadata(root, version, fps, features, read_tasks(root), episodes, read_stats(root))


def _read_info(root: Path, info: dict[str, Any]) -> tuple[dict[str, FeatureSpec], float, FileLayout]:
    features = {
        key: FeatureSpec(
            str(spec["dtype"]), tuple(whole_number(n, f"shape of {key}") for n in spec["shape"]), spec.get("names")
        )
        for key, spec in info["features"].items()
    }
    video_keys = tuple(key for key, feature in features.items() if feature.dtype == "video")
    video_path = text_value(info["video_path"], "video_path") if video_keys else ""
    chunks_size = whole_number(info["chunks_size"], "chunks_size")
    if not chunks_size:
        raise ValueError("chunks_size: expected at least 1, found 0")
    return (
        features,
        float(info["fps"]),
        FileLayout(root, text_value(info["data_path"], "data_path"), video_path, video_keys, chunks_size),
    )


def _tasks(root: Path) -> dict[int, str]:
    file = root / "meta" / "tasks.parquet"
    return parse_file(file, _table_of_tasks, file, read_parquet(file))


def _table_of_tasks(file: Path, table: pa.Table) -> dict[int, str]:
    # The task is the pandas index: a column named "task" or "__index_level_0__", as the version had it.
    text = [
        field.name for field in table.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    if len(text) != 1 or "task_index" not in table.column_names:
        raise DatasetError(f"{file}: expected the columns task_index and one of text, found {table.column_names}")
    return _task_names(table["task_index"].to_pylist(), table[text[0]].to_pylist())


def _task_names(indices: Sequence[Any], names: Sequence[Any]) -> dict[int, str]:
    return {
        whole_number(index, "task_index"): text_value(name, "task") for index, name in zip(indices, names, strict=True)
    }


def _episodes(layout: FileLayout) -> Iterator[Episode]:
    folder = layout.root / "meta" / "episodes"
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise DatasetError(f"{folder} has no parquet files; copy or download the dataset again")
    columns = ["episode_index", "length", "tasks", "dataset_from_index", "data/chunk_index", "data/file_index"]
    for key in layout.video_keys:
        columns += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    for file in files:
        # Per-episode statistics fill most of these files: only the columns in use are read.
        for row in parse_file(file, read_parquet(file, columns).to_pylist):
            yield parse_file(file, _episode, layout, row)


def _episode(layout: FileLayout, row: dict[str, Any]) -> Episode:
    videos = {
        key: (
            layout.path(
                layout.video_path,
                video_key=key,
                chunk_index=whole_number(row[f"videos/{key}/chunk_index"], "chunk_index"),
                file_index=whole_number(row[f"videos/{key}/file_index"], "file_index"),
            ),
            float(row[f"videos/{key}/from_timestamp"]),
        )
        for key in layout.video_keys
    }
    chunk, number = (whole_number(row[name], name) for name in ("data/chunk_index", "data/file_index"))
    data_file = layout.path(layout.data_path, chunk_index=chunk, file_index=number)
    index, length, first = (whole_number(row[name], name) for name in ("episode_index", "length", "dataset_from_index"))
    return Episode(index, length, first, _first(row["tasks"]), data_file, videos)


def _stats(root: Path) -> Stats:
    file = root / "meta" / "stats.json"
    if not file.is_file():
        return {}
    return parse_file(file, stats_arrays, parse_file(file, read_json, file))


def _first(tasks: Sequence[Any]) -> str:
    return text_value(tasks[0], "tasks") if tasks else ""


def _legacy_lines(root: Path, name: str) -> list[dict[str, Any]]:
    file = root / "meta" / name
    text = parse_file(file, file.read_text, encoding="utf-8")
    return [parse_file(file, parse_json, line) for line in text.splitlines() if line.strip()]


def _legacy_tasks(root: Path) -> dict[int, str]:
    lines = _legacy_lines(root, "tasks.jsonl")
    file = root / "meta" / "tasks.jsonl"
    return parse_file(
        file, lambda: _task_names([line["task_index"] for line in lines], [line["task"] for line in lines])
    )


def _legacy_episodes(layout: FileLayout) -> Iterator[Episode]:
    lines = _legacy_lines(layout.root, "episodes.jsonl")
    rows = parse_file(
        layout.root / "meta" / "episodes.jsonl",
        lambda: sorted(
            (
                whole_number(line["episode_index"], "episode_index"),
                whole_number(line["length"], "length"),
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
    return parse_file(file, lambda: aggregate_stats([stats_arrays(line["stats"]) for line in lines]))
