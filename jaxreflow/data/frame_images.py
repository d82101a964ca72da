"""Single frames of a dataset as pictures: where each one is, and what an error advises where it cannot be had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from jaxreflow.data.episodes import check_videos
from jaxreflow.data.packed_frames import FOLDER
from jaxreflow.data.video import FarFrameError, FrameReaders
from jaxreflow.errors import DatasetError
from jaxreflow.support.lfs import is_lfs_pointer, lfs_advice

if TYPE_CHECKING:
    from jaxreflow.data.advice import DatasetOptions
    from jaxreflow.data.episode_rows import EpisodeRows
    from jaxreflow.data.packed_frames import PackedFrames

# A stored timestamp this near to frame_index / fps is that quotient, rounded.
_ROUNDED_S = 1e-4


class FrameImages:
    """Decodes frames by row; picklable, opens files when asked.

    `cameras` are those of colours, of a packed dataset those that were packed.
    """

    def __init__(
        self,
        rows: EpisodeRows,
        packed: PackedFrames | None,
        tolerance_s: float,
        options: DatasetOptions,
    ) -> None:
        self._rows, self._packed = rows, packed
        self._tolerance_s, self._options = tolerance_s, options
        self._readers = FrameReaders()
        held = None if packed is None else packed.manifest.cameras
        self.cameras = tuple(key for key in rows.metadata.camera_keys if held is None or key in held)
        self._sizes: dict[str, tuple[int, ...]] = {}

    def check(self, cameras: Sequence[str]) -> None:
        """DatasetError if one of these is no colour camera, or a video that it needs is not there."""
        metadata = self._rows.metadata
        for camera in cameras:
            if camera not in self.cameras:
                depth = f", because {camera} holds depth maps" if camera in metadata.depth_keys else ""
                raise DatasetError(
                    f"{metadata.root}: no camera {camera!r} of colours, only {', '.join(self.cameras) or 'none'}{depth}"
                )
        if self._packed is None:
            check_videos(metadata, self._rows.episodes, cameras, self._options)

    def decode(self, row: int, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """A camera's image; DatasetError names file, episode and frame if it cannot be had, or has another size than the first."""
        rows = self._rows
        if camera not in self.cameras:
            self.check([camera])
        image = self._decoded(row, camera)
        expected = self._first_size(camera, image)
        if image.shape[:2] != expected:
            raise DatasetError(
                f"{rows.root}: camera {camera!r} has {image.shape[0]} x {image.shape[1]} pixels in "
                f"{rows.describe_row(row)}, but {expected[0]} x {expected[1]} in {rows.describe_row(0)}; a batch needs "
                f"one size, in LeRobot too, so record or scale all episodes alike{self._options.leave_out()}"
            )
        return image

    def _first_size(self, camera: str, image: np.ndarray) -> tuple[int, ...]:
        """The size of the camera's first image, which all must have; of `image` where the first cannot be decoded."""
        if camera not in self._sizes:
            try:
                self._sizes[camera] = self._decoded(0, camera).shape[:2]
            except DatasetError:
                self._sizes[camera] = image.shape[:2]
        return self._sizes[camera]

    def _decoded(self, row: int, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        rows, episode = self._rows, self._rows.episode_of(row)
        video = rows.features[camera].dtype == "video"
        if self._packed is not None:
            file, start = FOLDER, 0.0
        elif video:
            if camera not in episode.videos:
                self.check([camera])
            file, start = episode.videos[camera]
        else:
            file, start = rows.places.files[rows.places.file[row]], 0.0
        path = rows.root / file
        try:
            if self._packed is not None:
                return self._packed.image(rows.index_of(row), camera)
            if video:
                return self._readers.video_frame(path, start + self._seconds(row), self._tolerance_s)
            return self._readers.embedded_frame(path, camera, int(rows.places.row[row]))
        except DatasetError as error:
            if is_lfs_pointer(path):
                raise DatasetError(lfs_advice(path)) from error
            if not rows.metadata.has_file(file) and self._packed is None:
                self.check([camera])
            raise DatasetError(
                f"{path}: cannot decode {rows.describe_row(row)}, camera {camera!r}: {error}; {self._advice(error)}"
            ) from error

    def _advice(self, error: DatasetError) -> str:
        half, option = 0.5 / self._rows.fps, self._options.tolerance
        if not isinstance(error, FarFrameError):
            return f"copy or download the file again{self._options.leave_out()}"
        if error.distance > half:
            return f"the timestamps are not those of this video: record or convert it again{self._options.leave_out()}"
        allow = f"{option} {half:.4g}" if option else f"a tolerance of {half:.4g} s"
        return f"timestamps that come from a clock are a little off: allow half a frame with {allow}"

    def _seconds(self, row: int) -> float:
        """Time of a frame in its episode: its stored float32 timestamp, or the exact quotient that this rounds."""
        rows = self._rows
        if "timestamp" not in rows.features:
            raise DatasetError("meta/info.json has no feature 'timestamp', which says where in a video a frame is")
        exact = int(rows.column("frame_index")[row, 0]) / rows.fps
        stored = float(rows.column("timestamp")[row, 0])
        return exact if abs(stored - exact) <= _ROUNDED_S + exact * float(np.finfo(np.float32).eps) else stored
