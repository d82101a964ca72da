"""A safetensors file, read one tensor at a time."""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from jaxreflow.errors import CheckpointError
from jaxreflow.support.strict_json import parse_json

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}

# The format allows 100 MB, which would take 1 GB once parsed; the 500 tensors of a full-size SmolVLA take 0.1 MB.
MAX_HEADER_BYTES = 16 << 20


def header_length(start: bytes, size: int) -> int:
    """Length of the JSON header of a safetensors file of `size` bytes, from its first eight; ValueError if that cannot be."""
    if len(start) < 8:
        raise ValueError(f"expected at least 8 bytes, found {len(start)}")
    (length,) = struct.unpack("<Q", start)
    most = min(size - 8, MAX_HEADER_BYTES)
    if length > most:
        raise ValueError(f"expected a header of at most {most} bytes, found {length}")
    return length


class TensorFile:
    """A `model.safetensors`, read one tensor at a time under clean keys (`_orig_mod.` of torch.compile left out).

    Raises:
        CheckpointError: the file is missing, truncated, no safetensors, or names a tensor twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            pickled = [
                p.name
                for p in sorted(self.path.parent.glob("*"))
                if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
            ]
            hint = (
                f"; {', '.join(pickled)} is pickled and never loaded: convert it to safetensors in PyTorch"
                if pickled
                else ""
            )
            raise CheckpointError(f"{self.path}: no such file; expected the policy's weights as safetensors{hint}")
        try:
            with self.path.open("rb") as raw:
                self.header = raw.read(header_length(raw.read(8), self.path.stat().st_size))
            infos = parse_json(self.header)
            with safetensors.safe_open(self.path, framework="np") as file:  # checks dtypes, shapes and offsets
                self.metadata: dict[str, str] | None = file.metadata()
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: not a complete safetensors file ({error}); copy or download it again"
            ) from error
        infos.pop("__metadata__", None)
        # In the order of the data, so that a copy can be streamed behind the same header.
        self._infos = dict(sorted(infos.items(), key=lambda item: item[1]["data_offsets"]))
        stored = list(self._infos)
        self.stored_keys = {key.replace("_orig_mod.", ""): key for key in stored}
        if len(self.stored_keys) != len(stored):
            twice = sorted(k for k in stored if "_orig_mod." in k and k.replace("_orig_mod.", "") in stored)
            raise CheckpointError(
                f"{self.path}: tensors stored twice, with and without `_orig_mod.`: {', '.join(twice)}"
            )

    @property
    def keys(self) -> list[str]:
        """All clean keys."""
        return list(self.stored_keys)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._infos[self.stored_keys[key]]["shape"])

    def dtype(self, key: str) -> np.dtype:
        """Stored dtype of a tensor, without reading it."""
        name = self._infos[self.stored_keys[key]]["dtype"]
        if name not in DTYPES:
            raise CheckpointError(f"{self.path}: {key} is stored as {name}; expected one of {', '.join(DTYPES)}")
        return np.dtype(DTYPES[name])

    def read(self, key: str) -> np.ndarray:
        """A tensor as stored; read, not mapped, so that only what is used stays in memory."""
        begin, _ = self._infos[self.stored_keys[key]]["data_offsets"]
        shape = self.shape(key)
        offset = 8 + len(self.header) + begin
        return np.fromfile(self.path, self.dtype(key), math.prod(shape), offset=offset).reshape(shape)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the whole file: a checkpoint's identity."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
