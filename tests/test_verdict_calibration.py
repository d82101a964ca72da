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


@pytest.fixture(scope="module")
def trials() -> list[tuple[Suitability, float]]:
    """What the verdict says of each policy, and the success that it lost to its teacher in ten steps."""
    found = []
    for prefix, closed_loop in STUDIES.items():
        rates = success(RESULTS / closed_loop)
        teacher = {n: rates["teacher", 10, n] for n in (SHORT, WHOLE)}
        for student in sorted({policy for policy, _, _ in rates} - {"teacher"}):
            text = (RESULTS / f"{prefix}{student}" / "report.json").read_text(encoding="utf-8")
            measures = from_json(Measures, json.loads(text)["measures"], floats="null is nan")
            for row in judge(measures, WHOLE, (SHORT, WHOLE), Thresholds()).suitability:
                key = ("teacher" if row.name == "teacher" else student, row.num_steps, row.n_action_steps)
                if row.label != measures.reference and key in rates:
                    found.append((row, teacher[row.n_action_steps] - rates[key]))
    return found


def losses(trials: list[tuple[Suitability, float]], n: int, *, suitable: bool) -> list[float]:
    return [loss for row, loss in trials if row.n_action_steps == n and row.suitable is suitable]


@pytest.mark.parametrize(("n", "most"), [(SHORT, 0.08), (WHOLE, 0.065)])
def test_what_is_fit_lost_a_few_points_at_most(trials, n: int, most: float) -> None:
    fit = losses(trials, n, suitable=True)
    assert len(fit) >= 12
    assert max(fit) < most


@pytest.mark.parametrize(("n", "most"), [(SHORT, 0.48), (WHOLE, 0.72)])
def test_what_is_not_fit_lost_much_or_nothing(trials, n: int, most: float) -> None:
    other = losses(trials, n, suitable=False)
    assert max(other) == pytest.approx(most, abs=0.005)
    assert min(other) < 0


def test_short_execution_stays_open_where_figures_cannot_tell(trials) -> None:
    other = [row for row, _ in trials if row.n_action_steps == SHORT and not row.suitable]
    assert other
    assert all(row.undecided for row in other)
