"""The latency study's own code: its commands, and what it makes of their results."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks.recipe import latency
from benchmarks.recipe.latency import (
    CONTENDERS,
    FULL,
    STALE,
    STUDENT,
    TEACHER,
    TWO_RATES,
    commands,
    measured_command,
    write_latency,
)  # fmt: skip
from jaxreflow.errors import ConfigError
from jaxreflow.sim.closed_loop import SimConfig
from jaxreflow.sim.results import Result
from jaxreflow.sim.timing import Timing
from jaxreflow.support.command_line import parse

EPISODES = 20


def result(policy: Path, steps: int, timing: Timing, successes: int) -> Result:
    """The first `successes` episodes succeed."""
    success = tuple(int(i < successes) for i in range(EPISODES))
    motion = {"steps": (100,) * EPISODES, "held": (5,) * EPISODES, "jerk": (0.25,) * EPISODES, "jump": (None, 0.5) * 10}
    return Result(
        policy=str(policy), sha256=policy.name, num_steps=steps, env="metaworld", task="wall-detour", options={},
        seed=0, episodes=EPISODES, success=success, **motion, **dataclasses.asdict(timing),
    )  # fmt: skip


def test_the_studys_commands_are_flags_of_the_simulator() -> None:
    every = [parse(SimConfig, [*flags, "--out", "x"], prog="sim", about="") for flags in commands(FULL)]
    *every, deciding = every
    assert (deciding.num_steps, deciding.delay, deciding.episodes) == ((10, 1), ("5", "10", "20"), 300)
    grid = [config for config in every if len(config.policy) == 4]
    assert {config.execution for config in grid} == {(name,) for name in latency.EXECUTIONS}
    assert all(config.num_steps == (10, 1, 1, 2) and config.delay == ("0", "5", "10", "20") for config in grid)
    assert [config.episodes for config in every] == [100] * len(every)
    rates = [config for config in every if len(config.policy) == 1]
    assert len(rates) == len(FULL.tasks) * (len(TWO_RATES) + len(STALE))
    measured = parse(SimConfig, [*measured_command(FULL), "--out", "x"], prog="sim", about="")
    assert measured.delay == ("measured",)
    assert measured.env == "metaworld:wall-detour,button-press-topdown-v3"


def test_the_page_gets_every_table_and_the_figure_every_execution(tmp_path: Path) -> None:
    slow = Timing(20, "asynchronous", 10)
    cells = [result(policy, steps, slow, 8 + 2 * i) for i, (policy, steps) in enumerate(CONTENDERS)]
    cells += [result(policy, steps, Timing(50), 10) for policy, steps in CONTENDERS]
    cells += [result(policy, steps, Timing(20, "asynchronous", 5), 16) for policy, steps in CONTENDERS]
    cells += [result(STUDENT, 1, timing, 10 + i) for i, timing in enumerate(TWO_RATES)]
    own_delays = [
        result(TEACHER, 10, Timing(20, "asynchronous", 18), 8),
        result(STUDENT, 1, Timing(20, "asynchronous", 7), 14),
    ]
    write_latency(tmp_path, cells, own_delays)
    page = (tmp_path / "results.md").read_text()
    assert "| wall-detour | asynchronous | 10 | 0.40 [0.22, 0.61] | 0.50" in page
    assert "| 0.60 [0.39, 0.78] | 0.70 [0.48, 0.85] | +0.20 [" in page
    assert "| asynchronous | 10 and 5 | 0.40 [0.22, 0.61] | 0.80 [0.58, 0.92], +0.40 [" in page
    assert "| wall-detour | blocking, 50 executed | 0 | 0.50" in page
    assert "| asynchronous | student@1 | 0.60 [0.39, 0.78] | 0.25 | 0.5 | 5 | 100 |" in page
    assert "| wall-detour | 22 | 22 | 22 | 0.50 [0.30, 0.70] |  |" in page
    assert "| wall-detour | 20 | 5 | 2 | 0.65 [0.43, 0.82] | +0.15 [" in page
    assert "| wall-detour | student@1 | 7 | 0.70 [0.48, 0.85] | +0.30 [" in page
    assert "stale images" not in page, "a table without all its measurements is left out"
    assert (tmp_path / "images" / "latency.png").stat().st_size > 10_000
    figure = latency.plot_latency(cells)
    assert [axis.get_title() for axis in figure.axes] == [
        "wall-detour\nblocking, 50 executed", "wall-detour\nasynchronous"
    ]  # fmt: skip


def test_of_two_results_the_one_with_more_episodes_counts(tmp_path: Path) -> None:
    slow = Timing(20, "asynchronous", 10)
    few = [result(policy, steps, slow, 20) for policy, steps in CONTENDERS]
    many = [
        dataclasses.replace(cell, episodes=2 * EPISODES, success=cell.success + (0,) * EPISODES) for cell in few[:1]
    ]
    write_latency(tmp_path, [*many, *few], [])
    row = f"| wall-detour | asynchronous | 10 | 0.50 [0.35, 0.65] | {' | '.join(['1.00 [0.84, 1.00]'] * 3)} | +0.00 ["
    assert row in (tmp_path / "results.md").read_text(), "and the difference is that of the episodes that both have"


def test_results_without_the_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match="no execution has all policies"):
        latency.plot_latency([result(STUDENT, 1, Timing(50), 3)])
