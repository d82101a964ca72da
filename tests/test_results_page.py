"""The tables of docs/results.md are those that their programs make of docs/results."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recipe import aloha, latency, lerobot_eval, rival
from benchmarks.recipe.lab import FULL, Lab, policy_name
from benchmarks.recipe.summary import summary_table
from benchmarks.recipe.write_up import (
    capacity_table,
    closed_loop_table,
    fidelity_table,
    full_cost_table,
    length_table,
    shown_name,
)
from jaxreflow.sim.results import Result, comparison_table, read_results

DOCS = Path("docs")
RESULTS = DOCS / "results"
LAB = Lab(DOCS, FULL)


def closed_loops(study: str) -> str:
    """The table of a study's closed loops."""
    results = read_results(RESULTS / f"{study}_closed_loop.jsonl")
    return comparison_table([dataclasses.replace(r, policy=shown_name(policy_name(r.policy))) for r in results])


def delayed() -> list[Result]:
    """The closed loops of robots that do not wait; of two of a kind the one with more episodes counts."""
    return sorted(read_results(RESULTS / "latency.jsonl"), key=lambda result: result.episodes)


def judged() -> str:
    """The table of LeRobot's judge."""
    batches = lerobot_eval.read_batches(RESULTS / lerobot_eval.RESULTS)
    return lerobot_eval.rates_table(batches, list(read_results(RESULTS / lerobot_eval.OWN_RESULTS)))


TABLES: dict[str, Callable[[], str | None]] = {
    "summary": lambda: summary_table(RESULTS),
    "fidelity": lambda: fidelity_table(LAB),
    "closed loop": lambda: closed_loop_table(LAB),
    "length": lambda: length_table(LAB),
    "capacity": lambda: capacity_table(LAB),
    "full cost": lambda: full_cost_table(LAB),
    "rival closed loop": lambda: closed_loops("rival"),
    "aloha closed loop": lambda: closed_loops("aloha"),
    "compact closed loop": lambda: closed_loops("compact"),
    "lerobot-eval": judged,
    "latency": lambda: latency.latency_table(delayed()),
    "equal hardware": lambda: latency.hardware_table(delayed()),
    "measured delays": lambda: latency.measured_table(list(read_results(RESULTS / "equal_hardware.jsonl"))),
    "motion": lambda: latency.motion_table(delayed()),
    "two rates": lambda: latency.rates_table(delayed(), latency.TWO_RATES),
    "stale images": lambda: latency.rates_table(delayed(), latency.STALE),
}


def shown(name: str) -> str:
    """What stands between the markers of a table."""
    page = (DOCS / "results.md").read_text()
    table = page.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- end of {name} -->")[0]
    assert table.startswith("|")
    return table


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_that_of_its_data(name: str) -> None:
    assert TABLES[name]() == shown(name)


@pytest.mark.parametrize(("study", "table"), [("aloha", aloha.fidelity_table), ("rival", rival.fidelity_table)])
def test_a_studys_errors_are_those_of_its_reports(
    study: str, table: Callable[[Any], str | None], tmp_path: Path
) -> None:
    lab = Lab(tmp_path, FULL)
    lab.results.mkdir()
    for kept in RESULTS.glob(f"{study}_*"):
        (lab.results / kept.name.removeprefix(f"{study}_")).symlink_to(kept.resolve())
    assert table(lab) == shown(f"{study} fidelity")
