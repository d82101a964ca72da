"""What `doctor --fix` changes in a checkpoint; the original stays beside it as *.bak."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from jaxreflow.config import DEFAULT_VLM
from jaxreflow.config_fields import POLICY_FIELDS
from jaxreflow.errors import CheckpointError
from jaxreflow.pretrained import CONFIG, WEIGHTS
from jaxreflow.tensorfile import TensorFile
from jaxreflow.vlm import has_weights

T = TypeVar("T")

COMPILED = "_orig_mod."
ARTEFACTS = tuple(name for name, (use, _) in POLICY_FIELDS.items() if use == "legacy")


def repair(directory: Path) -> list[str]:
    """Repairs config.json and tensor names where that is safe; returns what was done. Unreadable files are left alone.

    Raises:
        CheckpointError: a file cannot be written; it is then as it was.
    """
    fields = _readable(read_config, directory / CONFIG)
    done = [] if fields is None else _repair_config(directory / CONFIG, fields)
    file = _readable(TensorFile, directory / WEIGHTS)
    return done if file is None else [*done, *_repair_names(file)]


def _readable(read: Callable[[Path], T], path: Path) -> T | None:
    try:
        return read(path)
    except CheckpointError:  # `examine` says why
        return None


def read_config(path: Path) -> dict[str, Any]:
    """A config.json as it stands; CheckpointError if it is missing or no JSON object."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); copy the checkpoint again") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(fields).__name__}")
    return fields


def lacks_vlm_weights(fields: dict[str, Any]) -> bool:
    """Whether LeRobot would build the VLM in float32 although the name in the config leads to its weights."""
    name = fields.get("vlm_model_name", DEFAULT_VLM)
    return not fields.get("load_vlm_weights", False) and isinstance(name, str) and has_weights(name)


def _repair_config(path: Path, fields: dict[str, Any]) -> list[str]:
    artefacts = [name for name in ARTEFACTS if name in fields]
    done = [f"{path.name}: removed {', '.join(artefacts)}"] if artefacts else []
    fixed = {name: value for name, value in fields.items() if name not in artefacts}
    if lacks_vlm_weights(fields):
        fixed["load_vlm_weights"] = True
        done.append(f"{path.name}: set load_vlm_weights to true")
    if not done:
        return []
    with _replacing(path) as (target, backup):
        target.write(json.dumps(fixed, indent=4).encode())
    return [*done, f"{path.name}: the original is {backup.name}"]


def _repair_names(file: TensorFile) -> list[str]:
    renamed = [key for key in file.stored_keys.values() if COMPILED in key]
    if not renamed:
        return []
    infos = json.loads(file.header)
    clean = {name.replace(COMPILED, ""): info for name, info in infos.items()}
    header = json.dumps(clean, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path = file.path
    with _replacing(path) as (target, backup), path.open("rb") as source:
        target.write(len(header).to_bytes(8, "little") + header)
        source.seek(8 + len(file.header))
        shutil.copyfileobj(source, target, 2**24)
    return [f"{path.name}: {COMPILED} taken out of {len(renamed)} names", f"{path.name}: the original is {backup.name}"]


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file to be written in place of `path`, and the backup's path; `path` is as it was if writing fails."""
    backup = path.with_name(f"{path.name}.bak")
    number = 2
    while backup.exists():
        backup, number = path.with_name(f"{path.name}.bak{number}"), number + 1
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as target:
            yield target, backup
        shutil.copymode(path, temporary)
        path.rename(backup)
        temporary.rename(path)
    except OSError as error:
        if not path.exists() and backup.exists():
            backup.rename(path)
        raise CheckpointError(f"{path}: cannot be repaired ({error}); it is as it was") from error
    finally:
        temporary.unlink(missing_ok=True)
