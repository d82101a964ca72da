"""The experiments' own code: ways round the wall, the page's blocks, and steps that are not run twice."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tyro

from benchmarks.recipe.lab import SMOKE, Lab, side_by_side
from benchmarks.recipe.sides import ways
from benchmarks.recipe.variants import DEFAULT, EQUAL_TIME, ROUNDS, SCREENED, shortened
from benchmarks.recipe.write_up import fidelity_table, write_up
from configs import metaworld
from jaxreflow.errors import ConfigError, TrainingError
from jaxreflow.run_config import ReflowConfig


def test_chunks_go_to_the_side_that_they_reach_first_and_only() -> None:
    chunks = np.zeros((4, 50, 4), np.float32)
    chunks[0, :, 0] = -0.5  # 25 cm to the left
    chunks[1, :20, 0] = 1.0  # 20 cm to the right
    chunks[2, :, 0] = 0.2  # 10 cm: not aside
    chunks[3, :10, 0] = 9.0  # clipped to 1: 10 cm
    assert ways(chunks, 0.0) == pytest.approx((0.25, 0.25, 0.5))
    assert ways(chunks[2:], 0.03) == pytest.approx((0.0, 1.0, 0.0))


def test_every_variant_has_a_name_of_its_own() -> None:
    names = [variant.name for variant in (DEFAULT, *SCREENED, *EQUAL_TIME, *ROUNDS)]
    assert len(set(names)) == len(names)
    assert {v.teacher for v in ROUNDS} <= set(names)


def test_short_runs_learn_from_short_runs() -> None:
    names = {shortened(variant, 7).name for variant in (DEFAULT, *SCREENED, *ROUNDS)}
    for variant in ROUNDS:
        short = shortened(variant, 7)
        assert short.teacher in names
        assert short.flags[-4:] == ("--steps", "7", "--optimizer.decay-steps", "7")


def test_every_flag_of_a_variant_is_one_of_the_training() -> None:
    for variant in (DEFAULT, *SCREENED, *EQUAL_TIME, *ROUNDS):
        flags = tyro.cli(ReflowConfig, args=[*variant.flags], default=metaworld.config)
        assert (flags == metaworld.config) == (not variant.flags), variant.name


def make_lab(path: Path) -> Lab:
    return Lab(path / "root", path / "docs" / "results", SMOKE)


def write_report(lab: Lab, name: str, error: float) -> None:
    estimate = {"value": error, "low": error - 0.01, "high": error + 0.01}
    roles = [(role, steps) for role in ("teacher", "student") for steps in (10, 2, 1)]
    fidelity = [
        {"name": role, "num_steps": steps, "frames": frames, "error": estimate}
        for role, steps in roles
        for frames in ("all", "early")
    ]
    spread = [{"name": role, "num_steps": steps, "energy": 0.5, "spread_kept": 0.9} for role, steps in roles]
    measures = {"fidelity": fidelity, "distributions": spread, "consistency": {"ratio": 1.02}}
    (lab.results / name).mkdir(parents=True)
    (lab.results / name / "report.json").write_text(json.dumps({"measures": measures}))


@pytest.mark.parametrize("old", ["old\n", ""])
def test_page_gets_the_tables_that_there_are_and_keeps_its_text(tmp_path: Path, old: str) -> None:
    lab = make_lab(tmp_path)
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text(f"# Results\n\nBefore.\n\n<!-- fidelity -->\n{old}<!-- end of fidelity -->\n\nAfter.\n")
    write_report(lab, "default", 0.123)
    write_up(page.parent, lab)
    text = page.read_text()
    assert text.startswith("# Results\n\nBefore.\n\n<!-- fidelity -->\n| relative error")
    assert "| student@1 | 0.123 [0.113, 0.133] |" in text
    assert "1.02" in text
    assert "old" not in text
    assert "<!-- end of fidelity -->\n\nAfter." in text
    assert "closed loop" not in text
    write_up(page.parent, lab)
    assert page.read_text() == text


def test_nothing_measured_makes_no_table(tmp_path: Path) -> None:
    assert fidelity_table(make_lab(tmp_path)) is None


def test_step_runs_once_and_a_failure_names_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = make_lab(tmp_path)
    product = tmp_path / "product"
    program = f"import pathlib; pathlib.Path({str(product)!r}).touch()"
    lab._run("make", product, "-c", program)
    lab._run("make", product, "-c", "raise SystemExit(1)")
    assert capsys.readouterr().out.count("python -c") == 1
    with pytest.raises(TrainingError, match=r"broken failed with exit status 3; its output is in .*broken\.log"):
        lab._run("broken", None, "-c", "raise SystemExit(3)")


def test_jobs_run_at_the_same_time_on_cores_of_their_own() -> None:
    together, cores = threading.Barrier(2, timeout=10), []

    def step() -> None:
        cores.append(os.sched_getaffinity(0))
        together.wait()

    before = os.sched_getaffinity(0)
    if len(before) == 1:
        pytest.skip("one core")
    side_by_side(2, [step, step])
    assert cores[0] | cores[1] == before
    assert not cores[0] & cores[1]
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("jobs", [1, 2])
def test_jobs_end_with_the_error_of_a_step(jobs: int) -> None:
    def fail() -> None:
        raise TrainingError("broken")

    if jobs > len(os.sched_getaffinity(0)):
        pytest.skip("one core")
    with pytest.raises(TrainingError, match="broken"):
        side_by_side(jobs, [fail])


@pytest.mark.parametrize("jobs", [0, 1000])
def test_every_job_needs_a_core(jobs: int) -> None:
    with pytest.raises(ConfigError, match=rf"--jobs must be between 1 and \d+, the cores at hand, found {jobs}"):
        side_by_side(jobs, [])
