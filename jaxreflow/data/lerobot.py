"""Reads a LeRobotDataset (v3.0, v2.1, v2.0, or packed) with pyarrow and PyAV: images by frame, the rest as whole columns.

Frames are named by their global index, the one that the whole dataset counts, whichever episodes are selected.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxreflow.data.advice import NO_OPTIONS, DatasetOptions
from jaxreflow.data.dataset_stats import Stats
from jaxreflow.data.episode_rows import EpisodeRows
from jaxreflow.data.episodes import check_counts, pick_episodes
from jaxreflow.data.frame_images import FrameImages
from jaxreflow.data.metadata import Metadata, read_metadata
from jaxreflow.data.packed_frames import FOLDER, PackedFrames
from jaxreflow.errors import ConfigError, DatasetError
from jaxreflow.policy.names import STATE
from jaxreflow.support.console import progress
from jaxreflow.support.hub import HubError, download
from jaxreflow.support.storage import is_remote, local_copy

# LeRobot's own tolerance between a frame's timestamp and the time at which the video shows it.
TOLERANCE_S = 1e-4
_log = logging.getLogger(__name__)


class LeRobotDataset(EpisodeRows):
    """Selected episodes of a LeRobotDataset on disk; picklable, opens videos when a frame is asked for."""

    def __init__(
        self,
        metadata: Metadata,
        episodes: Sequence[int] | None = None,
        *,
        tolerance_s: float = TOLERANCE_S,
        options: DatasetOptions = NO_OPTIONS,
    ) -> None:
        if episodes is None:
            check_counts(metadata, options)
        packed = PackedFrames(metadata.root / FOLDER) if (metadata.root / FOLDER).is_dir() else None
        super().__init__(metadata, episodes, with_times=packed is None)
        self._images = FrameImages(self, packed, tolerance_s, options)
        self._options = options
        self._cache: dict[str, np.ndarray] = {}

    @classmethod
    def open(
        cls,
        root: Path | str,
        *,
        episodes: Sequence[int] | None = None,
        tolerance_s: float = TOLERANCE_S,
        options: DatasetOptions = NO_OPTIONS,
    ) -> LeRobotDataset:
        """Opens the dataset in the folder `root`; DatasetError if files are missing, damaged or of unknown version.

        A video's frame is the nearest one within `tolerance_s` seconds of its timestamp. Errors advise only `options`.
        Of one in an object store the chosen episodes' files are copied to this machine first; StorageError if that fails.
        """
        return cls(read_metadata(_local(root, episodes)), episodes, tolerance_s=tolerance_s, options=options)

    @property
    def stats(self) -> Stats:
        """Statistics of the whole dataset by feature and name, float64; empty where the dataset has none."""
        return self.metadata.stats

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """Names of the colour cameras that can be decoded; those of depth are no input of a policy."""
        return self._images.cameras

    def check_cameras(self, cameras: Sequence[str]) -> None:
        """DatasetError if one of these is no colour camera, or a video that it needs is not there."""
        self._images.check(cameras)

    def refuse_depth(self, wanted: Sequence[str], rename_map: Mapping[str, str]) -> None:
        """DatasetError if a camera that a policy wants would, under these names, be one that holds depth maps."""
        for key in self.metadata.depth_keys:
            if rename_map.get(key, key) in wanted:
                raise DatasetError(
                    f"{self.root}: camera {key!r} holds depth maps, but the policy's {rename_map.get(key, key)!r} takes "
                    f"colours; give it one of {', '.join(self.camera_keys) or 'none'} with --rename-map"
                )

    @property
    def cached(self) -> bool:
        """Whether decoded frames are held in memory."""
        return bool(self._cache)

    def frame(self, index: int, cameras: Sequence[str] | None = None) -> dict[str, Any]:
        """One frame by global index: cameras uint8 `[H, W, 3]`, `observation.state` float32, `task`, and indices."""
        row = self._row(index)
        keys = self.camera_keys if cameras is None else cameras
        result: dict[str, Any] = {key: self.image(index, key) for key in keys}
        if STATE in self.features:
            result[STATE] = self.column(STATE)[row]
        return result | {
            "task": self.metadata.tasks[int(self.column("task_index")[row, 0])],
            "episode_index": self.episode_of(row).index,
            "frame_index": int(self.column("frame_index")[row, 0]),
            "index": int(index),
        }

    def image(self, index: int, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """One camera's image by global frame index; DatasetError names file, episode and frame if it cannot be had."""
        row = self._row(index)
        return self._cache[camera][row] if camera in self._cache else self._images.decode(row, camera)

    def cache_frames(self, cameras: Sequence[str] | None = None, *, limit_bytes: int = 4 << 30) -> None:
        """Decodes every selected frame into memory, file by file; DatasetError if they need more than `limit_bytes`."""
        cameras = [key for key in (self.camera_keys if cameras is None else cameras) if key not in self._cache]
        samples = {key: self._images.decode(0, key) for key in cameras}
        size = sum(sample.nbytes for sample in samples.values()) * self.num_frames
        if size > limit_bytes:
            raise DatasetError(
                f"{self.root}: {self.num_frames} frames of {len(cameras)} camera(s) take {size / 2**30:.2f} GiB, "
                f"expected at most {limit_bytes / 2**30:.2f} GiB; "
                f"allow that much{f' with {option}' if (option := self._options.cache_frames) else ''} if the machine has it, "
                "or leave the cache out: then each frame is decoded when it is needed"
            )
        held = {key: np.empty((self.num_frames, *sample.shape), np.uint8) for key, sample in samples.items()}
        with progress("decoding frames", self.num_frames * len(cameras), unit="frame") as advance:
            for key, images in held.items():
                # Row order is file order, so the decoder runs on instead of seeking.
                for row in range(self.num_frames):
                    images[row] = self._images.decode(row, key)
                    advance(1)
        self._cache |= held


def load_dataset(
    root: Path | str | None = None,
    repo_id: str | None = None,
    revision: str | None = None,
    episodes: Sequence[int] | None = None,
    *,
    tolerance_s: float = TOLERANCE_S,
    options: DatasetOptions = NO_OPTIONS,
) -> LeRobotDataset:
    """Opens the dataset in `root`, or downloads `repo_id` from the hub (into `root` if given) and opens that."""
    if root is not None and (
        repo_id is None or is_remote(root) or (Path(root).expanduser() / "meta" / "info.json").is_file()
    ):
        return LeRobotDataset.open(root, episodes=episodes, tolerance_s=tolerance_s, options=options)
    if repo_id is None:
        raise ConfigError("no dataset: expected --dataset.root DIR or --dataset.repo-id ID, found neither")
    _log.info("fetching %s from the hub, unless it is here already", repo_id)
    try:
        folder = download(repo_id, revision=revision, repo_type="dataset", local_dir=root and Path(root).expanduser())
    except HubError as error:
        raise DatasetError(
            f"the dataset cannot be had from the hub ({error}); check name, revision and network, or give --dataset.root DIR"
        ) from error
    return LeRobotDataset.open(folder, episodes=episodes, tolerance_s=tolerance_s, options=options)


def _local(root: Path | str, episodes: Sequence[int] | None) -> Path:
    folder = local_copy(root, lambda name: name.startswith("meta/"))
    if not is_remote(root):
        return folder
    available = read_metadata(folder).episodes
    chosen = available if episodes is None else pick_episodes(available, episodes, folder)
    needed = {
        file for episode in chosen for file in (episode.data_file, *(video for video, _ in episode.videos.values()))
    }
    # Where all episodes are wanted, rows may lie in files that the episodes do not name.
    folders = (f"{FOLDER}/", "data/") if episodes is None else (f"{FOLDER}/",)
    return local_copy(root, lambda name: name in needed or name.startswith(folders))
