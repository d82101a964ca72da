"""Writes video files frame by frame with PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

# AV1 as LeRobot's datasets have it: a key frame every second frame, so that any frame is read fast.
AV1 = ("libsvtav1", {"g": "2", "crf": "30", "preset": "8"})
# What any browser plays.
H264 = ("libx264", {"crf": "20"})
# The AV1 encoder prints its settings unless it is told not to, and listens to nothing else.
os.environ.setdefault("SVT_LOG", "1")


class VideoWriter:
    """A video file of `size` (height, width) that grows by frames; `close` completes it."""

    def __init__(self, path: Path, size: tuple[int, int], fps: int, codec: tuple[str, Mapping[str, str]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        name, options = codec
        self._container = av.open(str(path), "w")
        stream = self._container.add_stream(name, rate=fps, options=dict(options))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        self._stream = stream
        self._closed = False

    def add(self, images: Iterable[UInt8[np.ndarray, "H W 3"]]) -> None:
        """Appends frames."""
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Writes what the encoder still holds; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._container.mux(self._stream.encode())
            self._container.close()
