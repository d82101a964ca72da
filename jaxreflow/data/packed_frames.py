"""Frames of a packed dataset: decoded once, as raw pixels or JPEG, in ArrayRecord shards under `frames/`.

    frames/manifest.json                 cameras and their sizes, encoding, number of frames
    frames/shard-00003.arrayrecord       frames `3 * shard_frames ...`: a record is each camera's image after its length

`jaxreflow.data.pack` makes it.
"""

from __future__ import annotations

import dataclasses
import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxreflow.data.manifests import MANIFEST, Manifest
from jaxreflow.data.shards import open_shards
from jaxreflow.errors import DatasetError

FOLDER = "frames"
Encoding = Literal["raw", "jpeg"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackManifest(Manifest):
    """What the shards hold; `cameras` maps each to its height and width, `source` says what was packed."""

    KIND = "packed dataset"
    PROGRAM = "python -m jaxreflow.data.pack"
    OUT = "OUT"

    encoding: Encoding
    quality: int
    source: Mapping[str, str]


class PackedFrames:
    """Random access to packed frames, by global frame index; picklable, opens files when asked."""

    def __init__(self, folder: Path) -> None:
        """DatasetError where the manifest cannot be read or a shard is missing."""
        self.manifest = PackManifest.read(folder)
        shards = self.manifest.shards(folder)
        missing = self.manifest.missing(folder)
        if missing:
            raise DatasetError(
                f"{missing[0][0]} is missing ({len(missing)} of {len(shards)} shards are); copy it, or run the command that "
                "packed the dataset again: it goes on"
            )
        self._cameras = list(self.manifest.cameras)
        self._records = open_shards(shards)

    def image(self, frame: int, camera: str) -> UInt8[np.ndarray, "H W 3"]:
        """One camera's image; DatasetError says why there is none."""
        if camera not in self.manifest.cameras:
            raise DatasetError(f"{MANIFEST} has no such camera, only {', '.join(self.manifest.cameras) or 'none'}")
        height, width = self.manifest.cameras[camera]
        try:
            data = unpack_record(self._records[frame], len(self._cameras))[self._cameras.index(camera)]
            pixels = np.frombuffer(data, np.uint8) if self.manifest.encoding == "raw" else decode(data)
            return pixels.reshape(height, width, 3)
        except (RuntimeError, ValueError, IndexError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DatasetError(f"{type(error).__name__}: {error}") from error


def pack_record(images: list[bytes]) -> bytes:
    """One frame's encoded images, each after its length (little-endian, 32 bits)."""
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def unpack_record(record: bytes, images: int) -> list[bytes]:
    """The images of `pack_record`; ValueError if there are not just so many."""
    found, start = [], 0
    while start < len(record):
        (length,) = struct.unpack_from("<I", record, start)
        found.append(record[start + 4 : start + 4 + length])
        start += 4 + length
    if len(found) != images or start != len(record):
        raise ValueError(
            f"expected {images} images in a record of {len(record)} bytes, found {len(found)} up to {start}"
        )
    return found


def encode(image: UInt8[np.ndarray, "H W 3"], encoding: Encoding, quality: int) -> bytes:
    """An image as it is stored."""
    if encoding == "raw":
        return image.tobytes()
    buffer = io.BytesIO()
    # Full chroma resolution: coloured objects are a few pixels wide at a policy's size.
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def decode(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """A JPEG image's pixels; PIL's errors where it is damaged."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return np.asarray(image.convert("RGB"))
