"""Pictures inside parquet files: what the `datasets` library decodes, as 8-bit RGB."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from jaxreflow.errors import DatasetError

# 4096 x 4096. A few damaged bytes can claim any size, which would be allocated, and for video many times over.
MAX_PIXELS = 1 << 24
# Pillow knows more, but some of these start other programs (EPS), and robots record none of them.
_KNOWN = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "TGA", "AVIF", "MPO", "QOI")
# One number a pixel with more than 8 bits: a depth map or a sensor's raw values.
_WIDE_MODES = ("I", "F")


@functools.cache
def _formats() -> tuple[str, ...]:
    """The known formats that this build of Pillow can open."""
    Image.init()
    return tuple(name for name in _KNOWN if name in Image.OPEN)


def decode_cell(cell: Any) -> UInt8[np.ndarray, "H W 3"]:
    """The picture in a cell: a struct of `bytes` and `path`, the bytes alone, or rows of pixels; DatasetError if it is none."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if isinstance(data, list):
        return _pixels(data)
    if not isinstance(data, bytes) or not data:
        raise DatasetError("the cell holds no image bytes (images beside the parquet file are not supported)")
    return decode_picture(data)


def decode_picture(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """An encoded picture, upright by its EXIF orientation; grey becomes colour, transparency is left out.

    Palettes, CMYK and bilevel pictures become the colours that they stand for. DatasetError refuses anything else by name.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(
                    f"the image has {image.width} x {image.height} pixels, expected at most {MAX_PIXELS}"
                )
            if image.mode.partition(";")[0] in _WIDE_MODES:
                raise DatasetError(
                    f"the {image.format} image has one number of more than 8 bits a pixel (mode {image.mode}), as a depth "
                    "map has; expected a colour or grey image of 8 bits"
                )
            image.load()
            turned = image.getexif().get(ExifTags.Base.Orientation) is not None
            return np.array((ImageOps.exif_transpose(image) if turned else image).convert("RGB"))
    except DatasetError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DatasetError(
            f"{len(data)} bytes from {data[:8]!r} on are no image that can be read; expected one of {', '.join(_formats())}"
        ) from error
    except Exception as error:  # Pillow's decoders raise errors of any class for damaged files.
        raise DatasetError(f"{type(error).__name__}: {error}") from error


def _pixels(rows: list[Any]) -> UInt8[np.ndarray, "H W 3"]:
    """A picture that is stored as rows of pixels, each one grey level or three colours from 0 to 255."""
    try:
        pixels = np.asarray(rows)
    except ValueError as error:
        raise DatasetError(f"the cell's rows of pixels are no image ({error})") from error
    grey = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1)
    if pixels.dtype.kind not in "iu" or not (grey or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise DatasetError(
            f"the cell's pixels are {pixels.dtype} of shape {list(pixels.shape)}, expected whole numbers [H, W, 3] or [H, W]"
        )
    if pixels.size == 0 or pixels.min() < 0 or pixels.max() > 255:
        raise DatasetError("the cell's pixels are not from 0 to 255; expected a colour or grey image of 8 bits")
    return np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3)).astype(np.uint8)
