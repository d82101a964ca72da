"""What `meta/` of a LeRobotDataset says: frame rate, features, tasks, statistics, and where episodes lie."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxreflow.data.dataset_stats import Stats, read_stats
from jaxreflow.data.file_layout import FileLayout
from jaxreflow.data.legacy_metadata import episode_lines, first_task, legacy_stats, legacy_tasks
from jaxreflow.data.meta_files import (
    MOST_ROWS,
    count_rows,
    parse_file,
    read_json,
    read_parquet,
    text_value,
    whole_number,
)
from jaxreflow.data.task_names import read_task_table
from jaxreflow.errors import DatasetError

LEGACY_VERSIONS = ("v2.0", "v2.1")
VERSIONS = (*LEGACY_VERSIONS, "v3.0")
# What LeRobot takes for a path that info.json does not name.
_DATA_PATHS = {
    True: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    False: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
_VIDEO_PATHS = {
    True: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    False: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
_CHUNKS_SIZE = 1000


@dataclass(frozen=True)
class FeatureSpec:
    """One column: its dtype ("video" and "image" are cameras), the shape and names of one entry, and whether it is depth."""

    dtype: str
    shape: tuple[int, ...]
    names: Any
    depth: bool = False

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

    `data_file` is where `meta/` says that its rows are, which need not be so; empty where it does not say. `videos` maps a
    camera to its file and the time in seconds at which the episode starts in that file.
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
    total_episodes: int = 0
    total_frames: int = 0

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Names of the colour cameras, in the dataset's order."""
        return tuple(key for key in self.visual_keys if not self.features[key].depth)

    @property
    def visual_keys(self) -> tuple[str, ...]:
        """Names of all cameras, those of depth among them."""
        return tuple(key for key, feature in self.features.items() if feature.dtype in ("video", "image"))

    @property
    def depth_keys(self) -> tuple[str, ...]:
        """Names of the cameras that hold depth maps."""
        return tuple(key for key in self.visual_keys if self.features[key].depth)

    @property
    def most_frames(self) -> int:
        """As many frames as the dataset may have: those listed, or those that `info.json` counts."""
        return max(sum(episode.length for episode in self.episodes), self.total_frames)

    def data_files(self) -> list[str]:
        """All parquet files in `data/` that are there, as LeRobot finds them, and those that the episodes name."""
        found = {path.relative_to(self.root).as_posix() for path in (self.root / "data").glob("*/*.parquet")}
        return sorted(found | {file for file in self.named_files() if self.has_file(file)})

    def named_files(self) -> set[str]:
        """The data files that the episodes name."""
        return {episode.data_file for episode in self.episodes if episode.data_file}

    def has_file(self, name: str) -> bool:
        """Whether the dataset has this file."""
        # Not pathlib's, which raises where a name is longer than the system allows.
        return os.path.isfile(self.root / name)  # noqa: PTH113


def read_metadata(root: Path) -> Metadata:
    """Reads `meta/` of a LeRobotDataset v3.0, v2.1 or v2.0; DatasetError names a missing or damaged file."""
    info_file = root / "meta" / "info.json"
    if not info_file.is_file():
        raise DatasetError(f"{root} is not a LeRobotDataset: expected {info_file}, found none; check the path")
    info = parse_file(info_file, read_json, info_file)
    said = info.get("codebase_version") if isinstance(info, dict) else None
    version = _known_version(said)
    if version is None:
        raise DatasetError(
            f"{info_file}: codebase_version is {said!r}, expected one of {', '.join(VERSIONS)}; "
            "convert the dataset with the LeRobot that wrote it"
        )
    legacy = version in LEGACY_VERSIONS
    features, fps, layout = parse_file(info_file, _read_info, root, info, legacy)
    if not 0 < fps < math.inf:
        raise DatasetError(f"{info_file}: fps is {fps}, expected a positive number")
    read_tasks, read_episodes, stats = (
        (legacy_tasks, _legacy_episodes, legacy_stats) if legacy else (read_task_table, _episodes, read_stats)
    )
    listed = sorted(read_episodes(layout), key=lambda episode: episode.index)
    # An interrupted recording that went on may list an episode twice.
    episodes = tuple(episode for i, episode in enumerate(listed) if i == 0 or episode != listed[i - 1])
    if not episodes:
        raise DatasetError(f"{root}/meta/episodes* list no episode; copy or download the dataset again")
    totals = (_total(info, "total_episodes"), _total(info, "total_frames"))
    return Metadata(root, version, fps, features, read_tasks(root), episodes, stats(root), *totals)


def _known_version(said: Any) -> str | None:
    """The layout of a version such as v3.0, 3.0 or v3.1, whose files LeRobot reads alike; None for any other."""
    found = re.fullmatch(r"v?(\d)\.(\d+)(\.\d+)?", said) if isinstance(said, str) else None
    if found is None:
        return None
    version = "v3.0" if found[1] == "3" else f"v{found[1]}.{found[2]}"
    return version if version in VERSIONS else None


def _total(info: dict[str, Any], name: str) -> int:
    """A count in `info.json`; 0 where it is not there or no count, because nothing is read by it."""
    try:
        return whole_number(info.get(name), name)
    except TypeError:
        return 0


def _read_info(root: Path, info: dict[str, Any], legacy: bool) -> tuple[dict[str, FeatureSpec], float, FileLayout]:
    features = {key: _feature(key, spec) for key, spec in info["features"].items()}
    video_keys = tuple(key for key, feature in features.items() if feature.dtype == "video")
    data_path, video_path = info.get("data_path"), info.get("video_path")
    if not legacy and "{episode_" in str(data_path):
        data_path = None  # left from before v3.0; LeRobot takes all files in data/ and never fills it
    chunks_size = whole_number(info.get("chunks_size", _CHUNKS_SIZE), "chunks_size")
    if not chunks_size:
        raise ValueError("chunks_size: expected at least 1, found 0")
    return (
        features,
        float(info["fps"]),
        FileLayout(
            root,
            _DATA_PATHS[legacy] if data_path is None else text_value(data_path, "data_path"),
            _VIDEO_PATHS[legacy] if video_path is None else text_value(video_path, "video_path"),
            video_keys,
            chunks_size,
        ),
    )


def _feature(key: str, spec: dict[str, Any]) -> FeatureSpec:
    dtype = str(spec["dtype"])
    # Pictures have the size that they have, so LeRobot reads no shape for them.
    shape = () if dtype in ("video", "image") and not spec.get("shape") else spec["shape"]
    depth = any(
        about.get(name)
        for about in (spec.get("info"), spec.get("video_info"))
        if isinstance(about, dict)
        for name in ("is_depth_map", "video.is_depth_map")
    )
    # -1 stands for any length in LeRobot; no policy's input has such a shape.
    sizes = tuple(n if n == -1 else whole_number(n, f"shape of {key}") for n in shape)
    return FeatureSpec(dtype, sizes, spec.get("names"), depth)


def _episodes(layout: FileLayout) -> Iterator[Episode]:
    folder = layout.root / "meta" / "episodes"
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise DatasetError(f"{folder} has no parquet files; copy or download the dataset again")
    optional = ["length", "dataset_to_index", "tasks", "data/chunk_index", "data/file_index"]
    for key in layout.video_keys:
        optional += [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    for file in files:
        # Per-episode statistics fill most of these files: only the columns in use are read.
        table = read_parquet(file, ["episode_index", "dataset_from_index"], optional=optional)
        for row in parse_file(file, table.to_pylist):
            yield parse_file(file, _episode, layout, row)


def _episode(layout: FileLayout, row: dict[str, Any]) -> Episode:
    index, first = (whole_number(row[name], name) for name in ("episode_index", "dataset_from_index"))
    # LeRobot reads where an episode ends, not how long it is.
    end = row.get("dataset_to_index")
    length = whole_number(row["length"], "length") if end is None else whole_number(end, "dataset_to_index") - first
    videos = {key: video for key in layout.video_keys if (video := _video(layout, row, key))}
    chunk, number = (row.get(f"data/{name}") for name in ("chunk_index", "file_index"))
    data_file = "" if chunk is None or number is None else _file(layout, layout.data_path, "data", chunk, number)
    return Episode(index, length, first, first_task(row.get("tasks")), data_file, videos)


def _file(layout: FileLayout, template: str, kind: str, chunk: Any, number: Any, **fields: str) -> str:
    numbers = {"chunk_index": chunk, "file_index": number}
    return layout.path(template, **fields, **{name: whole_number(n, f"{kind}/{name}") for name, n in numbers.items()})


def _video(layout: FileLayout, row: dict[str, Any], key: str) -> tuple[str, float] | None:
    """A camera's file and start; None where `meta/episodes` does not say, which matters only if the camera is asked for."""
    chunk, number, start = (row.get(f"videos/{key}/{name}") for name in ("chunk_index", "file_index", "from_timestamp"))
    if chunk is None or number is None or start is None:
        return None
    return _file(layout, layout.video_path, f"videos/{key}", chunk, number, video_key=key), float(start)


def _legacy_episodes(layout: FileLayout) -> Iterator[Episode]:
    first, lines = 0, episode_lines(layout.root)
    most_rows = sum(said or 0 for _, said, _ in lines) or MOST_ROWS
    for index, said, task in lines:
        chunk = index // layout.chunks_size
        # LeRobot's converter finds files by their names, so the chunk may be called as in v3.0.
        fields = {"episode_chunk": chunk, "chunk_index": chunk, "episode_index": index}
        videos = {key: (layout.path(layout.video_path, video_key=key, **fields), 0.0) for key in layout.video_keys}
        data_file = layout.path(layout.data_path, **fields)
        # LeRobot's converter counts rows, so `length` only stands in for a file that is not here.
        length = count_rows(layout.root / data_file, most_rows) or said
        if length is None:
            raise DatasetError(
                f"{layout.root}/meta/episodes.jsonl says no length of episode {index}, and {data_file} cannot be read; copy or "
                "download them again"
            )
        yield Episode(index, length, first, task, data_file, videos)
        first += length
