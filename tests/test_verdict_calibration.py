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


def success(path: Path) -> dict[tuple[str, int, int], float]:
    """Share of episodes by policy, its Euler steps, and executed actions."""
    found = defaultdict(list)
    for result in map(named, read_results(path)):
        found[result.policy, result.num_steps, result.n_action_steps] += result.success
    return {key: float(np.mean(episodes)) for key, episodes in found.items()}


def read_measures(path: Path) -> Measures:
    """A report's measures, without those that no verdict on step counts needs and that take long to read."""
    fields = json.loads(path.read_text(encoding="utf-8"))["measures"]
    short = [row | {"episode_errors": [], "episode_references": []} for row in fields["fidelity"]]
    rest = {"fidelity": short, "jumps": [], "latency": [], "consistency": None}
    return from_json(Measures, fields | rest, floats="null is nan")


@pytest.fixture(scope="module")
def trials() -> list[tuple[Suitability, float]]:
    """What the verdict says of each policy, and the success that it lost to its teacher in ten steps."""
    found = {}
    for prefix, closed_loop in STUDIES.items():
        rates = success(RESULTS / closed_loop)
        for student in sorted({policy for policy, _, _ in rates} - {"teacher"}):
            measures = read_measures(RESULTS / f"{prefix}{student}" / "report.json")
            for row in judge(measures, WHOLE, (SHORT, WHOLE), Thresholds()).suitability:
                key = ("teacher" if row.name == "teacher" else student, row.num_steps, row.n_action_steps)
                if row.label != measures.reference and key in rates:
                    found[prefix, *key] = row, rates["teacher", 10, row.n_action_steps] - rates[key]
    return list(found.values())


@pytest.mark.parametrize("n", [SHORT, WHOLE])
def test_the_page_says_what_the_verdict_lets_pass(trials, n: int) -> None:
    """The rows of docs/evaluation.md: policies, points lost at most, points gained at most."""
    page = (RESULTS.parent / "evaluation.md").read_text(encoding="utf-8")
    for words, suitable in (("fit", True), ("open" if n == SHORT else "not fit", False)):
        losses = [loss for row, loss in trials if row.n_action_steps == n and row.suitable is suitable]
        found = [len(losses), *(f"{100 * points:.0f}" for points in (max(losses), -min(losses)))]
        assert f"| {n} | {words} | {' | '.join(map(str, found))} |" in page


def test_what_is_fit_lost_a_few_points_at_most(trials) -> None:
    assert max(loss for row, loss in trials if row.suitable) < 0.08


def test_short_execution_stays_open_where_figures_cannot_tell(trials) -> None:
    other = [row for row, _ in trials if row.n_action_steps == SHORT and not row.suitable]
    assert other
    assert all(row.undecided for row in other)
