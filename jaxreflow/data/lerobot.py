"""Reads a LeRobotDataset (v3.0, v2.1, v2.0, or packed) with pyarrow and PyAV: images by frame, the rest as whole columns.

Frames are named by their global index, the one that the whole dataset counts, whichever episodes are selected.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

from jaxreflow.data.columns import read_columns
from jaxreflow.data.dataset_stats import Stats
from jaxreflow.data.episodes import INDEX_COLUMNS, check_episodes, pick_episodes
from jaxreflow.data.metadata import FeatureSpec, Metadata, read_metadata
from jaxreflow.data.packed_frames import FOLDER, PackedFrames
from jaxreflow.data.video import FrameReaders
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.policy.names import ACTION, STATE
from jaxreflow.support.console import progress
from jaxreflow.support.hub import HubError, download
from jaxreflow.support.storage import is_remote, local_copy

# LeRobot's own tolerance between a frame's timestamp and the time at which the video shows it.
TOLERANCE_S = 1e-4
_log = logging.getLogger(__name__)


class LeRobotDataset:
    """Selected episodes of a LeRobotDataset on disk; picklable, opens videos when a frame is asked for."""

    def __init__(self, metadata: Metadata, episodes: Sequence[int] | None = None) -> None:
        self.metadata = metadata
        self.root = metadata.root
        self.episodes = metadata.episodes if episodes is None else pick_episodes(metadata.episodes, episodes, self.root)
        self._lengths = np.array([episode.length for episode in self.episodes], np.int64)
        self._firsts = np.array([episode.first for episode in self.episodes], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._cache: dict[str, np.ndarray] = {}
        self._readers = FrameReaders()
        self._packed = PackedFrames(self.root / FOLDER) if (self.root / FOLDER).is_dir() else None
        check_episodes(metadata, self.episodes, with_videos=self._packed is None)
        names = [*INDEX_COLUMNS, *(key for key in (STATE, ACTION) if key in self.features)]
        self._columns, self._file_rows = read_columns(metadata, self.episodes, names)
        unknown = set(np.unique(self._columns["task_index"])) - set(metadata.tasks)
        if unknown:
            raise DatasetError(
                f"{self.root}: task_index {min(unknown)} is not among the {len(metadata.tasks)} tasks of "
                "meta/tasks.parquet (tasks.jsonl before v3.0); download it again"
            )

    @classmethod
    def open(cls, root: Path | str, *, episodes: Sequence[int] | None = None) -> LeRobotDataset:
        """Opens the dataset in the folder `root`; DatasetError if files are missing, damaged or of unknown version.

        Of one in an object store the chosen episodes' files are copied to this machine first; StorageError if that fails.
        """
        return cls(read_metadata(_local(root, episodes)), episodes)

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.metadata.fps

    @property
    def features(self) -> dict[str, FeatureSpec]:
        """All features by name."""
        return self.metadata.features

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Names of the camera features."""
        return self.metadata.camera_keys

    @property
    def stats(self) -> Stats:
        """Statistics of the whole dataset by feature and name, float64; empty where the dataset has none."""
        return self.metadata.stats

    @property
    def num_frames(self) -> int:
        """Number of frames in the selected episodes."""
        return int(self._lengths.sum())

    @property
    def tasks(self) -> tuple[str, ...]:
        """The distinct tasks of the selected frames, in the order of their task index."""
        return tuple(self.metadata.tasks[int(index)] for index in np.unique(self.column("task_index")))

    @property
    def cached(self) -> bool:
        """Whether decoded frames are held in memory."""
        return bool(self._cache)

    def frame_indices(self, episodes: Sequence[int] | None = None) -> Int[np.ndarray, " n"]:
        """Global indices of all frames of these episodes (original episode indices), or of all selected ones."""
        chosen = self.episodes if episodes is None else pick_episodes(self.episodes, episodes, self.root)
        return np.concatenate([np.arange(episode.first, episode.last + 1) for episode in chosen])

    def rows(self, frames: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Positions of global frame indices in the columns; DatasetError names one that no selected episode has."""
        which = np.maximum(np.searchsorted(self._firsts, frames, side="right") - 1, 0)
        offset = frames - self._firsts[which]
        wrong = (offset < 0) | (offset >= self._lengths[which])
        if wrong.any():
            raise DatasetError(
                f"{self.root}: frame {frames[wrong][0]} is in none of the {len(self.episodes)} selected episodes"
            )
        return self._starts[which] + offset

    def last_rows(self) -> Int[np.ndarray, " num_frames"]:
        """For every row of the columns, the row of its episode's last frame."""
        return np.repeat(self._starts + self._lengths - 1, self._lengths)

    def column(self, name: str) -> np.ndarray:
        """A numeric feature of all selected frames, `[num_frames, *shape]`, floats as float32; read once."""
        if name not in self._columns:
            if name not in self.features or name in self.camera_keys:
                raise DatasetError(f"{self.root}: no numeric feature {name!r}, only {', '.join(self.features)}")
            self._columns |= read_columns(self.metadata, self.episodes, [name])[0]
        return self._columns[name]

    def action_chunk(
        self, frame: int, chunk_size: int, key: str = ACTION
    ) -> tuple[Float32[np.ndarray, "{chunk_size} d"], Bool[np.ndarray, " {chunk_size}"]]:
        """The actions of `frame` and the `chunk_size - 1` after it, and which of them lie past the episode's end.

        Those repeat the episode's last action, as LeRobot's `delta_timestamps` do.
        """
        row = self._row(frame)
        wanted = np.arange(row, row + chunk_size)
        episode = self._episode_of(row)
        last = self._starts[episode] + self._lengths[episode] - 1
        return self.column(key)[np.minimum(wanted, last)], wanted > last

    def frame(self, index: int, cameras: Sequence[str] | None = None) -> dict[str, Any]:
        """One frame by global index: cameras uint8 `[H, W, 3]`, `observation.state` float32, `task`, and indices."""
        row = self._row(index)
        keys = self.camera_keys if cameras is None else cameras
        result: dict[str, Any] = {key: self.image(index, key) for key in keys}
        if STATE in self.features:
            result[STATE] = self.column(STATE)[row]
        return result | {
            "task": self.metadata.tasks[int(self.column("task_index")[row, 0])],
            "episode_index": self.episodes[self._episode_of(row)].index,
            "frame_index": int(self.column("frame_index")[row, 0]),
            "index": int(index),
        }

    def describe(self, index: int) -> str:
        """A global frame index in words: frame and episode."""
        return self._describe(self._row(index))

    def image(self, index: int, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """One camera's image by global frame index; DatasetError names file, episode and frame if it cannot be had."""
        row = self._row(index)
        return self._cache[camera][row] if camera in self._cache else self._decode(row, camera)

    def cache_frames(self, cameras: Sequence[str] | None = None, *, limit_bytes: int = 4 << 30) -> None:
        """Decodes every selected frame into memory, file by file; DatasetError if they need more than `limit_bytes`."""
        cameras = [key for key in (self.camera_keys if cameras is None else cameras) if key not in self._cache]
        samples = {key: self._decode(0, key) for key in cameras}
        size = sum(sample.nbytes for sample in samples.values()) * self.num_frames
        if size > limit_bytes:
            raise DatasetError(
                f"{self.root}: {self.num_frames} frames of {len(cameras)} camera(s) take {size / 2**30:.2f} GiB, "
                f"expected at most {limit_bytes / 2**30:.2f} GiB; allow that much with --dataset.cache-frames if the "
                "machine has it, or leave that out and decode them when they are needed, with --num-workers"
            )
        held = {key: np.empty((self.num_frames, *sample.shape), np.uint8) for key, sample in samples.items()}
        with progress("decoding frames", self.num_frames * len(cameras), unit="frame") as advance:
            for key, images in held.items():
                # Row order is file order, so the decoder runs on instead of seeking.
                for row in range(self.num_frames):
                    images[row] = self._decode(row, key)
                    advance(1)
        self._cache |= held

    def _row(self, frame: int) -> int:
        return int(self.rows(np.array([frame]))[0])

    def _episode_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _decode(self, row: int, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        if camera not in self.camera_keys:
            raise DatasetError(f"{self.root}: no camera {camera!r}, only {', '.join(self.camera_keys) or 'none'}")
        place = self._episode_of(row)
        episode = self.episodes[place]
        file, start = episode.videos.get(camera, (episode.data_file, 0.0))
        try:
            if self._packed is not None:
                file = FOLDER
                return self._packed.image(episode.first + row - int(self._starts[place]), camera)
            if camera in episode.videos:
                return self._readers.video_frame(self.root / file, start + self._seconds(row), TOLERANCE_S)
            return self._readers.embedded_frame(self.root / file, camera, int(self._file_rows[row]))
        except DatasetError as error:
            raise DatasetError(
                f"{self.root / file}: cannot decode {self._describe(row)}, camera {camera!r}: {error}; copy or download the "
                "file again, leave the episode out with --dataset.episodes, or bad frames with --dataset.skip-bad"
            ) from error

    def _describe(self, row: int) -> str:
        frame, episode = int(self.column("frame_index")[row, 0]), self.episodes[self._episode_of(row)].index
        return f"frame {frame} of episode {episode}"

    def _seconds(self, row: int) -> float:
        """Time of a frame in its episode: its stored float32 timestamp, or the exact quotient that this rounds."""
        exact = int(self.column("frame_index")[row, 0]) / self.fps
        stored = float(self.column("timestamp")[row, 0])
        return exact if abs(stored - exact) <= TOLERANCE_S + exact * float(np.finfo(np.float32).eps) else stored


def load_dataset(
    root: Path | str | None = None,
    repo_id: str | None = None,
    revision: str | None = None,
    episodes: Sequence[int] | None = None,
) -> LeRobotDataset:
    """Opens the dataset in `root`, or downloads `repo_id` from the hub (into `root` if given) and opens that."""
    if root is not None and (repo_id is None or is_remote(root) or (Path(root) / "meta" / "info.json").is_file()):
        return LeRobotDataset.open(root, episodes=episodes)
    if repo_id is None:
        raise ConfigError("no dataset: expected --dataset.root DIR or --dataset.repo-id ID, found neither")
    _log.info("fetching %s from the hub, unless it is here already", repo_id)
    try:
        folder = download(repo_id, revision=revision, repo_type="dataset", local_dir=root)
    except HubError as error:
        raise DatasetError(
            f"the dataset cannot be had from the hub ({error}); check name, revision and network, or give --dataset.root DIR"
        ) from error
    return LeRobotDataset.open(folder, episodes=episodes)


def _local(root: Path | str, episodes: Sequence[int] | None) -> Path:
    folder = local_copy(root, lambda name: name.startswith("meta/"))
    if not is_remote(root):
        return folder
    available = read_metadata(folder).episodes
    chosen = available if episodes is None else pick_episodes(available, episodes, folder)
    needed = {
        file for episode in chosen for file in (episode.data_file, *(video for video, _ in episode.videos.values()))
    }
    return local_copy(root, lambda name: name in needed or name.startswith(f"{FOLDER}/"))


def holdout_split(dataset: LeRobotDataset, fraction: float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Splits the episodes into training and held-out ones (original indices), reproducibly, by task.

    Of a task with several episodes, `fraction` of them, at least one and not all, are held out; episodes whose task
    occurs once count together as one task.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"held-out fraction: expected 0 <= fraction < 1, found {fraction}")
    groups: dict[str, list[int]] = {}
    for episode in dataset.episodes:
        groups.setdefault(episode.task, []).append(episode.index)
    strata = [group for group in groups.values() if len(group) > 1]
    strata.append([group[0] for group in groups.values() if len(group) == 1])
    random = np.random.default_rng(seed)
    held: set[int] = set()
    for stratum in strata:
        count = min(max(round(fraction * len(stratum)), 1), len(stratum) - 1) if fraction and len(stratum) > 1 else 0
        held.update(int(index) for index in random.permutation(stratum)[:count])
    if fraction and not held:
        raise DatasetError(
            f"{dataset.root}/meta/episodes*: one episode is too few to hold one out; set the held-out fraction to 0"
        )
    train = tuple(episode.index for episode in dataset.episodes if episode.index not in held)
    return train, tuple(sorted(held))
