"""LeRobot checkpoint -> Orbax tree and back, byte for byte.

conversion.json   where each parameter comes from: LeRobot's key, or one key per layer
params/           the parameter tree, an Orbax checkpoint in the stored dtypes
unused/           tensors that nothing reads, and statistics among the weights of old checkpoints
model.header      header of model.safetensors: order, names, dtypes, metadata
lerobot/          all other files: config.json, processors, vlm/
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxreflow.errors import CheckpointError
from jaxreflow.policy.adapters import is_adapter
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.saved import (
    CONFIG,
    WEIGHTS,
    find_saved_policy,
    policy_tensors,
    read_config_fields,
    read_policy_config,
    vlm_home,
)
from jaxreflow.policy.vlm import VLM_FOLDER, load_vlm
from jaxreflow.policy.weights import Entry, check_tensors, parameter_table
from jaxreflow.support.console import Advance, progress
from jaxreflow.support.new_folder import new_directory, write_json
from jaxreflow.support.safetensors_file import DTYPES, TensorFile
from jaxreflow.support.strict_json import parse_json
from jaxreflow.support.typed_json import from_json

from .orbax import LazyLeaf, TreeReader, save_tree

MANIFEST, HEADER, PARAMS, UNUSED, FILES = "conversion.json", "model.header", "params", "unused", "lerobot"
VERSION = 1
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def is_archive(path: Path) -> bool:
    """Whether `from_lerobot` made the folder."""
    return (path / MANIFEST).is_file()


def from_lerobot(source: str | Path, out: Path, *, revision: str | None = None, vlm: Path | None = None) -> list[Path]:
    """Converts a checkpoint in LeRobot's layout into the folder `out`; returns the pickles that were left out.

    Raises:
        CheckpointError: the checkpoint is incomplete or damaged, or `out` is not empty or cannot be written.
        ConfigError: the policy is no SmolVLA, or asks for what cannot be honoured.
    """
    directory = find_saved_policy(source, revision)
    policy = read_policy_config(directory)
    file = policy_tensors(directory)
    config = network_of(policy, load_vlm(policy, vlm_home(directory, file), vlm).config)
    check_tensors(file, config)
    others = [path for path in _files(directory) if path not in file.sources]
    pickles = [path for path in others if path.suffix in PICKLES]
    with new_directory(out) as folder:
        entries = parameter_table(config)
        used = {entry.key for entry in entries}
        with progress("tensors", len(file.keys), unit="tensor") as advance:
            save_tree(folder / PARAMS, {entry.path: _leaf(file, entry, advance) for entry in entries})
            save_tree(folder / UNUSED, {(key,): _tensor(file, key, advance) for key in file.keys if key not in used})
        (folder / HEADER).write_bytes(file.header)
        for path in others:
            if path not in pickles:
                target = folder / FILES / path.relative_to(directory)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        if is_adapter(directory):
            _complete(folder / FILES, directory, file)
        parameters = {"/".join(entry.path): entry.key for entry in entries}
        write_json(folder / MANIFEST, dataclasses.asdict(_Manifest(VERSION, file.sha256, parameters)))
    return pickles


def _complete(files: Path, directory: Path, file: TensorFile) -> None:
    """What the other files of an adapter lack: its base's VLM, and a config that says that the weights are whole."""
    write_json(files / CONFIG, {**read_config_fields(directory / CONFIG), "use_peft": False})
    home = vlm_home(directory, file)
    if home != directory:
        shutil.copytree(home / VLM_FOLDER, files / VLM_FOLDER, copy_function=shutil.copyfile)


def _files(directory: Path) -> Iterator[Path]:
    """All files but hidden ones, also in linked folders."""
    for folder, folders, names in os.walk(directory, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _leaf(file: TensorFile, entry: Entry, advance: Advance) -> LazyLeaf:
    """A parameter in its stored dtype."""
    tensor = _tensor(file, entry.key, advance)
    return LazyLeaf(entry.shape, tensor.dtype, lambda: entry.from_torch(tensor.read()))


def _tensor(file: TensorFile, key: str, advance: Advance) -> LazyLeaf:
    def read() -> np.ndarray:
        advance(1)
        return file.read(key)

    return LazyLeaf(file.shape(key), file.dtype(key), read)


def to_lerobot(archive: Path, out: Path) -> bool:
    """Writes an archive back as a checkpoint in LeRobot's layout; returns whether the weights are the source's.

    Raises:
        CheckpointError: the archive is incomplete or damaged, or `out` is not empty or cannot be written.
    """
    manifest = _read_manifest(archive)
    layout = _Layout.read(archive / HEADER)
    unread = set(layout.tensors)
    with new_directory(out) as folder:
        if (archive / FILES).is_dir():
            shutil.copytree(archive / FILES, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        with (
            (folder / WEIGHTS).open("w+b") as target,
            progress("tensors", len(layout.tensors), unit="tensor") as advance,
        ):
            target.write(layout.prefix)
            for key, tensor in _tensors(archive, manifest.parameters):
                stored = layout.place(key, tensor, archive)
                target.seek(stored.offset)
                np.ascontiguousarray(tensor.astype(stored.dtype, copy=False)).tofile(target)
                unread.discard(key)
                advance(1)
            if unread:
                raise CheckpointError(f"{archive}: no values for {', '.join(sorted(unread))}; convert anew")
            target.flush()
            os.fsync(target.fileno())
            target.seek(0)
            digest = hashlib.file_digest(target, "sha256").hexdigest()
    return digest == manifest.sha256


@dataclasses.dataclass(frozen=True)
class _Manifest:
    """What conversion.json says: the format, the hash of model.safetensors, and LeRobot's key of each parameter."""

    version: int
    sha256: str
    parameters: dict[str, str]


def _read_manifest(archive: Path) -> _Manifest:
    path = archive / MANIFEST
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        version = document.get("version", VERSION) if isinstance(document, dict) else VERSION
        if version != VERSION:
            raise CheckpointError(f"{path}: format {version}, expected {VERSION}; use a newer jaxreflow")
        return from_json(_Manifest, document)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not written by `convert from-lerobot`, or damaged ({error}); convert the checkpoint again"
        ) from error


def _tensors(archive: Path, parameters: Mapping[str, str]) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under its key without `_orig_mod.`, in PyTorch's layout."""
    params, unused = TreeReader(archive / PARAMS), TreeReader(archive / UNUSED)
    found, expected = {"/".join(path) for path in params.shapes}, set(parameters)
    if found != expected:
        raise CheckpointError(
            f"{archive / PARAMS}: does not hold the parameters of {MANIFEST}: missing {sorted(expected - found)}, "
            f"unexpected {sorted(found - expected)}"
        )
    for path, shape in params.shapes.items():
        entry = Entry(path, parameters["/".join(path)], shape)
        yield entry.key, entry.to_torch(params.read(path))
    for path in unused.shapes:
        yield path[0], unused.read(path)


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Where a tensor stands in model.safetensors."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int


@dataclasses.dataclass(frozen=True)
class _Layout:
    """A safetensors file without its data: first bytes, and each tensor's place by clean key."""

    prefix: bytes
    tensors: dict[str, _Stored]

    @classmethod
    def read(cls, path: Path) -> _Layout:
        try:
            header = path.read_bytes()
            infos = parse_json(header)
            infos.pop("__metadata__", None)
            start = 8 + len(header)
            tensors = {
                key.replace("_orig_mod.", ""): _Stored(
                    tuple(info["shape"]), np.dtype(DTYPES[info["dtype"]]), start + info["data_offsets"][0]
                )
                for key, info in infos.items()
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: no safetensors header ({error!r}); convert the checkpoint again") from error
        return cls(len(header).to_bytes(8, "little") + header, tensors)

    def place(self, key: str, tensor: np.ndarray, archive: Path) -> _Stored:
        """The place of a tensor; CheckpointError if there is none, or one of another shape."""
        stored = self.tensors.get(key)
        if stored is None or stored.shape != tensor.shape:
            expected = list(stored.shape) if stored else "nothing"
            raise CheckpointError(f"{archive}: {key}: expected {expected}, found {list(tensor.shape)}")
        return stored
