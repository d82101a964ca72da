"""Which of a run's checkpoints is the last: one rule for all commands, on disk and in object stores."""

from __future__ import annotations

from pathlib import Path

from jaxreflow.errors import CheckpointError
from jaxreflow.support.storage import AnyPath, list_folders

POINTER = "last"
CHECKSUMS_FILE = "checksums.json"
# Written when the rest of a checkpoint is there: by jaxreflow, and by LeRobot.
_WRITTEN_LAST = (CHECKSUMS_FILE, "training_state/training_step.json")


def last_checkpoint(directory: AnyPath) -> str | None:
    """The folder's name of the checkpoint that `last` names, as a link or as a file with the name in it.

    A copy may have lost `last`, made a folder of it, or left out what it names. Then the newest complete checkpoint counts.
    None means that there is none.

    Raises:
        CheckpointError: `last` names no checkpoint.
    """
    there = checkpoint_names(directory)
    named = _named(directory / POINTER)
    if named in there:
        return named
    complete = [name for name in there if any((directory / name / file).exists() for file in _WRITTEN_LAST)]
    return complete[-1] if complete else None


def last_step(directory: AnyPath) -> int | None:
    """The step of `last_checkpoint`."""
    name = last_checkpoint(directory)
    return None if name is None else int(name)


def checkpoint_names(directory: AnyPath) -> list[str]:
    """Names of all checkpoints' folders, complete or not, by step."""
    names = list_folders(directory) if directory.exists() else []
    return sorted((name for name in names if name.isdecimal()), key=int)


def _named(pointer: AnyPath) -> str | None:
    try:
        if isinstance(pointer, Path) and pointer.is_symlink():
            name = pointer.readlink().name
        elif pointer.is_file():
            name = Path(pointer.read_text().strip()).name
        else:
            return None
        int(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{pointer}: expected a link to a checkpoint or a file that holds its name ({error}); remove it, and the newest "
            "complete checkpoint counts"
        ) from error
    return name
