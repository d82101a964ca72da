"""Runs that are killed at random moments, or in the middle of a checkpoint, and continued: they end with the same bits.

python -m pytest tests/chaos -m slow      # 20 random kills; `make test` has two
"""

import random
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxreflow.checkpoint import STATE_DIR, last_step
from jaxreflow.run_directory import CONFIG_FILE
from tests.test_processes import flags, make_teacher
from tests.watched_run import start

STEPS = 12


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory)


def arguments(teacher: Path, run: Path) -> list[str]:
    """A run that saves after every update, so that many kills fall into a checkpoint."""
    return flags(teacher, run, "--steps", str(STEPS), "--save-every", "1", "--batch-size", "4")


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The run that nobody kills, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    process = start(folder / "record.jsonl", arguments(teacher, folder / "run"))
    assert process.wait() == 0, process.error
    return folder / "run", time.monotonic() - began


def leaves(run: Path) -> list[np.ndarray]:
    """The whole training state of the last checkpoint."""
    assert last_step(run / "checkpoints") == STEPS
    state = ocp.StandardCheckpointer().restore((run / "checkpoints" / "last" / STATE_DIR / "state").resolve())
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_same_bits(found: Path, expected: Path) -> None:
    policy = Path("checkpoints") / "last" / "pretrained_model" / "model.safetensors"
    assert (found / policy).read_bytes() == (expected / policy).read_bytes()
    for one, other in zip(leaves(found), leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def resume_or_begin(teacher: Path, run: Path) -> list[str]:
    """What the user says again after a kill; before the run has claimed its folder there is nothing to resume."""
    if (run / CONFIG_FILE).exists():
        return ["reflow", "--output-dir", str(run), "--resume"]
    return arguments(teacher, run)


def finish(teacher: Path, run: Path, folder: Path) -> None:
    """Continues the run to its end."""
    process = start(folder / "last.jsonl", resume_or_begin(teacher, run))
    assert process.wait() == 0, process.error


def kill_at_random(teacher: Path, whole: tuple[Path, float], folder: Path, kills: int, seed: int) -> list[int | None]:
    """Kills the run so many times and lets it end; the steps of the last checkpoints that the kills left."""
    moments, left = random.Random(seed), []
    for kill in range(kills):
        process = start(folder / f"{kill}.jsonl", resume_or_begin(teacher, folder / "run"))
        time.sleep(moments.uniform(0.2, 1.0) * whole[1])
        process.process.kill()
        process.wait()
        left.append(last_step(folder / "run" / "checkpoints"))
    finish(teacher, folder / "run", folder)
    assert_same_bits(folder / "run", whole[0])
    return left


def test_two_random_kills(teacher: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    kill_at_random(teacher, whole, tmp_path, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_five_random_kills(teacher: Path, whole: tuple[Path, float], tmp_path: Path, seed: int) -> None:
    print(f"kills left the checkpoints {kill_at_random(teacher, whole, tmp_path, kills=5, seed=1 + seed)}")


def test_kills_within_checkpoints_leave_the_one_before(
    teacher: Path, whole: tuple[Path, float], tmp_path: Path
) -> None:
    """Just before the policy is exported, before the checksums are written, and before `last` moves."""
    run = tmp_path / "run"
    functions = ["train.save_pretrained", "jaxreflow.checkpoint._write_checksums", "jaxreflow.checkpoint._point"]
    for kill, function in enumerate(functions, 1):
        process = start(tmp_path / f"{kill}.jsonl", resume_or_begin(teacher, run), kill_in=function, at=3)
        assert process.wait() == -9
        assert last_step(run / "checkpoints") == 2 * kill
    finish(teacher, run, tmp_path)
    assert_same_bits(run, whole[0])
