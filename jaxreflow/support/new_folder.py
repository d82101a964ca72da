"""Folders that appear complete or not at all, on disk or in an object store."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxreflow.errors import CheckpointError
from jaxreflow.support.storage import (
    AnyPath,
    check_path,
    is_taken,
    remove_folder,
    upload,
)


def check_new(out: AnyPath) -> None:
    """CheckpointError if `out` is there already and not empty."""
    if isinstance(out, Path):
        check_path("OUT", out, schemes=())
    if is_taken(out):
        raise CheckpointError(f"{out} is there already; nothing is overwritten: choose another folder or remove it")


@contextlib.contextmanager
def new_directory(out: AnyPath) -> Iterator[Path]:
    """A temporary local folder that becomes `out` when the block ends well and vanishes otherwise.

    Raises:
        CheckpointError: `out` is there already and not empty, or cannot be written.
    """
    check_new(out)
    try:
        with _beside(out) if isinstance(out, Path) else _uploaded(out) as folder:
            yield folder
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error}); nothing was left there") from error


@contextlib.contextmanager
def _beside(out: Path) -> Iterator[Path]:
    temporary = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _uploaded(out: AnyPath) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
        try:
            upload(Path(temporary), out)
        except BaseException:
            remove_folder(out)
            raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file as LeRobot writes its configs."""
    path.write_text(json.dumps(content, indent=4, default=_plain), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
