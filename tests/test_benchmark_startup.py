"""The start-up benchmark: its dataset fits a policy, and it finds train.py's milestones and compilations."""

import logging
from pathlib import Path

import pytest

from benchmarks.dataset import TASK, write_dataset
from benchmarks.startup import StartupConfig, start
from benchmarks.startup_run import Enough, Milestones
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.policy.names import ACTION, STATE
from jaxreflow.policy.saved import read_policy_config
from jaxreflow.support.compilation import CompileWatch

TEACHER = Path(__file__).parent / "assets" / "teacher"


def test_the_dataset_fits_the_policy(tmp_path: Path) -> None:
    policy = read_policy_config(TEACHER)
    dataset = LeRobotDataset.open(write_dataset(tmp_path / "data", policy, frames=10))
    assert dataset.camera_keys == policy.camera_keys
    assert dataset.image(9, policy.camera_keys[0]).shape == (96, 96, 3)
    assert dataset.column(STATE).shape == (10, policy.state_dim)
    assert dataset.column(ACTION).shape == (10, policy.action_dim)
    assert (dataset.tasks, dataset.num_frames) == ((TASK,), 10)


def test_milestones_are_read_from_the_log() -> None:
    milestones = Milestones(2, CompileWatch())
    lines = ["dataset: 64 frames", "policy: 3 parameters", "updates 1 to 9", "step 1/9: loss 1", "step 1/9: held_out 1"]
    for line in lines:
        milestones.emit(logging.makeLogRecord({"msg": line}))
    assert list(milestones.seconds) == ["dataset", "policy", "step 1"]
    assert list(milestones.seconds.values()) == sorted(milestones.seconds.values())
    with pytest.raises(Enough):
        milestones.emit(logging.makeLogRecord({"msg": "step 2/9: loss 1"}))


@pytest.mark.slow
def test_one_start(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", read_policy_config(TEACHER), frames=8)
    found = start(StartupConfig(TEACHER, updates=3, steps=1), TEACHER, dataset, tmp_path, "cold")
    assert all(found[name] > 0 for name in ("import_s", "weights_s", "first_step_s", "next_step_s", "peak_bytes"))
    assert found["programs"] >= 1
    assert found["programs_later"] == 0
    assert any((tmp_path / "compiled").iterdir())
