"""The study of robots that do not wait: success under latency, images that are older than states, and many candidates.

    python -m benchmarks.recipe --study latency

It takes the teacher and the student of `benchmarks/recipe/policies`, so nothing is trained. Results are appended to
docs/results/latency.jsonl, and what is there is not run again: the study can be stopped and go on at any time.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.recipe.lab import Lab
from benchmarks.recipe.page import fill_page, markdown_table
from jaxreflow.errors import ConfigError
from jaxreflow.sim.intervals import paired_difference, wilson
from jaxreflow.sim.results import Result, pooled, read_results
from jaxreflow.sim.timing import Execution, Timing

RESULTS, MEASURED = "latency.jsonl", "equal_hardware.jsonl"
POLICIES = Path("benchmarks/recipe/policies")
TEACHER, STUDENT = POLICIES / "teacher", POLICIES / "student"
TASKS = ("wall-detour", "button-press-topdown-v3")
SEED = 300_000
EXECUTIONS: tuple[Execution, ...] = ("blocking", "asynchronous", "rtc", "rtc-counted", "candidates")
DELAYS = (0, 5, 10, 20)
SPACING, WHOLE = 20, 50
"""Steps between two observations: LeRobot's `queue_threshold` of 30 leaves 20 of 50 actions; SmolVLA's default is 50."""
FASTER = ((20, 10), (20, 5), (10, 5))
"""A delay, and that of a call which takes a half or a quarter as long."""
SLOWER = 25
"""A robot's computer so many times as slow as this machine: the small teacher's call then takes about 20 steps."""
CONTENDERS = ((TEACHER, 10), (TEACHER, 1), (STUDENT, 1), (STUDENT, 2))
_NAMES = [f"{policy.name}@{steps}" for policy, steps in CONTENDERS]
_COLOURS = {"teacher@10": "#2b5c8a", "teacher@1": "#7aa6cf", "student@1": "#c1521f", "student@2": "#e59a6e"}

# Of a robot whose computer takes 20 control steps to look and 2 for a chunk of what was seen.
LOOK, ACT = 20, 2
TWO_RATES = (
    Timing(LOOK + ACT, "asynchronous", LOOK + ACT),
    *(Timing(spacing, "asynchronous", ACT, look_every=LOOK, look_delay=LOOK) for spacing in (20, 10, 5)),
)
# What older images cost, where nothing takes time.
STALE = (Timing(5), *(Timing(5, look_every=every) for every in (10, 20, 40, 80)))


@dataclasses.dataclass(frozen=True)
class LatencyScale:
    """Episodes of every cell, and delays; and more episodes of the first task where intervals decide."""

    episodes: int
    delays: Sequence[int]
    tasks: Sequence[str]
    more_episodes: int


FULL = LatencyScale(100, DELAYS, TASKS, more_episodes=300)
SMOKE = LatencyScale(2, DELAYS[:2], TASKS[:1], more_episodes=3)


def run_study(lab: Lab, scale: LatencyScale, out: Path) -> None:
    """Runs what is missing and writes the tables and the figure."""
    results = out / "results" / RESULTS
    for number, flags in enumerate(commands(scale)):
        lab.simulate(f"latency_{number}", *flags, "--seed", str(SEED), "--out", str(results))
    measured = out / "results" / MEASURED
    if len(list(read_results(measured))) < len(CONTENDERS) * len(scale.tasks):
        measured.unlink(missing_ok=True)
        lab.simulate("equal_hardware", *measured_command(scale), "--seed", str(SEED), "--out", str(measured))
    write_latency(out, list(read_results(results)), list(read_results(measured)))


def _named(policies: Sequence[tuple[Path, int]]) -> list[str]:
    paths, steps = zip(*policies, strict=True)
    return ["--policy", *map(str, paths), "--num-steps", *map(str, steps)]


def measured_command(scale: LatencyScale) -> list[str]:
    """Flags of a run in which each policy has the delay that its own latency gives it."""
    where = ["--env", f"metaworld:{','.join(scale.tasks)}", "--episodes", str(scale.episodes)]
    how = ["--execution", "asynchronous", "--n-action-steps", str(SPACING)]
    return [*_named(CONTENDERS), *where, *how, "--delay", "measured", "--slower", str(SLOWER)]


def commands(scale: LatencyScale) -> Iterator[list[str]]:
    """Flags of `python -m jaxreflow.sim`, the most telling first."""
    every = _named(CONTENDERS)
    delays = ["--delay", *map(str, scale.delays)]
    late = ["--delay", *(str(delay) for delay in scale.delays if delay)]
    for task in scale.tasks:
        where = ["--env", f"metaworld:{task}", "--episodes", str(scale.episodes)]
        for execution in EXECUTIONS:
            yield [*every, *where, "--execution", execution, "--n-action-steps", str(SPACING), *delays]
        yield [*every, *where, "--n-action-steps", str(WHOLE), *delays]
        for timing in (*TWO_RATES, *STALE):
            yield ["--policy", str(STUDENT), "--num-steps", "1", *where, *_flags(timing)]
    deciding = ["--env", f"metaworld:{scale.tasks[0]}", "--episodes", str(scale.more_episodes)]
    yield [
        *_named(((TEACHER, 10), (STUDENT, 1))),
        *deciding,
        "--execution",
        "asynchronous",
        "--n-action-steps",
        str(SPACING),
        *late,
    ]


def _flags(timing: Timing) -> list[str]:
    values = {"--execution": timing.execution, "--act-every": timing.n_action_steps, "--delay": timing.delay}
    looks = {"--look-every": timing.look_every, "--look-delay": timing.look_delay}
    return shlex.split(" ".join(f"{name} {value}" for name, value in (values | looks).items()))


def write_latency(out: Path, results: Sequence[Result], measured: Sequence[Result]) -> None:
    """Fills the blocks of `out`/results.md that have all their measurements, and draws the figure."""
    results = sorted(results, key=lambda result: result.episodes)  # so that of two the one with more episodes counts
    fill_page(
        out / "results.md",
        {
            "latency": lambda: latency_table(results),
            "equal hardware": lambda: hardware_table(results),
            "measured delays": lambda: measured_table(measured),
            "motion": lambda: motion_table(results),
            "two rates": lambda: rates_table(results, TWO_RATES),
            "stale images": lambda: rates_table(results, STALE),
        },
    )
    picture = out / "images" / "latency.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    plot_latency(results).savefig(picture, dpi=130, facecolor="white")


def _name(result: Result) -> str:
    return f"{Path(result.policy).name}@{result.num_steps}"


def _tasks(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.task for result in results))


def _on_grid(results: Sequence[Result]) -> Iterator[tuple[Timing, dict[str, Result]]]:
    """Each execution at each delay that has the two that the study compares, with the results of all that ran, by name."""
    timings = dict.fromkeys(r.timing for r in results if not r.look_every and r.n_action_steps in (SPACING, WHOLE))
    for timing in sorted(timings, key=lambda t: (EXECUTIONS.index(t.execution), t.n_action_steps, t.delay)):
        cells = {_name(r): r for r in results if r.timing == timing}
        if {"teacher@10", "student@1"} <= set(cells):
            yield timing, {name: cells[name] for name in _NAMES if name in cells}


def _label(timing: Timing) -> str:
    spacing = f", {timing.n_action_steps} executed" if timing.execution == "blocking" else ""
    return f"{timing.execution}{spacing}"


def _rate(result: Result) -> str:
    rate = wilson(sum(result.success), len(result.success))
    return f"{rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]"


def _difference(reference: Result, own: Result) -> str:
    common = min(reference.episodes, own.episodes)  # all begin with the same episode
    difference = paired_difference(pooled([reference])[:common], pooled([own])[:common])
    return f"{difference.value:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"


def latency_table(results: Sequence[Result]) -> str | None:
    """Success of every policy by task, execution and delay, and student@1 less teacher@10 at the same delay."""
    rows = []
    for task in _tasks(results):
        for timing, cells in _on_grid([r for r in results if r.task == task]):
            difference = _difference(cells["teacher@10"], cells["student@1"])
            rates = [_rate(cells[name]) if name in cells else "" for name in _NAMES]
            rows.append([task, _label(timing), str(timing.delay), *rates, difference])
    heads = ["task", "execution", "delay", *_NAMES]
    return markdown_table([*heads, "student@1 less teacher@10"], rows) if rows else None


def hardware_table(results: Sequence[Result]) -> str | None:
    """Teacher@10 at a delay, and what takes one step at a half or a quarter of it, with their differences to it."""
    rows = []
    for task in _tasks(results):
        grid = list(_on_grid([r for r in results if r.task == task]))
        cells = {(_label(timing), timing.delay): by_name for timing, by_name in grid}
        for kind in dict.fromkeys(kind for kind, _ in cells):
            for slow, fast in FASTER:
                if (kind, slow) not in cells or (kind, fast) not in cells:
                    continue
                reference, others = cells[kind, slow]["teacher@10"], cells[kind, fast]
                shown = [
                    f"{_rate(others[name])}, {_difference(reference, others[name])}" if name in others else ""
                    for name in ("student@1", "teacher@1")
                ]
                rows.append([task, kind, f"{slow} and {fast}", _rate(reference), *shown])
    heads = ["task", "execution", "delays", "teacher@10", "student@1, less teacher@10", "teacher@1, less teacher@10"]
    return markdown_table(heads, rows) if rows else None


def measured_table(results: Sequence[Result]) -> str | None:
    """Every policy at its own delay, and its difference to the first."""
    rows = []
    for task in _tasks(results):
        cells = [r for r in results if r.task == task]
        for cell in cells:
            difference = "" if cell is cells[0] else _difference(cells[0], cell)
            rows.append([task, _name(cell), str(cell.delay), _rate(cell), difference])
    return markdown_table(["task", "policy", "delay", "success", "less teacher@10"], rows) if rows else None


def motion_table(results: Sequence[Result], delay: int = 10) -> str | None:
    """How teacher@10 and student@1 move at one delay: jerk, jumps at switches, and steps without an action."""
    rows = []
    for task in _tasks(results):
        for timing, cells in _on_grid([r for r in results if r.task == task and r.delay == delay]):
            for name in ("teacher@10", "student@1"):
                means = [_mean(getattr(cells[name], field)) for field in ("jerk", "jump", "held", "steps")]
                rows.append([task, _label(timing), name, _rate(cells[name]), *means])
    heads = ["task", "execution", "policy", "success", "jerk", "jump", "steps held", "steps"]
    return markdown_table(heads, rows) if rows else None


def _mean(values: Sequence[float | None]) -> str:
    found = [value for value in values if value is not None]
    return f"{np.mean(found):.3g}" if found else ""


def rates_table(results: Sequence[Result], timings: Sequence[Timing]) -> str | None:
    """Student@1 that looks less often than it acts, and its difference to the first of the timings."""
    rows = []
    for task in _tasks(results):
        cells = {r.timing: r for r in results if r.task == task and _name(r) == "student@1"}
        if not set(timings) <= set(cells):
            continue
        for timing in timings:
            difference = "" if timing == timings[0] else _difference(cells[timings[0]], cells[timing])
            looks = str(timing.look_every or timing.n_action_steps)
            rows.append([task, looks, str(timing.n_action_steps), str(timing.delay), _rate(cells[timing]), difference])
    heads = ["task", "images every", "a chunk every", "delay of a chunk", "success", "difference"]
    return markdown_table(heads, rows) if rows else None


def plot_latency(results: Sequence[Result]) -> Figure:
    """Success over delay, a row per task and a column per execution."""
    tasks = _tasks(results)
    grids = {task: list(_on_grid([r for r in results if r.task == task])) for task in tasks}
    kinds = list(dict.fromkeys(_label(timing) for grid in grids.values() for timing, _ in grid))
    if not kinds:
        raise ConfigError("no execution has all policies: expected the results of benchmarks.recipe --study latency")
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(2.9 * len(kinds), 2.7 * len(tasks)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(tasks), len(kinds), sharex=True, sharey=True, squeeze=False)
        for row, task in zip(axes, tasks, strict=True):
            for axis, kind in zip(row, kinds, strict=True):
                shown = [(timing.delay, cells) for timing, cells in grids[task] if _label(timing) == kind]
                for i, (name, colour) in enumerate(_COLOURS.items()):
                    own = [(delay, cells[name].success) for delay, cells in shown if name in cells]
                    rates = [wilson(sum(success), len(success)) for _, success in own]
                    error = [[r.value - r.low for r in rates], [r.high - r.value for r in rates]]
                    delays = [delay + 0.25 * (i - 1.5) for delay, _ in own]
                    axis.errorbar(
                        delays,
                        [r.value for r in rates],
                        error,
                        fmt="o-",
                        ms=3.5,
                        lw=1.2,
                        capsize=2,
                        color=colour,
                        label=name,
                    )
                axis.set(title=f"{task}\n{kind}", ylim=(-0.03, 1.03))
                axis.title.set_fontsize(9)
                axis.grid(visible=True, alpha=0.3)
        for axis in axes[-1]:
            axis.set_xlabel("delay, control steps")
        for axis in axes[:, 0]:
            axis.set_ylabel("success")
        axes[0][0].legend(fontsize=7, loc="lower left")
    return figure
