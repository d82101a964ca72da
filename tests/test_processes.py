"""Runs in several processes, and runs that are stopped, killed or hang: nothing is lost, and nobody waits for ever."""

from pathlib import Path

import numpy as np
import pytest

from jaxreflow.checkpoint import find_damage, last_step
from jaxreflow.data.lerobot import load_dataset
from jaxreflow.metrics import read_metrics
from jaxreflow.new_policy import create_policy
from jaxreflow.run_config import PolicySource
from tests.tiny_policy import DATASET, make_vlm
from tests.watched_run import Watched, start, start_two

STEPS, BATCH = 6, 8
# Batches that the loader may have read when a run ends.
AHEAD = 3


def make_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy with random weights."""
    out, vlm = tmp_path_factory.mktemp("teacher") / "policy", make_vlm(tmp_path_factory.mktemp("vlm"))
    source = PolicySource(
        vlm=str(vlm), vlm_model_name="tiny/vlm", num_vlm_layers=2, chunk_size=3, n_action_steps=3,
        resize_imgs_with_padding=(32, 32),
    )  # fmt: skip
    create_policy(out, source, load_dataset(DATASET), rename_map={}, seed=0)
    return out


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory)


def flags(teacher: Path, run: Path, *more: str) -> list[str]:
    """A short run, saved after every second update."""
    return [
        *("reflow", "--teacher.path", str(teacher), "--dataset.root", str(DATASET), "--output-dir", str(run)),
        *("--steps", str(STEPS), "--batch-size", str(BATCH), "--noises", "2", "--teacher-steps", "2", "--no-report"),
        *("--optimizer.lr", "1e-3", "--log-every", "1", "--save-every", "2", "--dataset.holdout", "0", *more),
    ]


EVALUATED = ("--dataset.holdout", "0.1", "--eval-every", "3", "--eval-batches", "1")


def losses(run: Path) -> dict[tuple[int, str], float]:
    """Everything logged that is no time."""
    names = ("loss", "grad_norm", "held_out_loss", "student@1_error")
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
def alone(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole run in one process with one device."""
    folder = tmp_path_factory.mktemp("alone")
    process = start(folder / "record.jsonl", flags(teacher, folder / "run"))
    assert process.wait() == 0, process.error
    return folder / "run"


def test_two_processes_stopped_and_continued_in_one_equal_one(
    one: tuple[Path, Watched], teacher: Path, tmp_path: Path
) -> None:
    """2 x 4 devices until one of the two gets SIGTERM; then 1 x 4."""
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
    last = start(tmp_path / "last.jsonl", resume, devices=4)
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


@pytest.mark.parametrize("who", [0, 1])
def test_an_error_in_one_process_ends_both_with_its_message(teacher: Path, tmp_path: Path, who: int) -> None:
    two = start_two(tmp_path, flags(teacher, tmp_path / "run"), devices=1, who=who, at=1, do="raise")
    assert [process.wait(timeout=60) for process in two] == [1, 1]
    for process in two:
        assert "the frame of the test is bad" in process.error
    assert "Traceback" not in two[who].error


@pytest.mark.parametrize("who", [0, 1])
def test_a_killed_process_takes_the_other_with_it(teacher: Path, tmp_path: Path, who: int) -> None:
    two = start_two(tmp_path, flags(teacher, tmp_path / "run"), devices=1, who=who, at=2, do="SIGKILL")
    assert two[who].wait(timeout=60) == -9
    assert two[1 - who].wait(timeout=90) not in (0, None)


def test_a_run_goes_on_with_fewer_devices_and_workers(one: tuple[Path, Watched], teacher: Path, tmp_path: Path) -> None:
    """8 devices and 2 workers, then 4 devices with split parameters and 1 worker, then 1 device without workers."""
    run, _ = one
    argv = flags(teacher, tmp_path / "run", *EVALUATED, "--num-workers", "2")
    parts = [start(tmp_path / "8.jsonl", argv, devices=8, at=2, do="SIGTERM")]
    assert parts[0].wait() == 143, parts[0].error
    resume = ["reflow", "--output-dir", str(tmp_path / "run"), "--resume"]
    topology = ["--num-workers", "1", "--fsdp", "2", "--accumulate", "2"]
    parts.append(start(tmp_path / "4.jsonl", [*resume, *topology], devices=4, at=4, do="SIGTERM"))
    assert parts[1].wait() == 143, parts[1].error
    parts.append(start(tmp_path / "1.jsonl", [*resume, "--num-workers", "0", "--fsdp", "1"]))
    assert parts[2].wait() == 0, parts[2].error
    assert_equal_losses(tmp_path / "run", run)
    assert {step: frames for part in parts for step, frames in part.frames.items()} == one[1].frames


def assert_same_policy(found: Path, expected: Path) -> None:
    weights = Path("checkpoints") / "last" / "pretrained_model" / "model.safetensors"
    assert (found / weights).read_bytes() == (expected / weights).read_bytes()


def finish(run: Path, record: Path) -> None:
    """Continues the run to its end."""
    process = start(record, ["reflow", "--output-dir", str(run), "--resume"])
    assert process.wait() == 0, process.error


def test_ctrl_c_saves_the_update_and_the_run_goes_on_to_the_same_bits(
    teacher: Path, alone: Path, tmp_path: Path
) -> None:
    process = start(tmp_path / "record.jsonl", flags(teacher, tmp_path / "run"), at=3, do="SIGINT")
    assert process.wait(timeout=120) == 130
    assert "stopped by SIGINT after update 3, which is saved; go on with: train.py reflow" in process.error
    assert "Traceback" not in process.error
    finish(tmp_path / "run", tmp_path / "last.jsonl")
    assert_same_policy(tmp_path / "run", alone)


def test_a_full_disk_is_an_error_and_the_run_goes_on_to_the_same_bits(
    teacher: Path, alone: Path, tmp_path: Path
) -> None:
    process = start(tmp_path / "record.jsonl", flags(teacher, tmp_path / "run"), at=4, do="fill the disk")
    assert process.wait(timeout=120) == 1
    assert "checkpoints/000004: cannot be written" in process.error
    assert "checkpoints/000002 is complete: free space, then continue with --resume" in process.error
    assert "Traceback" not in process.error
    assert last_step(tmp_path / "run" / "checkpoints") == 2
    assert find_damage(tmp_path / "run" / "checkpoints" / "000002") is None
    finish(tmp_path / "run", tmp_path / "last.jsonl")
    assert_same_policy(tmp_path / "run", alone)


def test_a_run_that_hangs_ends_with_its_stacks(teacher: Path, tmp_path: Path) -> None:
    argv = flags(teacher, tmp_path / "run", "--step-timeout", "20")
    process = start(tmp_path / "record.jsonl", argv, at=2, do="hang")
    assert process.wait(timeout=90) == 1
    assert "Timeout (0:00:20)!" in process.error
    assert "in disturb" in process.error
    assert "most recent call first" in process.error
