"""The experiments' own code: ways round the wall, the page's blocks, and steps that are not run twice."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tyro

from benchmarks.recipe.__main__ import Part, RecipeConfig, _short_runs
from benchmarks.recipe.lab import SMOKE, Lab, side_by_side
from benchmarks.recipe.page import fill_page
from benchmarks.recipe.sides import BOTH, LEFT, NEITHER, RIGHT, Drawn, ways
from benchmarks.recipe.variants import (
    CAPACITY,
    DEFAULT,
    EQUAL_COST,
    FULL_COST,
    LENGTHS,
    NOISE_BIASED_MIDDLE,
    ROUNDS,
    SCREENED,
    shortened,
)
from benchmarks.recipe.write_up import (
    capacity_table,
    fidelity_table,
    full_cost_table,
    length_table,
    rounds_table,
    screening_table,
    seeds_table,
    write_up,
)
from configs import metaworld
from jaxreflow.errors import ConfigError, TrainingError
from jaxreflow.run.config import ReflowConfig
from tests.recipe_reports import make_lab, write_report


def test_chunks_go_to_the_sides_that_they_reach() -> None:
    chunks = np.zeros((4, 50, 4), np.float32)
    chunks[0, :, 0] = -0.5  # 25 cm to the left
    chunks[1, :20, 0] = 1.0  # 20 cm to the right
    chunks[2, :, 0] = 0.2  # 10 cm: not aside
    chunks[3, :10, 0] = 9.0  # clipped to 1: 10 cm
    assert ways(chunks, 0.0).tolist() == [LEFT, RIGHT, NEITHER, NEITHER]
    assert ways(chunks[2:], 0.03).tolist() == [RIGHT, RIGHT]
    chunks[1, 20:, 0] = -1.0  # 20 cm to the right, then back and 10 cm to the left
    assert ways(chunks[:2], -0.03).tolist() == [LEFT, BOTH]


def test_errors_are_told_apart_by_whether_the_chunk_goes_the_teachers_way() -> None:
    goal = Drawn(np.array([[3.0, 4.0], [0.0, 5.0]]), np.array([LEFT, RIGHT]))
    own = Drawn(np.array([[3.0, 3.0], [0.0, -1.0]]), np.array([LEFT, NEITHER]))
    found = own.compare(goal)
    assert (found["left"], found["right"], found["neither"], found["another_way"]) == (0.5, 0.0, 0.5, 0.5)
    assert found["another_way_share_of_error"] == pytest.approx(36 / 37)
    assert found["error"] == pytest.approx((37 / 50) ** 0.5)
    assert found["same_way_error"] == pytest.approx(1 / 5)
    unequal = Drawn(goal.chunks.repeat(20, 0) + np.arange(40)[:, None], goal.ways.repeat(20))
    worst = unequal.compare(Drawn(goal.chunks.repeat(20, 0), unequal.ways))["worst_twentieth_share_of_error"]
    assert worst == pytest.approx((39**2 + 38**2) / sum(i**2 for i in range(40)))
    same = Drawn.join([goal, goal]).compare(Drawn.join([goal, goal]))
    assert Drawn(own.chunks[1:], own.ways[1:]).compare(Drawn(goal.chunks[1:], goal.ways[1:]))["same_way_error"] == 0.0
    assert (same["another_way"], same["another_way_share_of_error"], same["error"]) == (0.0, 0.0, 0.0)


EVERY = (DEFAULT, *SCREENED, *EQUAL_COST, *ROUNDS, *LENGTHS, *CAPACITY, *FULL_COST)


def test_variants_of_one_name_are_the_same_run() -> None:
    flags: dict[str, tuple[str, ...]] = {}
    assert all(flags.setdefault(variant.name, variant.flags) == variant.flags for variant in EVERY)
    assert {v.teacher for v in ROUNDS} <= set(flags)


def test_short_runs_learn_from_short_runs() -> None:
    names = {shortened(variant, 7).name for variant in (DEFAULT, *SCREENED, *ROUNDS)}
    for variant in ROUNDS:
        short = shortened(variant, 7)
        assert short.teacher in names
        assert short.flags[-4:] == ("--steps", "7", "--optimizer.decay-steps", "7")


@pytest.mark.slow
def test_every_flag_of_a_variant_is_one_of_the_training() -> None:
    for variant in EVERY:
        flags = tyro.cli(ReflowConfig, args=[*variant.flags], default=metaworld.config)
        assert (flags == metaworld.config) == (not variant.flags), variant.name


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
    assert (page.parent / "results" / "default" / "report.json").read_bytes() == (
        lab.results / "default" / "report.json"
    ).read_bytes()
    write_up(page.parent, lab)
    assert page.read_text() == text


def test_table_waits_for_all_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = make_lab(tmp_path)
    for variant in (NOISE_BIASED_MIDDLE, *LENGTHS[:-1]):
        write_report(lab, variant.name, 0.2)
    assert length_table(lab) is None
    assert "length_39000 missing in" in capsys.readouterr().out
    write_report(lab, LENGTHS[-1].name, 0.1)
    table = str(length_table(lab))
    same = "0.200 [0.190, 0.210] | 0.200 [0.190, 0.210] |"
    less = "-0.100 [-0.100, -0.100] | -0.100 [-0.100, -0.100] |"
    assert "| length | 39,000 updates | 0.100 [0.090, 0.110] | 0.100 [0.090, 0.110] | " + less in table
    assert f"| length | 1,000 updates | {same}  |  | {same}" in table
    assert table.splitlines()[2].startswith("| baseline | the teacher itself | 0.200 [0.190, 0.210] |")


@pytest.mark.parametrize("found", ['"episode_references": [1.0, 4.1]', '"before": []'])
def test_reports_of_other_frames_or_without_episodes_are_not_compared(tmp_path: Path, found: str) -> None:
    lab = make_lab(tmp_path)
    for variant in (NOISE_BIASED_MIDDLE, *LENGTHS):
        write_report(lab, variant.name, 0.2)
    path = lab.results / "length_2000" / "report.json"
    path.write_text(path.read_text().replace('"episode_references": [1.0, 4.0]', found))
    with pytest.raises(ConfigError, match="expected the same frames and teacher, found others"):
        length_table(lab)


def test_unknown_variants_are_not_confirmed() -> None:
    with pytest.raises(ConfigError, match=r"--confirmed: expected names .*, found \['pseudo-huber'\]"):
        RecipeConfig(confirmed=("pseudo-huber", "batch_8"))


@pytest.mark.parametrize(
    ("part", "table"),
    [
        ("screen", screening_table),
        ("confirm", seeds_table),
        ("rounds", rounds_table),
        ("length", length_table),
        ("capacity", capacity_table),
        ("full-cost", full_cost_table),
    ],
)
def test_each_part_runs_what_its_table_shows(tmp_path: Path, part: Part, table: Callable[[Lab], str | None]) -> None:
    lab, config = make_lab(tmp_path), RecipeConfig()
    names = {variant.name for chain in _short_runs(SMOKE, config.confirmed)[part] for variant in chain}
    for name in names:
        write_report(lab, name, 0.2)
    assert str(table(lab)).count("\n") == 2 + len(names)


def test_a_page_that_is_not_there_is_made(tmp_path: Path) -> None:
    lab = make_lab(tmp_path)
    write_report(lab, "default", 0.123)
    write_up(tmp_path / "smoke" / "docs", lab)
    assert "| student@1 | 0.123" in (tmp_path / "smoke" / "docs" / "results.md").read_text()


def test_nothing_measured_makes_no_table(tmp_path: Path) -> None:
    assert fidelity_table(make_lab(tmp_path)) is None


def test_step_runs_once_and_a_failure_names_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = make_lab(tmp_path)
    product = tmp_path / "product"
    program = f"import pathlib; pathlib.Path({str(product)!r}).touch()"
    lab.run("make", product, "-c", program)
    lab.run("make", product, "-c", "raise SystemExit(1)")
    assert capsys.readouterr().out.count("python -c") == 1
    with pytest.raises(TrainingError, match=r"broken failed with exit status 3; its output is in .*broken\.log"):
        lab.run("broken", None, "-c", "raise SystemExit(3)")


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


def test_no_step_starts_after_one_has_failed() -> None:
    if len(os.sched_getaffinity(0)) == 1:
        pytest.skip("one core")
    late_started = threading.Event()

    def slow() -> None:
        late_started.wait(1)

    def fail() -> None:
        raise TrainingError("broken")

    with pytest.raises(TrainingError, match="broken"):
        side_by_side(2, [slow, fail, late_started.set])
    assert not late_started.is_set()


@pytest.mark.parametrize("jobs", [0, 1000])
def test_every_job_needs_a_core(jobs: int) -> None:
    with pytest.raises(ConfigError, match=rf"--jobs must be between 1 and \d+, the cores at hand, found {jobs}"):
        side_by_side(jobs, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jobs": 0}, "--jobs must be between 1 and"),
        ({"study": "rival", "jobs": 2}, "--study rival run one by one, found 2"),
        ({"study": "aloha", "parts": ("core",)}, "--parts are of --study recipe only, found --study aloha"),
        ({"study": "aloha", "confirmed": ("batch_8",)}, "--confirmed is of --study recipe only, found --study aloha"),
        ({"smoke": True, "root": Path("/runs")}, "expected relative paths as --root and --out, found an absolute one"),
    ],
)
def test_settings_that_change_nothing_or_fail_late_are_refused(settings: dict, message: str, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(ConfigError, match=message):
        RecipeConfig(**settings)


@pytest.mark.parametrize(
    "text", ["<!-- a -->\n", "<!-- end of a -->\n<!-- a -->\n", "<!-- a -->\n<!-- end of a -->\nText\n" * 2]
)
def test_a_page_whose_markers_are_not_once_and_in_order_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "results.md"
    page.write_text(text)
    with pytest.raises(ConfigError, match="expected '<!-- a -->' and then '<!-- end of a -->', each once"):
        fill_page(page, {"a": lambda: "table"})
    assert page.read_text() == text
