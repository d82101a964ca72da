"""The pages of the studies beside the first one: compact students, the rival, widths and two arms."""

import dataclasses
import json
from pathlib import Path

import pytest
import tyro

from benchmarks.recipe.aloha import aloha_lab, write_aloha
from benchmarks.recipe.compact import FINALISTS, STUDENTS, compact_lab, write_compact
from benchmarks.recipe.lab import CLOSED_LOOP, CLOSED_LOOP_SEED, SIDES, SMOKE, Lab
from benchmarks.recipe.rival import RivalLab, chosen_rivals, write_rival
from benchmarks.recipe.snapflow import SnapFlowConfig
from benchmarks.recipe.variants import RIVAL_RATES
from benchmarks.recipe.width import STUDENTS as RATES
from benchmarks.recipe.width import WIDTHS, best_rate, width_lab, width_table
from configs import metaworld
from jaxreflow.run.config import ReflowConfig
from jaxreflow.sim.results import Result, append_result, read_results
from jaxreflow.support.command_line import parse
from tests.recipe_reports import make_lab, write_report


def test_compact_students_name_networks_that_their_teacher_has(tmp_path: Path) -> None:
    lab = compact_lab(tmp_path, SMOKE)
    vlm = json.loads((tmp_path / "vlm" / "config.json").read_text())
    tokens = (vlm["vision_config"]["image_size"] // vlm["vision_config"]["patch_size"] // vlm["scale_factor"]) ** 2
    assert (tokens, vlm["text_config"]["num_hidden_layers"]) == (64, 8)
    assert not list((tmp_path / "vlm").glob("*.safetensors"))
    assert lab.teacher_flags[:2] == ("--policy.vlm", str(tmp_path / "vlm"))
    for variant in STUDENTS:
        settings = tyro.cli(ReflowConfig, args=list(variant.flags), default=metaworld.config)
        unit = vlm["vision_config"]["patch_size"] * vlm["scale_factor"]
        assert (settings.student.image_size or 128) % unit == 0
        assert variant.shares_tokens is (variant.name in ("full", "layers_first", "layers_spaced"))
    assert len(FINALISTS) == 6
    assert all(student.acts_in == (1,) for student in FINALISTS)


def test_the_compact_studys_page_says_what_a_call_costs(tmp_path: Path) -> None:
    """The demo's teacher stands for the study's teacher and for its student, whose call in one step is then teacher@1's."""
    lab = Lab(tmp_path / "lab", dataclasses.replace(SMOKE, episodes=10))
    demo = Path("tests/assets/teacher").resolve()
    for folder in (lab.teacher, lab.student("full")):
        folder.parent.mkdir(parents=True)
        folder.symlink_to(demo)
    report = json.loads(Path("docs/results/default/report.json").read_text())
    (lab.results / "full").mkdir(parents=True)
    (lab.results / "full" / "report.json").write_text(json.dumps(report))
    for path, steps, successes in ((lab.student("full"), 1, 7), (lab.teacher, 10, 8), (lab.teacher, 1, 2)):
        append_result(
            lab.results / "closed_loop.jsonl",
            Result(
                policy=str(path), sha256=f"{path}"[-40:], num_steps=steps, n_action_steps=10, env="metaworld", task="wall-detour",
                options={}, seed=CLOSED_LOOP_SEED, episodes=10, success=(1,) * successes + (0,) * (10 - successes),
                steps=(9,) * 10,
            ),
        )  # fmt: skip
    write_compact(tmp_path, lab)
    write_compact(tmp_path, lab)
    page = (tmp_path / "results.md").read_text()
    rows = {
        line.split(" | ")[0].strip("| ") + line.split(" | ")[1]: line
        for line in page.splitlines()
        if line.startswith("|")
    }
    one_step, student = rows["teacher@1"].split(" | ")[-1], rows["the teacher's@1"].split(" | ")[-1]
    assert one_step == student
    assert 0.1 < float(one_step.strip("| ")) < 1.0
    assert "| same network@1 | 10 | 0.700" in page
    assert page.index("| teacher@10 |") < page.index("| teacher@1 | 10") < page.index("| same network@1 |")
    kept = list(read_results(tmp_path / "results" / "compact_closed_loop.jsonl"))
    assert [result.policy for result in kept] == ["teacher", "teacher", "full"], "no path of a machine"
    assert (tmp_path / "images" / "compact.png").stat().st_size > 10_000
    assert (tmp_path / "results" / "compact_full" / "report.json").is_file()


_PATHS = ("--teacher", "T", "--dataset", "D", "--out", "O")


def test_the_rivals_page_waits_for_all_reports_and_names_no_path(tmp_path: Path) -> None:
    lab = RivalLab(tmp_path / "lab", dataclasses.replace(SMOKE, episodes=10))
    lab.results.mkdir(parents=True)
    sides = [
        {"policy": str(path), "num_steps": 1, "neither": share}
        for path, share in ((lab.teacher, 0.99), (lab.student("student"), 0.14), (lab.student("snapflow"), 0.25))
    ]
    (lab.results / SIDES).write_text(json.dumps(sides))
    old, other_seed = ((lab.student("snapflow"), 1, 100_000), (lab.student("snapflow"), 2, 7))
    rest = ((lab.student("student"), 8, 100_000), (lab.student("snapflow"), 5, 100_000), (lab.teacher, 2, 100_000))
    for path, successes, seed in (old, *rest, other_seed):
        append_result(
            lab.results / CLOSED_LOOP,
            Result(
                policy=str(path), sha256=f"{successes}"[-40:], num_steps=1, n_action_steps=50, env="metaworld", task="wall-detour",
                options={}, seed=seed, episodes=10, success=(1,) * successes + (0,) * (10 - successes), steps=(9,) * 10,
            ),
        )  # fmt: skip
    for name in ("student", "snapflow"):
        write_report(lab, name, 0.1)
    write_rival(tmp_path, lab)
    page = (tmp_path / "results.md").read_text()
    assert "| in one step |" not in page
    assert page.count("| SnapFlow@1 | 50 |") == page.count("| SnapFlow@1 | 50 | 0.500") == 1
    write_report(lab, "snapflow_long", 0.1)
    write_rival(tmp_path, lab)
    page = (tmp_path / "results.md").read_text()
    assert "| reflow, 16,000 updates | 0.100 [0.090, 0.110] |" in page
    assert [line.split(" | ")[-1] for line in page.splitlines() if "0.090" in line] == [
        "0.990 |",
        "0.140 |",
        "0.250 |",
        " |",
    ]
    assert "| optimizer, learning rate |" not in page
    for i, student in enumerate(RIVAL_RATES):
        write_report(lab, student.name, abs(i - 4) / 10)
    write_rival(tmp_path, lab)
    assert "| Muon, 4e-3 | 0.200 [0.190, 0.210] |" in (tmp_path / "results.md").read_text()
    first, long = (parse(SnapFlowConfig, [*_PATHS, *rival.flags], prog="", about="") for rival in chosen_rivals(lab))
    assert (first.optimizer, first.lr, first.updates) == ("adamw", 1e-4, 16_000)
    assert (long.optimizer, long.lr, long.updates) == ("adamw", 1e-4, 37_000)
    ways = json.loads((tmp_path / "results" / "rival_sides.json").read_text())
    assert [(record["policy"], record["neither"]) for record in ways] == [
        ("teacher", 0.99),
        ("student", 0.14),
        ("snapflow", 0.25),
    ]
    kept = list(read_results(tmp_path / "results" / "rival_closed_loop.jsonl"))
    assert [result.policy for result in kept] == ["teacher", "student", "snapflow"]


def test_the_table_of_widths_has_each_teachers_size_and_best_rate(tmp_path: Path) -> None:
    lab = make_lab(tmp_path)
    teacher = Path("benchmarks/recipe/policies/teacher").absolute()
    for width in WIDTHS:
        own = width_lab(lab, width)
        assert own.data == lab.data
        assert own.held_out == lab.held_out
        assert width_table(lab) is None, f"{own.root} is not measured yet"
        own.teacher.parent.mkdir(parents=True)
        own.teacher.symlink_to(teacher)
        for i, student in enumerate(RATES):
            write_report(own, student.name, 0.1 * (1 + (i - 1) ** 2))
    table = (width_table(lab) or "").splitlines()
    assert table[0] == "| expert's width | trained parameters | 1e-3 | 2e-3 | 4e-3 | 8e-3 | best rate |"
    assert len(table) == 2 + len(WIDTHS)
    # 397,536 parameters of the expert and the five projections.
    assert table[2].startswith("| 96 | 0.40M | 0.200 [0.190, 0.210] | 0.100 [")
    assert table[2].endswith(" | 2.0e-3 |")


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ((2.25, 0.25, 0.25, 2.25), "2.8e-3"),
        ((4.0, 1.0, 0.0, 1.0), "4.0e-3"),
        ((1.0, 0.8, 0.5, 0.1), ""),
        ((3.0, 2.0, 1.2, 0.6), ""),
    ],
)
def test_the_best_rate_is_a_parabolas_lowest_point_among_the_rates(errors: tuple[float, ...], best: str) -> None:
    assert best_rate(errors) == best


def test_alohas_page_shows_what_is_measured_and_names_no_path(tmp_path: Path) -> None:
    lab = aloha_lab(tmp_path / "lab", dataclasses.replace(SMOKE, episodes=10))
    write_aloha(tmp_path, lab)
    assert "<!--" not in (tmp_path / "results.md").read_text()
    write_report(lab, "default", 0.1)
    append_result(
        lab.results / CLOSED_LOOP,
        Result(
            policy=str(lab.student("default")), sha256="0" * 40, num_steps=1, n_action_steps=10, env="aloha", task="transfer-cube",
            options={}, seed=100_000, episodes=10, success=(1,) * 10, steps=(9,) * 10, also={"handover": (1,) * 4 + (0,) * 6},
        ),
    )  # fmt: skip
    write_aloha(tmp_path, lab)
    page = (tmp_path / "results.md").read_text()
    assert "| student@1 | 0.100 [0.090, 0.110] |" in page
    assert page.count("| 0.010 |") == 4
    assert [line.split(" | ")[0] for line in page.splitlines() if "[0.090" in line] == [
        f"| {name}" for name in ("teacher@2", "teacher@1", "student@2", "student@1")
    ]
    assert "| student@1 | 10 | 1.000" in page
    assert str(tmp_path) not in page + (tmp_path / "results" / "aloha_closed_loop.jsonl").read_text()
