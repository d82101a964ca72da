"""Exact frames out of videos and embedded images: what one process holds open, and how it finds a frame."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from PIL import Image

from jaxreflow.errors import DatasetError

# 4096 x 4096. A few damaged bytes can claim any size, which would be allocated, and for video many times over.
MAX_PIXELS = 1 << 24
# Seconds that a video may have: a year.
_LONGEST = 3.2e7
# Up to this many frames ahead, decoding on is cheaper than a seek to the key frame before the target.
_FORWARD_FRAMES = 8
# From version 17 on PyAV converts each frame with all cores unless told otherwise, which for small frames takes longer.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


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
        if self._stream.time_base is None or not self._stream.average_rate:
            raise DatasetError("the video has no frame rate")
        self._tick = float(self._stream.time_base)
        self._frame_ticks = 1.0 / (float(self._stream.average_rate) * self._tick)
        self._packets = self._container.decode(self._stream)
        # A frame's own `to_ndarray` sets up a converter for each frame, which takes longer than decoding it.
        self._to_rgb = VideoReformatter()
        self._shown: tuple[int, av.VideoFrame] | None = None

    def frame(self, seconds: float, tolerance: float) -> UInt8[np.ndarray, "H W 3"]:
        """The RGB frame shown at `seconds`, give or take `tolerance`; DatasetError where there is none."""
        if not abs(seconds) < _LONGEST:
            raise DatasetError(f"a video has no frame at {seconds} s")
        target, slack = seconds / self._tick, tolerance / self._tick
        try:
            time, frame = self._advance(target, slack)
        except BaseException:
            self._shown = None  # the decoder's position is unknown: the next call seeks
            raise
        if abs(time - target) > slack:
            raise DatasetError(
                f"no frame within {tolerance} s of {seconds:.6f} s, the next one is at {time * self._tick:.6f} s"
            )
        return self._to_rgb.reformat(frame, format="rgb24", **_ONE_THREAD).to_ndarray()

    def close(self) -> None:
        """Releases the file and the decoder."""
        self._container.close()

    def _advance(self, target: float, slack: float) -> tuple[int, av.VideoFrame]:
        shown = self._shown
        if shown is None or not shown[0] - slack <= target <= shown[0] + _FORWARD_FRAMES * self._frame_ticks:
            shown = self._seek(target + slack)
        while shown[0] < target - slack:
            shown = self._next()
        return shown

    def _seek(self, target: float) -> tuple[int, av.VideoFrame]:
        """Decodes a key frame at or before `target`, in time units of the stream."""
        # Containers seek by decoding time, which precedes presentation: with reordered frames the key frame found may
        # be shown after the target, so step back until it is not.
        back = 0.0
        while True:
            offset = max(int(target - back), 0)
            self._container.seek(offset, stream=self._stream, backward=True)
            self._packets = self._container.decode(self._stream)
            shown = self._next()
            if shown[0] <= target or offset == 0:
                return shown
            back = max(2 * back, 1 / self._tick)

    def _next(self) -> tuple[int, av.VideoFrame]:
        frame = next(self._packets, None)
        if frame is None:
            raise DatasetError("the video ends before it")
        if frame.is_corrupt or frame.pts is None:
            raise DatasetError("the frame is damaged")
        self._shown = (frame.pts, frame)
        return self._shown


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
        """The image in `column` of the parquet file's `row`, a struct of `bytes` (PNG or JPEG) and `path`."""
        if self._process != os.getpid():
            self._start()
        with self._lock:
            try:
                group, starts = self._row_group(path, column, row)
                cell = group[row - int(starts)].as_py()
            except (pa.ArrowException, OSError, KeyError) as error:
                raise DatasetError(f"{type(error).__name__}: {error}") from error
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes) or not data:
            raise DatasetError("the cell holds no image bytes (images beside the parquet file are not supported)")
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DatasetError(
                        f"the image has {image.width} x {image.height} pixels, expected at most {MAX_PIXELS}"
                    )
                return np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DatasetError(f"{type(error).__name__}: {error}") from error

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
