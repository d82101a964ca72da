"""Which checkpoint is the last, whatever a copy made of `last`: the same one for a run, an export and a teacher."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxreflow.errors import CheckpointError
from jaxreflow.policy.folder import find_saved_policy
from jaxreflow.run.checkpoints import newest_policy
from jaxreflow.support.last_checkpoint import last_checkpoint, last_step


def add(checkpoints: Path, name: str, written_last: str | None = "checksums.json") -> None:
    """A checkpoint; without the file that is written last, as a kill leaves it."""
    policy = checkpoints / name / "pretrained_model"
    policy.mkdir(parents=True)
    (policy / "config.json").write_text("{}")
    if written_last:
        (checkpoints / name / written_last).parent.mkdir(exist_ok=True)
        (checkpoints / name / written_last).write_text("{}")


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Three complete checkpoints and one that was being written; there is no `last`."""
    folder = tmp_path / "run" / "checkpoints"
    for name in ("000100", "000200", "000300"):
        add(folder, name)
    add(folder, "000400", None)
    return folder


LOST = "000900"
COPIES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link": (lambda last: last.symlink_to("000200"), "000200"),
    "a link to where the run was": (lambda last: last.symlink_to("/elsewhere/checkpoints/000200"), "000200"),
    "a link to a checkpoint that was not copied": (lambda last: last.symlink_to(LOST), "000300"),
    "a file": (lambda last: last.write_text("000200\n"), "000200"),
    "a file that names one that was not copied": (lambda last: last.write_text(LOST), "000300"),
    "a folder": (lambda last: shutil.copytree(last.parent / "000200", last), "000300"),
    "missing": (lambda last: None, "000300"),
}  # fmt: skip


@pytest.mark.parametrize("copied", COPIES)
def test_every_command_takes_the_same_one(checkpoints: Path, copied: str) -> None:
    make, expected = COPIES[copied]
    make(checkpoints / "last")
    assert last_checkpoint(checkpoints) == expected
    assert last_step(checkpoints) == int(expected)
    policy = checkpoints / expected / "pretrained_model"
    assert newest_policy(checkpoints).resolve() == policy
    assert find_saved_policy(checkpoints / "last" / "pretrained_model") == policy


def test_of_lerobots_run_of_millions_of_steps_too(tmp_path: Path) -> None:
    for name, written_last in (("0900000", "training_state/training_step.json"), ("1000000", None)):
        add(tmp_path, name, written_last)
    assert last_checkpoint(tmp_path) == "0900000"
    assert find_saved_policy(tmp_path / "last" / "pretrained_model") == tmp_path / "0900000" / "pretrained_model"


def test_copies_of_policies_alone_have_a_newest_policy_but_no_checkpoint(tmp_path: Path) -> None:
    for name in ("000100", "000200"):
        add(tmp_path, name, None)
    assert last_checkpoint(tmp_path) is None
    assert find_saved_policy(tmp_path / "last" / "pretrained_model") == tmp_path / "000200" / "pretrained_model"


def test_only_last_was_copied(tmp_path: Path) -> None:
    add(tmp_path, "last")
    assert find_saved_policy(tmp_path / "last" / "pretrained_model") == tmp_path / "last" / "pretrained_model"


def test_the_remedy_of_a_spoilt_pointer_works(checkpoints: Path) -> None:
    (checkpoints / "last").write_text("yesterday")
    with pytest.raises(CheckpointError, match=r"last: expected a link to a checkpoint or a file .*; remove it, and"):
        last_checkpoint(checkpoints)
    (checkpoints / "last").unlink()
    assert last_checkpoint(checkpoints) == "000300"


def test_nothing_is_the_last_of_nothing(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "run" / "checkpoints") is None
