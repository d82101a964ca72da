"""A safetensors file, read one tensor at a time."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from jaxreflow.errors import CheckpointError
from jaxreflow.support.lfs import is_lfs_pointer, lfs_advice
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


# What wrappers put before the names of a policy's tensors: DataParallel and PEFT before all, torch.compile anywhere.
_WRAPPERS = re.compile(r"^((module|base_model\.model|_orig_mod)\.)+|_orig_mod\.")
INDEX = ".index.json"


def clean_key(key: str) -> str:
    """A tensor's name without what DataParallel, PEFT and torch.compile put into it."""
    return _WRAPPERS.sub("", key)


class TensorFile:
    """A `model.safetensors`, read one tensor at a time under clean keys (`clean_key`).

    Where the file is missing, the shards that `model.safetensors.index.json` names are read as one.

    Raises:
        CheckpointError: the file or a shard is missing, truncated, no safetensors, or names a tensor twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        index = self.path.with_name(self.path.name + INDEX)
        if self.path.is_file() or not index.is_file():
            self.sources: tuple[Path, ...] = (self.path,)
            self.header, infos, self.metadata = _read_header(self.path)
            self._places = {key: (self.path, _offset(self.header, info)) for key, info in infos.items()}
        else:
            shards = _shards(index)
            self.sources = (index, *shards)
            parts = {shard: _read_header(shard) for shard in shards}
            infos = {key: info for _, part, _ in parts.values() for key, info in part.items()}
            if len(infos) != sum(len(part) for _, part, _ in parts.values()):
                raise CheckpointError(f"{index}: two shards hold the same tensor; copy or download them again")
            self._places = {
                key: (shard, _offset(header, info))
                for shard, (header, part, _) in parts.items()
                for key, info in part.items()
            }
            self.metadata = next(iter(parts.values()))[2]
            self.header = make_header(infos, self.metadata)
        self._infos = infos
        self.stored_keys = {clean_key(key): key for key in infos}
        if len(self.stored_keys) != len(infos):
            twice = sorted(key for key in infos if clean_key(key) != key and clean_key(key) in infos)
            raise CheckpointError(
                f"{self.path}: tensors stored twice, with and without a wrapper's name such as `_orig_mod.`: {', '.join(twice)}"
            )

    @property
    def folder(self) -> Path:
        """The folder of the whole tensors."""
        return self.path.parent

    @property
    def clean_header(self) -> bytes:
        """The header of a file with the same tensors under clean keys; the file's own where they are clean."""
        if all(key == stored for key, stored in self.stored_keys.items()):
            return self.header
        return make_header({key: self._infos[stored] for key, stored in self.stored_keys.items()}, self.metadata)

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
        path, offset = self._places[self.stored_keys[key]]
        shape = self.shape(key)
        return np.fromfile(path, self.dtype(key), math.prod(shape), offset=offset).reshape(shape)

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of the whole file, or of all shards' hashes: a checkpoint's identity."""
        hashes = [_hash(path) for path in self.sources if path.suffix == ".safetensors"]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def make_header(infos: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, str] | None) -> bytes:
    """The header of one file that holds these tensors, whose offsets do not count, one after another."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for key, info in infos.items():
        first, last = info["data_offsets"]
        header[key] = {**info, "data_offsets": [begin, begin + last - first]}
        begin += last - first
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _read_header(path: Path) -> tuple[bytes, dict[str, dict[str, Any]], dict[str, str] | None]:
    """The header, the tensors in the order of their data, so that a copy can be streamed behind it, and the metadata."""
    if not path.is_file():
        pickled = [
            p.name for p in sorted(path.parent.glob("*")) if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")
        ]
        hint = (
            f"; {', '.join(pickled)} is pickled and never loaded: convert it to safetensors in PyTorch"
            if pickled
            else ""
        )
        raise CheckpointError(f"{path}: no such file; expected the policy's weights as safetensors{hint}")
    try:
        with path.open("rb") as raw:
            header = raw.read(header_length(raw.read(8), path.stat().st_size))
        infos = parse_json(header)
        with safetensors.safe_open(path, framework="np") as file:  # checks dtypes, shapes and offsets
            metadata: dict[str, str] | None = file.metadata()
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        if is_lfs_pointer(path):
            raise CheckpointError(lfs_advice(path)) from error
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({error}); copy or download it again"
        ) from error
    infos.pop("__metadata__", None)
    return header, dict(sorted(infos.items(), key=lambda item: item[1]["data_offsets"])), metadata


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all beside it."""
    try:
        names = sorted(set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError(f"expected names of files beside it, found {names}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: no list of shards ({type(error).__name__}: {error}); copy or download the checkpoint again"
        ) from error
    return [index.parent / name for name in names]


def _offset(header: bytes, info: Mapping[str, Any]) -> int:
    begin: int = info["data_offsets"][0]
    return 8 + len(header) + begin


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
