"""Runs in several processes, and runs that are stopped, killed or hang: nothing is lost, and nobody waits for ever."""

from pathlib import Path

import numpy as np
import pytest

from jaxreflow.run.checkpoints import find_damage, last_step
from jaxreflow.run.record.metrics import read_metrics
from tests.short_run import (
    BATCH,
    STEPS,
    assert_same_state,
    finish,
    flags,
    kill_at_random,
    make_teacher,
    resume_or_begin,
)
from tests.watched_run import Watched, start, start_two

# Batches that the loader may have read when a run ends.
AHEAD = 3
EVALUATED = ("--dataset.holdout", "0.1", "--eval-every", "3", "--eval-batches", "1")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory)


def losses(run: Path) -> dict[tuple[int, str], float]:
    """Everything logged that is no time."""
    names = ("loss", "grad_norm", "held_out_loss", "student@1_error", "student@2_error/dz")
    return {(r["step"], name): r[name] for r in read_metrics(run) for name in names if name in r}


def assert_equal_losses(found: Path, expected: Path) -> None:
    want, have = losses(expected), losses(found)
    assert have.keys() == want.keys()
    np.testing.assert_allclose([have[key] for key in want], list(want.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def one(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched]:
    """The whole run in one process with eight devices."""
    folder = tmp_path_factory.mktemp("one")
    process = start(folder / "record.jsonl", flags(teacher, folder / "run", *EVALUATED), devices=8)
    assert process.wait() == 0, process.error
    return folder / "run", process


@pytest.fixture(scope="module")
def alone(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Watched]:
    """The whole run in one process with one device, without evaluations."""
    folder = tmp_path_factory.mktemp("alone")
    process = start(folder / "record.jsonl", flags(teacher, folder / "run"))
    assert process.wait() == 0, process.error
    return folder / "run", process


@pytest.mark.slow
def test_two_processes_stopped_and_continued_in_one_equal_one(
    one: tuple[Path, Watched], teacher: Path, tmp_path: Path
) -> None:
    """2 x 4 devices until one of the two gets SIGTERM; then 1 x 8."""
    run, whole = one
    argv = flags(teacher, tmp_path / "run", *EVALUATED)
    two = start_two(tmp_path, argv, devices=4, who=1, at=4, do="SIGTERM")
    statuses = [process.wait() for process in two]
    assert statuses == [143, 143], [process.error for process in two]
    stopped = last_step(tmp_path / "run" / "checkpoints")
    assert stopped is not None
    assert 4 <= stopped < STEPS
    assert f"stopped by SIGTERM after update {stopped}, which is saved; go on with: train.py reflow" in two[0].error
    assert "stopped" not in two[1].error
    resume = ["reflow", "--output-dir", str(tmp_path / "run"), "--resume", "--distributed", "off"]
    last = start(tmp_path / "last.jsonl", resume, devices=8)
    assert last.wait() == 0, last.error
    assert_equal_losses(tmp_path / "run", run)
    # Every process read its own half of a batch, and together they read what one process does.
    for step in range(1, STEPS + 1):
        parts = [last.frames[step]] if step > stopped else [process.frames[step] for process in two]
        assert [frame for part in parts for frame in part] == whole.frames[step]
        assert all(len(part) == BATCH // len(parts) for part in parts)
    # And decoded no more than that, but for batches that were read ahead; one evaluation came before the stop, two in all.
    assert (STEPS + 2) * BATCH <= whole.decoded <= (STEPS + 2 + AHEAD) * BATCH
    for process in two:
        assert (stopped + 1) * BATCH / 2 <= process.decoded <= (stopped + 1 + AHEAD) * BATCH / 2


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_an_error_in_one_process_ends_both_with_its_message(teacher: Path, tmp_path: Path, who: int) -> None:
    """The second time the processes find each other by what SLURM sets."""
    two = start_two(tmp_path, flags(teacher, tmp_path / "run"), devices=1, who=who, at=1, do="raise", slurm=who == 1)
    assert [process.wait() for process in two] == [1, 1]
    for process in two:
        assert "the frame of the test is bad" in process.error
    assert "Traceback" not in two[who].error


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_killed_process_takes_the_other_with_it(teacher: Path, tmp_path: Path, who: int) -> None:
    two = start_two(tmp_path, flags(teacher, tmp_path / "run"), devices=1, who=who, at=2, do="SIGKILL")
    assert two[who].wait() == -9
    assert two[1 - who].wait() not in (0, None)


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_devices_and_workers(
    alone: tuple[Path, Watched], teacher: Path, tmp_path: Path
) -> None:
    """8 devices and 2 loader workers, then 4 devices, split parameters and no workers, then 1 device."""
    argv = flags(teacher, tmp_path / "run", "--num-workers", "2")
    parts = [start(tmp_path / "8.jsonl", argv, devices=8, at=2, do="SIGTERM")]
    assert parts[0].wait() == 143, parts[0].error
    resume = ["reflow", "--output-dir", str(tmp_path / "run"), "--resume"]
    topology = ["--num-workers", "0", "--fsdp", "2", "--accumulate", "2"]
    parts.append(start(tmp_path / "4.jsonl", [*resume, *topology], devices=4, at=4, do="SIGTERM"))
    assert parts[1].wait() == 143, parts[1].error
    parts.append(start(tmp_path / "1.jsonl", [*resume, "--fsdp", "1"]))
    assert parts[2].wait() == 0, parts[2].error
    assert_equal_losses(tmp_path / "run", alone[0])
    assert {step: frames for part in parts for step, frames in part.frames.items()} == alone[1].frames


@pytest.mark.slow
def test_ctrl_c_saves_the_update_and_the_run_goes_on_to_the_same_bits(
    teacher: Path, alone: tuple[Path, Watched], tmp_path: Path
) -> None:
    argv = flags(teacher, tmp_path / "run")
    process = start(tmp_path / "record.jsonl", argv, at=3, do="SIGINT")
    assert process.wait() == 130
    assert "stopped by SIGINT after update 3, which is saved; go on with: train.py reflow" in process.error
    assert "Traceback" not in process.error
    finish(argv, tmp_path / "run")
    assert_same_state(tmp_path / "run", alone[0])


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_run_goes_on_to_the_same_bits(
    teacher: Path, alone: tuple[Path, Watched], tmp_path: Path
) -> None:
    argv = flags(teacher, tmp_path / "run")
    process = start(tmp_path / "record.jsonl", argv, at=6, do="fill the disk")
    assert process.wait() == 1
    # The checkpoint of update 4 may still be on its way.
    last = last_step(tmp_path / "run" / "checkpoints")
    assert last in (2, 4)
    assert f"checkpoints/{last + 2:06d}: cannot be written" in process.error
    assert f"checkpoints/{last:06d} is complete: free space, then continue with --resume" in process.error
    assert find_damage(tmp_path / "run" / "checkpoints" / f"{last:06d}") is None
    finish(argv, tmp_path / "run")
    assert_same_state(tmp_path / "run", alone[0])


@pytest.mark.slow
def test_kills_at_random_and_within_checkpoints_change_nothing(
    teacher: Path, alone: tuple[Path, Watched], tmp_path: Path
) -> None:
    """Just before the policy is exported, before the checksums are written, before `last` moves; then at a random moment."""
    argv = flags(teacher, tmp_path / "run", "--save-every", "1")
    functions = [
        "train.save_pretrained",
        "jaxreflow.run.checkpoints._write_checksums",
        "jaxreflow.run.checkpoints._point",
    ]
    for kill, function in enumerate(functions, 1):
        process = start(tmp_path / f"{kill}.jsonl", resume_or_begin(argv, tmp_path / "run"), kill_in=function, at=2)
        assert process.wait() == -9
        assert last_step(tmp_path / "run" / "checkpoints") == kill
    kill_at_random(argv, tmp_path / "run", kills=1, seconds=0.1, seed=0)
    finish(argv, tmp_path / "run")
    assert_same_state(tmp_path / "run", alone[0])


@pytest.mark.slow
def test_a_run_that_hangs_ends_with_its_stacks(teacher: Path, tmp_path: Path) -> None:
    argv = flags(teacher, tmp_path / "run", "--step-timeout", "20")
    process = start(tmp_path / "record.jsonl", argv, at=2, do="hang")
    assert process.wait() == 1
    assert "Timeout (0:00:20)!" in process.error
    assert "in disturb" in process.error
    assert "most recent call first" in process.error
