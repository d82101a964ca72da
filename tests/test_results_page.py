"""The tables of docs/results.md are those that their programs make of docs/results."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.recipe import lerobot_eval
from benchmarks.recipe.lab import FULL, Lab, policy_name
from benchmarks.recipe.latency import hardware_table, latency_table
from benchmarks.recipe.summary import summary_table
from benchmarks.recipe.write_up import (
    capacity_table,
    closed_loop_table,
    fidelity_table,
    full_cost_table,
    length_table,
    shown_name,
)
from jaxreflow.sim.results import comparison_table, read_results

DOCS = Path("docs")
RESULTS = DOCS / "results"
LAB = Lab(DOCS, FULL)


def closed_loops(study: str) -> str:
    """The table of a study's closed loops."""
    results = read_results(RESULTS / f"{study}_closed_loop.jsonl")
    return comparison_table([dataclasses.replace(r, policy=shown_name(policy_name(r.policy))) for r in results])


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
    "latency": lambda: latency_table(list(read_results(RESULTS / "latency.jsonl"))),
    "equal hardware": lambda: hardware_table(list(read_results(RESULTS / "latency.jsonl"))),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_that_of_its_data(name: str) -> None:
    page = (DOCS / "results.md").read_text()
    shown = page.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- end of {name} -->")[0]
    assert shown.startswith("|")
    assert TABLES[name]() == shown
