"""Exact frames out of videos and embedded images: what one process holds open, and how it finds a frame."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import UInt8

from jaxreflow.data.pictures import MAX_PIXELS, decode_cell
from jaxreflow.errors import DatasetError

# Seconds that a video may have: a year.
_LONGEST = 3.2e7
# Up to this many frames ahead, decoding on is cheaper than a seek to the key frame before the target.
_FORWARD_FRAMES = 8
# A frame so near in seconds is the one asked for: none nearer is looked for behind it.
_NEAR_S = 1e-4
# For a video that does not say its frame rate, which only limits how far it is decoded on instead of seeking.
_ANY_RATE = 25.0
# From version 17 on PyAV converts each frame with all cores unless told otherwise, which for small frames takes longer.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


class FarFrameError(DatasetError):
    """The frame nearest to a time is further away than the tolerance; `distance` is in seconds."""

    def __init__(self, message: str, distance: float) -> None:
        super().__init__(message)
        self.distance = distance


class VideoReader:
    """One open video, decoded by one thread, giving the frame shown at a time."""

    def __init__(self, path: Path) -> None:
        self._container = av.open(str(path))
        if not self._container.streams.video:
            raise DatasetError("the file has no video stream")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        if context is None:
            raise DatasetError("the video's codec is unknown")
        context.options = {"max_pixels": str(MAX_PIXELS)}
        context.thread_type = "NONE"
        context.thread_count = 1
        if not self._stream.time_base:
            raise DatasetError("the video has no unit of time")
        self._tick = float(self._stream.time_base)
        self._frame_ticks = 1.0 / (float(self._stream.average_rate or _ANY_RATE) * self._tick)
        self._packets = self._container.decode(self._stream)
        # A frame's own `to_ndarray` sets up a converter for each frame, which takes longer than decoding it.
        self._to_rgb = VideoReformatter()
        # The last two frames that were decoded since the last seek, newest last, with their times.
        self._shown: list[tuple[int, av.VideoFrame]] = []

    def frame(self, seconds: float, tolerance: float) -> UInt8[np.ndarray, "H W 3"]:
        """The RGB frame nearest to `seconds`; FarFrameError where it is more than `tolerance` seconds away.

        Any other DatasetError says that the video ends before, or is damaged.
        """
        if not abs(seconds) < _LONGEST:
            raise DatasetError(f"a video has no frame at {seconds} s")
        target, slack = seconds / self._tick, tolerance / self._tick
        try:
            ends = self._surround(target, min(slack, _NEAR_S / self._tick))
        except BaseException:
            self._shown = []  # the decoder's position is unknown: the next call seeks
            raise
        time, frame = min(self._shown, key=lambda shown: abs(shown[0] - target))
        if abs(time - target) > slack:
            found = time * self._tick
            if ends:
                raise DatasetError(
                    f"the video ends before it: its last frame is at {found:.6f} s, expected one at {seconds:.6f} s"
                )
            raise FarFrameError(
                f"no frame within {tolerance:g} s of {seconds:.6f} s, the nearest one is at {found:.6f} s",
                abs(found - seconds),
            )
        return self._to_rgb.reformat(frame, format="rgb24", **_colours(frame), **_ONE_THREAD).to_ndarray()

    def close(self) -> None:
        """Releases the file and the decoder."""
        self._container.close()

    def _surround(self, target: float, near: float) -> bool:
        """Decodes until the frame nearest to `target` is among `_shown`; whether the video ends before `target`."""
        reach = _FORWARD_FRAMES * self._frame_ticks
        if not self._shown or not self._shown[0][0] - near <= target <= self._shown[-1][0] + reach:
            self._seek(target + near)
        while self._shown[-1][0] < target - near:
            if not self._next():
                return True
        return False

    def _seek(self, target: float) -> None:
        """Decodes a key frame at or before `target`, in time units of the stream."""
        # Containers seek by decoding time, which precedes presentation: with reordered frames the key frame found may
        # be shown after the target, so step back until it is not.
        back = 0.0
        while True:
            offset = max(int(target - back), 0)
            self._container.seek(offset, stream=self._stream, backward=True)
            self._packets = self._container.decode(self._stream)
            self._shown = []
            if not self._next():
                raise DatasetError("the video ends before it: no frame can be decoded there")
            if self._shown[0][0] <= target or offset == 0:
                return
            back = max(2 * back, 1 / self._tick)

    def _next(self) -> bool:
        """Decodes one more frame; False at the video's end."""
        frame = next(self._packets, None)
        if frame is None:
            return False
        if frame.is_corrupt or frame.pts is None:
            raise DatasetError("the frame is damaged")
        self._shown = [*self._shown[-1:], (frame.pts, frame)]
        return True


def _colours(frame: av.VideoFrame) -> dict[str, int]:
    """The colours that a frame says it has, so that every version of PyAV converts it alike; unspecified is BT.601."""
    source = int(frame.colorspace)
    # Older versions convert as BT.601 of limited range unless source and destination differ; RGB has no colour space.
    other = Colorspace.ITU709 if source == Colorspace.ITU601 else Colorspace.ITU601
    return {
        "src_colorspace": source,
        "dst_colorspace": int(other),
        "src_color_range": int(frame.color_range),
        "dst_color_range": int(ColorRange.JPEG),
    }


class FrameReaders:
    """The videos and image columns that one process holds, least recently used out first.

    Nothing is opened before it is asked for; pickles and forks start empty, because a decoder's state belongs to one
    process. One lock serialises threads.
    """

    def __init__(self, max_videos: int = 16, max_image_bytes: int = 1 << 30) -> None:
        self._limits = (max_videos, max_image_bytes)
        self._start()

    def __reduce__(self) -> tuple[type[FrameReaders], tuple[int, int]]:
        return FrameReaders, self._limits

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._videos: OrderedDict[Path, VideoReader] = OrderedDict()
        self._row_starts: dict[Path, np.ndarray] = {}
        self._images: OrderedDict[tuple[Path, str, int], pa.ChunkedArray] = OrderedDict()

    def video_frame(self, path: Path, seconds: float, tolerance: float) -> UInt8[np.ndarray, "H W 3"]:
        """The frame of the video at `path` shown at `seconds`; DatasetError says why there is none."""
        if self._process != os.getpid():
            self._start()
        with self._lock:
            try:
                return self._video(path).frame(seconds, tolerance)
            except (av.error.FFmpegError, OSError, ValueError) as error:
                raise DatasetError(f"{type(error).__name__}: {error}") from error

    def embedded_frame(self, path: Path, column: str, row: int) -> UInt8[np.ndarray, "H W 3"]:
        """The image in `column` of the parquet file's `row`; DatasetError says why there is none."""
        if self._process != os.getpid():
            self._start()
        with self._lock:
            try:
                group, starts = self._row_group(path, column, row)
                cell = group[row - int(starts)].as_py()
            except (pa.ArrowException, OSError, KeyError) as error:
                raise DatasetError(f"{type(error).__name__}: {error}") from error
        return decode_cell(cell)

    def _video(self, path: Path) -> VideoReader:
        reader = self._videos.pop(path, None) or VideoReader(path)
        self._videos[path] = reader
        if len(self._videos) > self._limits[0]:
            self._videos.popitem(last=False)[1].close()
        return reader

    def _row_group(self, path: Path, column: str, row: int) -> tuple[pa.ChunkedArray, int]:
        if path not in self._row_starts:
            meta = pq.read_metadata(path)
            self._row_starts[path] = np.cumsum([0, *(meta.row_group(i).num_rows for i in range(meta.num_row_groups))])
        starts = self._row_starts[path]
        number = int(np.searchsorted(starts, row, side="right")) - 1
        key = (path, column, number)
        group = self._images.pop(key, None)
        if group is None:
            with pq.ParquetFile(path) as file:
                group = file.read_row_group(number, columns=[column])[column]
        self._images[key] = group
        while len(self._images) > 1 and sum(held.nbytes for held in self._images.values()) > self._limits[1]:
            self._images.popitem(last=False)
        return group, int(starts[number])
