"""The verdict's lines beside what the policies of docs/results.md did in closed loop."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks.recipe.lab import named
from jaxreflow.evaluate.checks import Thresholds
from jaxreflow.evaluate.measure import Measures
from jaxreflow.evaluate.verdict import Suitability, judge
from jaxreflow.sim.results import read_results
from jaxreflow.support.typed_json import from_json

RESULTS = Path(__file__).parents[1] / "docs" / "results"
STUDIES = {"": "closed_loop.jsonl", "aloha_": "aloha_closed_loop.jsonl", "compact_": "compact_closed_loop.jsonl"}
SHORT, WHOLE = 10, 50


def success(path: Path) -> dict[tuple[str, int, int], dict[str, float]]:
    """Share of episodes by policy, its Euler steps and executed actions, and by task; all tasks have as many episodes."""
    found = defaultdict(dict)
    for result in map(named, read_results(path)):
        found[result.policy, result.num_steps, result.n_action_steps][result.task] = float(np.mean(result.success))
    return found


def read_measures(path: Path) -> Measures:
    """A report's measures, without those that no verdict on step counts needs and that take long to read."""
    fields = json.loads(path.read_text(encoding="utf-8"))["measures"]
    short = [row | {"episode_errors": [], "episode_references": []} for row in fields["fidelity"]]
    rest = {"fidelity": short, "jumps": [], "latency": [], "consistency": None}
    return from_json(Measures, fields | rest, floats="null is nan")


@pytest.fixture(scope="module")
def trials() -> list[tuple[Suitability, np.ndarray]]:
    """What the verdict says of each policy, and the success that it lost to its teacher in ten steps, by task."""
    found = {}
    for prefix, closed_loop in STUDIES.items():
        rates = success(RESULTS / closed_loop)
        for student in sorted({policy for policy, _, _ in rates} - {"teacher"}):
            measures = read_measures(RESULTS / f"{prefix}{student}" / "report.json")
            for row in judge(measures, WHOLE, (SHORT, WHOLE), Thresholds()).suitability:
                key = ("teacher" if row.name == "teacher" else student, row.num_steps, row.n_action_steps)
                if row.label != measures.reference and key in rates:
                    goal = rates["teacher", 10, row.n_action_steps]
                    found[prefix, *key] = row, np.array([goal[task] - rate for task, rate in rates[key].items()])
    return list(found.values())


@pytest.mark.parametrize(
    ("n", "result"), [(WHOLE, "fit"), (WHOLE, "not fit"), (SHORT, "fit"), (SHORT, "open"), (SHORT, "not fit")]
)
def test_the_page_says_what_the_verdict_lets_pass(trials, n: int, result: str) -> None:
    """The rows of docs/evaluation.md: settings, points lost at most, also on one task, and points gained at most."""
    page = (RESULTS.parent / "evaluation.md").read_text(encoding="utf-8")
    losses = [
        loss
        for row, loss in trials
        if row.n_action_steps == n and result == ("fit" if row.suitable else "open" if row.undecided else "not fit")
    ]
    points = (max(map(np.mean, losses)), max(map(np.max, losses)), max(0.0, -min(map(np.mean, losses))))
    assert f"| {n} | {result} | {len(losses)} | {' | '.join(f'{100 * point:.0f}' for point in points)} |" in page


def total(rates: dict[str, float]) -> float:
    """Success over all tasks."""
    return float(np.mean(list(rates.values())))


def test_the_verdict_foresees_trials_that_came_after_its_thresholds() -> None:
    """SnapFlow loses at the wall with whole chunks, and nothing after ten actions; reflow loses nothing."""
    rates = success(RESULTS / "rival_closed_loop.jsonl")
    lost = {key: rates["teacher", 10, key[2]]["wall-detour"] - rate["wall-detour"] for key, rate in rates.items()}
    everywhere = {key: total(rates["teacher", 10, key[2]]) - total(rate) for key, rate in rates.items()}
    assert [round(100 * everywhere[name, 1, WHOLE]) for name in ("snapflow_long", "snapflow")] == [1, 3]
    for student, suitable in (("student", True), ("snapflow", False), ("snapflow_long", False)):
        rows = judge(
            read_measures(RESULTS / f"rival_{student}" / "report.json"), WHOLE, (SHORT, WHOLE), Thresholds()
        ).suitability
        own = {row.n_action_steps: row for row in rows if (row.name, row.num_steps) == ("student", 1)}
        assert (own[WHOLE].suitable, own[WHOLE].undecided) == (suitable, False)
        assert (own[SHORT].suitable, own[SHORT].undecided) == (suitable, not suitable)
        assert (lost[student, 1, WHOLE] > 0.1) == (not suitable)
        assert lost[student, 1, SHORT] == 0
