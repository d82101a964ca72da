"""The first table of docs/results.md, from results that nobody measured."""

import dataclasses
from pathlib import Path

from benchmarks.recipe.lab import CLOSED_LOOP
from benchmarks.recipe.latency import RESULTS
from benchmarks.recipe.summary import ALOHA_RESULTS, summary_table, write_summary
from jaxreflow.sim.results import Result, append_result

EXPORTED = "checkpoints/last/pretrained_model"
TEACHER, STUDENT = f"runs/metaworld/teacher/{EXPORTED}", f"runs/metaworld/students/default/{EXPORTED}"


def result(policy: str, steps: int, n: int, task: str, successes: int, **more) -> Result:
    success = (1,) * successes + (0,) * (100 - successes)
    return Result(
        policy=policy, sha256="0", num_steps=steps, n_action_steps=n, env="e", task=task, options={}, seed=0, episodes=100,
        success=success, **more,
    )  # fmt: skip


def test_each_setting_has_its_own_episodes(tmp_path: Path) -> None:
    assert summary_table(tmp_path) is None
    for row in (
        result(TEACHER, 10, 50, "button", 90),
        result(TEACHER, 10, 50, "drawer", 80),
        result(TEACHER, 10, 10, "button", 11),
        result(TEACHER, 10, 50, "wall-detour", 70),
        result(STUDENT, 1, 50, "wall-detour", 60),
        result(STUDENT, 2, 50, "wall-detour", 22),
    ):
        append_result(tmp_path / "results" / CLOSED_LOOP, row)
    append_result(tmp_path / "results" / ALOHA_RESULTS, result("default", 1, 10, "transfer-cube", 88))
    for steps, delay, successes in ((10, 20, 56), (10, 5, 33), (1, 5, 95), (1, 20, 44)):
        late = result("policies/teacher", steps, 20, "wall-detour", successes, execution="asynchronous", delay=delay)
        append_result(tmp_path / "results" / RESULTS, late)
    for successes, episodes in ((92, 300), (94, 100)):
        late = result("policies/student", 1, 20, "wall-detour", successes, execution="asynchronous", delay=5)
        append_result(tmp_path / "results" / RESULTS, dataclasses.replace(late, episodes=episodes))
    write_summary(tmp_path)
    rows = [line.split(" | ") for line in (tmp_path / "results.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.split(" [")[0] for cell in row[1:]] for row in rows[2:]]
    none = "not measured"
    assert cells == [
        ["50", "0.85", none, none, none, f"{none} |"],
        ["10", none, none, none, none, f"{none} |"],
        ["50", "0.70", none, none, "0.60", f"{none} |"],
        ["10", none, none, none, "0.88", f"{none} |"],
        ["50", none, none, none, none, f"{none} |"],
        ["20", "0.56", none, "0.95", "0.94", f"{none} |"],
    ]
