"""The benchmarks against LeRobot do the same work on both sides: they refuse to compare otherwise."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import loader, reflow_step, sample
from benchmarks.loader import LoaderConfig
from benchmarks.reflow_step import ReflowStepConfig
from benchmarks.sample import PARTS, SampleConfig

TEACHER = Path("tests/assets/teacher")


def read(path: Path) -> dict[str, Any]:
    (line,) = path.read_text().splitlines()
    return json.loads(line)


@pytest.mark.parametrize("features", [False, True])
def test_update(features: bool, tmp_path: Path) -> None:
    reflow_step.run(
        ReflowStepConfig(
            TEACHER, batch=2, noises=2, cameras=1, runs=2, features=features, against="lerobot", json=tmp_path / "lines"
        )
    )
    found = read(tmp_path / "lines")
    assert (found["loss_deviation"] < 1e-5) != features
    assert found["LeRobot"]["seconds"]["update"]["runs"] == found["ratio"]["runs"] == 2
    assert found["LeRobot"]["threads"] >= 1


def test_sampler(tmp_path: Path) -> None:
    sample.run(SampleConfig(TEACHER, batch=2, cameras=1, runs=1, against="lerobot", json=tmp_path / "lines"))
    found = read(tmp_path / "lines")
    assert found["chunk_deviation"] < 1e-5
    assert set(found["ratio"]) == set(found["LeRobot"]["seconds"]) == set(PARTS)


def test_loader(tmp_path: Path) -> None:
    loader.run(LoaderConfig(batch=2, workers=0, batches=1, runs=1, against="lerobot", json=tmp_path / "lines"))
    assert read(tmp_path / "lines")["lerobot_samples_per_second"]["median"] > 0
