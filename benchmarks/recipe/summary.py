"""The table at the top of docs/results.md: success of every way to act in few steps, from the results of all studies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.recipe.lab import CLOSED_LOOP, named
from benchmarks.recipe.latency import RESULTS, SPACING
from benchmarks.recipe.page import fill_page, markdown_table
from benchmarks.recipe.variants import DEFAULT, NOISE_BIASED
from jaxreflow.sim.intervals import wilson
from jaxreflow.sim.metaworld_experts import WALL_DETOUR
from jaxreflow.sim.results import Result, pooled, read_results

ALOHA_RESULTS = f"aloha_{CLOSED_LOOP}"
POLICIES = {
    "teacher, 10 steps": ("teacher", 10),
    "teacher, 2 steps": ("teacher", 2),
    "teacher, 1 step": ("teacher", 1),
    "**student, 1 step**": (DEFAULT.name, 1),
    "noise-biased fine-tune, 1 step": (NOISE_BIASED.name, 1),
}
LATE, SOON = 20, 5
"""Control steps by which a chunk comes late: of ten Euler steps, and of a call that is four times as fast."""


def write_summary(out: Path) -> None:
    """Fills the first block of `out`/results.md from what lies in `out`/results."""
    fill_page(out / "results.md", {"summary": lambda: summary_table(out / "results")})


def summary_table(results: Path) -> str | None:
    """A row per setting and a column per policy; None before the first study is there."""
    metaworld = [named(result) for result in read_results(results / CLOSED_LOOP)]
    aloha = list(read_results(results / ALOHA_RESULTS))
    one_way = [result for result in metaworld if result.task != WALL_DETOUR]
    wall = [result for result in metaworld if result.task == WALL_DETOUR]
    settings = [
        ("button, handle and drawer: one way to act", 50, one_way),
        ("the wall: two ways", 10, wall),
        ("the wall", 50, wall),
        ("two arms", 10, aloha),
        ("two arms", 50, aloha),
    ]
    rows = [
        [
            setting,
            str(n),
            *(_rate(_own([r for r in found if r.n_action_steps == n], *policy)) for policy in POLICIES.values()),
        ]
        for setting, n, found in settings
    ]
    rows.append(_goes_on(results / RESULTS))
    return markdown_table(["task", "executed", *POLICIES], rows) if metaworld else None


def _goes_on(path: Path) -> list[str]:
    late = [
        result
        for result in read_results(path)
        if (result.task, result.execution, result.n_action_steps) == (WALL_DETOUR, "asynchronous", SPACING)
    ]
    cells = []
    for policy, steps in POLICIES.values():
        name = "student" if policy == DEFAULT.name else policy
        own = [r for r in _own(late, name, steps) if r.delay == (LATE if steps == 10 else SOON)]
        cells.append(_rate(sorted(own, key=lambda r: r.episodes)[:1]))  # The episodes that all policies have.
    return [f"the wall; actions come {LATE} control steps late, with one step {SOON}", str(SPACING), *cells]


def _own(results: Iterable[Result], policy: str, num_steps: int) -> list[Result]:
    return [r for r in results if (Path(r.policy).name, r.num_steps) == (policy, num_steps)]


def _rate(results: list[Result]) -> str:
    if not results:
        return "not measured"
    success = pooled(results)
    rate = wilson(int(success.sum()), len(success))
    return f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"
