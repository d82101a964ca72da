"""Writes a LeRobotDataset v3.0: columns as Parquet, cameras as AV1 video, statistics per episode and over all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Shaped, UInt8

from jaxreflow.data.video_writer import AV1, VideoWriter
from jaxreflow.errors import DatasetError

_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def feature_statistics(values: Shaped[np.ndarray, "N ..."], frames: int) -> dict[str, np.ndarray]:
    """min, max, mean, std and five quantiles over the first axis, shaped as one entry (`[1]` for a scalar), and count `[frames]`.

    An image's entries are pixels `[3, 1, 1]` in [0, 1], any number of them per frame.
    """
    table = values.reshape(len(values), *(values.shape[1:] or (1,))).astype(np.float64)
    stats = {"min": table.min(axis=0), "max": table.max(axis=0), "mean": table.mean(axis=0), "std": table.std(axis=0)}
    quantiles = np.quantile(table, list(_QUANTILES.values()), axis=0)
    return {**stats, "count": np.array([frames]), **dict(zip(_QUANTILES, quantiles, strict=True))}


_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_FIRST_FILE = {"chunk_index": 0, "file_index": 0}
_SCALARS = {
    "timestamp": np.float32,
    "frame_index": np.int64,
    "episode_index": np.int64,
    "index": np.int64,
    "task_index": np.int64,
}


@dataclasses.dataclass(frozen=True)
class DatasetFeatures:
    """What one frame holds: cameras by name with `(height, width)`, and float32 vectors by name with their entries' names."""

    cameras: Mapping[str, tuple[int, int]]
    vectors: Mapping[str, Sequence[str]]


class DatasetWriter:
    """A new dataset in the empty folder `root`, one data file and one video per camera; `close` completes it."""

    def __init__(self, root: Path, features: DatasetFeatures, *, fps: int, robot_type: str) -> None:
        self.root = root
        self._features = features
        self._fps = fps
        self._robot_type = robot_type
        self._tasks: list[str] = []
        self._frames = 0
        self._columns: list[dict[str, np.ndarray]] = []
        self._images: dict[str, list[np.ndarray]] = {key: [] for key in features.cameras}
        self._episodes: list[dict[str, Any]] = []
        self._videos = {
            key: VideoWriter(root / _VIDEO_PATH.format(video_key=key, **_FIRST_FILE), size, fps, AV1)
            for key, size in features.cameras.items()
        }

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            for video in self._videos.values():
                video.close()

    def add_episode(
        self,
        task: str,
        vectors: Mapping[str, Float[np.ndarray, "T D"]],
        images: Mapping[str, UInt8[np.ndarray, "T H W 3"]],
    ) -> None:
        """Appends an episode.

        Raises:
            DatasetError: an array is missing, or its length or shape is not the dataset's.
        """
        length = self._check(vectors, images)
        if task not in self._tasks:
            self._tasks.append(task)
        index = len(self._episodes)
        columns = {key: np.asarray(value, np.float32) for key, value in vectors.items()}
        columns |= _counters(length, index, self._frames, self._tasks.index(task), self._fps)
        for key, video in self._videos.items():
            video.add(images[key])
        samples = {key: _sample(images[key]) for key in self._videos}
        for key, sample in samples.items():
            self._images[key].append(sample)
        stats = _plain_statistics({**columns, **samples}, length)
        self._columns.append(columns)
        self._episodes.append(
            {
                "episode_index": index,
                "tasks": [task],
                "length": length,
                **{f"data/{name}": value for name, value in _FIRST_FILE.items()},
                "dataset_from_index": self._frames,
                "dataset_to_index": self._frames + length,
                **self._video_span(length),
                **{f"stats/{key}/{name}": value for key, group in stats.items() for name, value in group.items()},
                **{f"meta/episodes/{name}": value for name, value in _FIRST_FILE.items()},
            }
        )
        self._frames += length

    def close(self) -> None:
        """Completes the videos and writes columns and `meta/`; DatasetError if no episode was added."""
        for video in self._videos.values():
            video.close()
        if not self._episodes:
            raise DatasetError(f"{self.root}: a dataset needs at least one episode, none was added")
        columns = {key: np.concatenate([c[key] for c in self._columns]) for key in self._columns[0]}
        _write_table(self.root / _DATA_PATH.format(**_FIRST_FILE), {k: _array(v) for k, v in columns.items()})
        meta = self.root / "meta"
        episodes = {key: pa.array([e[key] for e in self._episodes]) for key in self._episodes[0]}
        _write_table(meta / "episodes" / "chunk-000" / "file-000.parquet", episodes)
        _write_tasks(meta / "tasks.parquet", self._tasks)
        images = {key: np.concatenate(samples) for key, samples in self._images.items()}
        stats = _plain_statistics({**images, **columns}, self._frames)
        (meta / "stats.json").write_text(json.dumps(stats, indent=4), encoding="utf-8")
        (meta / "info.json").write_text(json.dumps(self._info(), indent=4), encoding="utf-8")

    def _check(self, vectors: Mapping[str, np.ndarray], images: Mapping[str, np.ndarray]) -> int:
        expected: dict[str, tuple[int, ...]] = {key: (len(names),) for key, names in self._features.vectors.items()}
        expected |= {key: (*size, 3) for key, size in self._features.cameras.items()}
        found = {key: value.shape[1:] for key, value in {**vectors, **images}.items()}
        lengths = {len(value) for value in (*vectors.values(), *images.values())}
        if found != expected or len(lengths) != 1 or 0 in lengths:
            raise DatasetError(
                f"episode {len(self._episodes)}: expected {expected} with equally many frames, at least one; "
                f"found {found} with {sorted(lengths)}"
            )
        return lengths.pop()

    def _video_span(self, length: int) -> dict[str, Any]:
        span: dict[str, Any] = {}
        for key in self._videos:
            span |= {f"videos/{key}/{name}": value for name, value in _FIRST_FILE.items()}
            span[f"videos/{key}/from_timestamp"] = self._frames / self._fps
            span[f"videos/{key}/to_timestamp"] = (self._frames + length) / self._fps
        return span

    def _info(self) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for key, (height, width) in self._features.cameras.items():
            features[key] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channel"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "av1",
                    "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": self._fps,
                    "video.channels": 3,
                    "has_audio": False,
                },
            }
        for key, names in self._features.vectors.items():
            features[key] = {"dtype": "float32", "shape": [len(names)], "names": list(names)}
        for key, dtype in _SCALARS.items():
            features[key] = {"dtype": np.dtype(dtype).name, "shape": [1], "names": None}
        return {
            "codebase_version": "v3.0",
            "robot_type": self._robot_type,
            "total_episodes": len(self._episodes),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self._episodes)}"},
            "data_path": _DATA_PATH,
            "video_path": _VIDEO_PATH,
            "features": features,
        }


def _counters(length: int, episode: int, first: int, task: int, fps: int) -> dict[str, np.ndarray]:
    frames = np.arange(length)
    values = {
        "timestamp": frames / fps,
        "frame_index": frames,
        "episode_index": np.full(length, episode),
        "index": first + frames,
        "task_index": np.full(length, task),
    }
    return {key: value.astype(_SCALARS[key]) for key, value in values.items()}


def _sample(images: UInt8[np.ndarray, "T H W 3"], count: int = 25) -> Float[np.ndarray, "N 3 1 1"]:
    """Pixels in [0, 1] of a few frames, every fourth in both directions."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int))
    return images[chosen, ::4, ::4].reshape(-1, 3, 1, 1).astype(np.float32) / np.float32(255)


def _plain_statistics(values: Mapping[str, np.ndarray], frames: int) -> dict[str, dict[str, Any]]:
    stats = {key: feature_statistics(value, frames) for key, value in values.items()}
    return {key: {name: number.tolist() for name, number in group.items()} for key, group in stats.items()}


def _array(value: np.ndarray) -> pa.Array:
    if value.ndim == 1:
        return pa.array(value)
    return pa.FixedSizeListArray.from_arrays(pa.array(value.reshape(-1)), value.shape[1])


def _write_table(path: Path, columns: Mapping[str, pa.Array], metadata: Mapping[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)).replace_schema_metadata(metadata), path)


def _write_tasks(path: Path, tasks: Sequence[str]) -> None:
    """`task_index` by task, which pandas takes as the index: LeRobot reads it with pandas."""
    index = "__index_level_0__"

    def column(name: str | None, field: str, kind: str, dtype: str) -> dict[str, Any]:
        return {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": dtype, "metadata": None}

    pandas = {
        "index_columns": [index],
        "column_indexes": [column(None, "None", "unicode", "object")],
        "columns": [
            column("task_index", "task_index", "int64", "int64"),
            column(None, index, "unicode", "object"),
        ],
    }
    columns = {"task_index": pa.array(range(len(tasks)), pa.int64()), index: pa.array(list(tasks))}
    _write_table(path, columns, {"pandas": json.dumps(pandas)})
