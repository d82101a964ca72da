"""Puts the measured figures into docs/results.md, between its markers, and draws its pictures."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.recipe.lab import (
    CLOSED_LOOP,
    CLOSED_LOOP_SEED,
    SIDES,
    SIDES_LENGTHS,
    TASKS,
    TEACHER,
    Lab,
    keep_results,
    named,
    policy_name,
)
from benchmarks.recipe.page import fill_page, markdown_table
from benchmarks.recipe.variants import (
    CAPACITY,
    DEFAULT,
    EQUAL_COST,
    FULL_COST,
    GROUPED,
    LENGTHS,
    NOISE_BIASED,
    NOISE_BIASED_MIDDLE,
    REAL_SHARE,
    ROUNDS,
    SCREENED,
    SEEDS,
    Variant,
    seeded,
    short_name,
)
from jaxreflow.errors import ConfigError
from jaxreflow.evaluate.measures.estimate import relative_error_difference
from jaxreflow.sim.intervals import wilson
from jaxreflow.sim.results import Result, comparison_table, pooled, read_results

Report = dict[str, Any]
_NAMES = {
    "default": "student",
    "noise_biased": "noise-biased fine-tune",
    "fine_tune": "fine-tune at the teacher's times",
    "snapflow": "SnapFlow",
    "snapflow_long": "SnapFlow (as much time)",
    "full": "same network",
    "tokens_16": "16 tokens",
    "tokens_16_long": "16 tokens (three times as long)",
    "layers_first": "4 layers",
    "both": "16 tokens, 4 layers",
    "both_long": "16 tokens, 4 layers (three times as long)",
}
_COLOURS = {
    "teacher": "#2b5c8a",
    "student": "#c1521f",
    "noise-biased fine-tune": "#7a7a7a",
}


def write_up(out: Path, lab: Lab) -> None:
    """Fills every block of `out`/results.md that has all its measurements. Other blocks and the text around them stay."""
    blocks: dict[str, Callable[[Lab], str | None]] = {
        "fidelity": fidelity_table,
        "closed loop": closed_loop_table,
        "screening": screening_table,
        "seeds": seeds_table,
        "rounds": rounds_table,
        "length": length_table,
        "capacity": capacity_table,
        "full cost": full_cost_table,
    }
    fill_page(out / "results.md", {name: functools.partial(make, lab) for name, make in blocks.items()})
    results = _closed_loop(lab)
    if results:
        picture = out / "images" / "closed_loop.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        plot_closed_loop(results).savefig(picture, dpi=130, facecolor="white")
    _publish(lab, out / "results")


def write_study(
    out: Path, lab: Lab, name: str, students: Sequence[Variant], table: Callable[[], str | None]
) -> list[Result]:
    """Fills a study's two blocks of `out`/results.md, fidelity and closed loop, and keeps the results behind them.

    Returns its closed loops, under the names of `policy_name`.
    """
    results = _of_study(lab, students)
    shown = [_renamed(result) for result in results]
    blocks = {f"{name} fidelity": table, f"{name} closed loop": lambda: comparison_table(shown) if shown else None}
    fill_page(out / "results.md", blocks)
    if results:
        keep_results(out / "results" / f"{name}_{CLOSED_LOOP}", results)
    _keep_reports(out, lab, name, students)
    return results


def _of_study(lab: Lab, students: Iterable[Variant]) -> list[Result]:
    """The closed loops of the study's episodes, the teacher's first; of a policy that was trained again, the last ones."""
    order = [TEACHER, *(student.name for student in students)]
    found: dict[tuple[Any, ...], Result] = {}
    for result in map(named, _closed_loop(lab)):
        if result.policy in order and (result.seed, result.episodes) == (CLOSED_LOOP_SEED, lab.scale.episodes):
            found[order.index(result.policy), -result.num_steps, result.n_action_steps, result.task] = result
    return [found[key] for key in sorted(found, key=lambda key: key[:3])]


def _keep_reports(out: Path, lab: Lab, study: str, students: Iterable[Variant]) -> None:
    """Copies the reports of a study's students to `out`/results."""
    for student in students:
        report = lab.results / student.name / "report.json"
        if report.exists():
            folder = out / "results" / f"{study}_{student.name}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(report, folder / report.name)


def _publish(lab: Lab, folder: Path) -> None:
    """Copies what stands behind the page, except the runs of the screening: figures, one whole report, the closed loops."""
    variants = (DEFAULT, NOISE_BIASED, NOISE_BIASED_MIDDLE, *LENGTHS, *CAPACITY, *FULL_COST)
    figures = dict.fromkeys(f"{variant.name}/report.json" for variant in variants)
    for name in (f"{DEFAULT.name}/report.html", *figures, SIDES, SIDES_LENGTHS, CLOSED_LOOP):
        if (lab.results / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(lab.results / name, folder / name)


def fidelity_table(lab: Lab) -> str | None:
    """Teacher, student and baseline at few steps against the teacher at ten."""
    reports = {name: read_report(lab, name) for name in (DEFAULT.name, NOISE_BIASED.name)}
    default = reports[DEFAULT.name]
    if default is None:
        return None
    rows = [["teacher@10, other noise", "", "", *distribution(default, "teacher", 10), neither(lab, "teacher", 10), ""]]
    for steps in (2, 1):
        rows.append(_fidelity_row(lab, default, "teacher", "teacher", steps))
    for name, report in reports.items():
        if report is not None:
            rows += [_fidelity_row(lab, report, name, "student", steps) for steps in (10, 2, 1)]
    heads = ["relative error to teacher@10", "all frames", "early wall frames", "energy distance, early", "spread kept"]
    return markdown_table([*heads, "neither side", "loss consistency"], rows)


def _fidelity_row(lab: Lab, report: Report, name: str, role: str, steps: int) -> list[str]:
    consistency = report["measures"]["consistency"]
    known = role == "student" and steps == 1 and consistency is not None and consistency["ratio"] is not None
    return [
        f"{shown_name(name)}@{steps}",
        relative_error(report, role, steps, "all"),
        relative_error(report, role, steps, "early"),
        *distribution(report, role, steps),
        neither(lab, name, steps),
        f"{consistency['ratio']:.2f}" if known else "",
    ]


def closed_loop_table(lab: Lab) -> str | None:
    """Success pooled over tasks, and the difference to the teacher at ten steps."""
    results = _closed_loop(lab)
    return comparison_table([_renamed(result) for result in results]) if results else None


def screening_table(lab: Lab) -> str | None:
    """One change at a time from the default, all for the same number of updates or at the same cost."""
    return _variants_table(lab, map(_short, (NOISE_BIASED, DEFAULT, *SCREENED, *EQUAL_COST)))


def seeds_table(lab: Lab) -> str | None:
    """The default and the runners-up with all seeds."""
    confirmed = [
        variant
        for variant in (DEFAULT, *SCREENED, *EQUAL_COST)
        if all(read_report(lab, short_name(seeded(variant, seed).name)) is not None for seed in SEEDS)
    ]
    repeated = [seeded(variant, seed) for variant in confirmed for seed in SEEDS]
    return _variants_table(lab, map(_short, (NOISE_BIASED, *repeated))) if repeated else None


def rounds_table(lab: Lab) -> str | None:
    """Repeated reflow, with and without real data."""
    chains = (DEFAULT, *ROUNDS[:2], GROUPED, *ROUNDS[2:4], REAL_SHARE, *ROUNDS[4:])
    return _variants_table(lab, map(_short, (NOISE_BIASED, *chains)))


def length_table(lab: Lab) -> str | None:
    """The same student after more and more updates."""
    return _variants_table(lab, (NOISE_BIASED_MIDDLE, *LENGTHS))


def capacity_table(lab: Lab) -> str | None:
    """Fewer and more trained parameters, for the same number of updates."""
    return _variants_table(lab, (NOISE_BIASED_MIDDLE, *CAPACITY))


def full_cost_table(lab: Lab) -> str | None:
    """More and more noises per observation, in the time that they take at full size."""
    return _variants_table(lab, FULL_COST)


def _short(variant: Variant) -> Variant:
    """The variant under the name of its short run."""
    return dataclasses.replace(variant, name=short_name(variant.name))


def _variants_table(lab: Lab, variants: Iterable[Variant]) -> str | None:
    """The teacher as it is, then a row per variant. If a measurement is missing, it is named and the result is None.

    Errors over all frames are also compared, episode by episode, with those of the first student that is no baseline.
    """
    measured = [(variant, read_report(lab, variant.name)) for variant in variants]
    reports = [(variant, report) for variant, report in measured if report is not None]
    if len(reports) < len(measured):
        missing = ", ".join(variant.name for variant, report in measured if report is None)
        print(f"{missing} missing in {lab.results}: a table of docs/results.md is left as it is")
        return None
    first = next(report for variant, report in reports if variant.group != NOISE_BIASED.group)
    rows = [["baseline", "the teacher itself", *_few_steps(first, "teacher", first)]]
    rows += [[variant.group, variant.change, *_few_steps(report, "student", first)] for variant, report in reports]
    heads = ["", "change", "all frames @1", "@2", "difference @1", "@2", "early wall frames @1", "@2"]
    return markdown_table([*heads, "energy distance @1", "spread kept @1"], rows)


def _few_steps(report: Report, role: str, first: Report) -> list[str]:
    every, early = ([relative_error(report, role, steps, frames) for steps in (1, 2)] for frames in ("all", "early"))
    differences = [difference(first, report, role, steps) for steps in (1, 2)]
    return [*every, *differences, *early, *distribution(report, role, 1)]


def plot_closed_loop(results: Sequence[Result]) -> Figure:
    """Success of every policy with Wilson's intervals, by number of executed actions: over all tasks, and at the wall."""
    executed = sorted({result.n_action_steps for result in results})
    panels = [
        (n, tasks, name) for tasks, name in ((TASKS, f"{len(TASKS)} tasks"), (TASKS[:1], TASKS[0])) for n in executed
    ]
    policies = list(dict.fromkeys((_role(result), result.num_steps) for result in results))
    with mpl.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(3.2 * len(panels), 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (n, tasks, name) in zip(axes, panels, strict=True):
            shown = [result for result in results if result.n_action_steps == n and result.task in tasks]
            _plot_rates(axis, shown, policies)
            axis.set(title=f"{name},\n{n} actions executed", xlabel="success", xlim=(-0.02, 1.02))
        axes[0].set_yticks(range(len(policies)), [f"{role}@{steps}" for role, steps in policies])
        axes[0].invert_yaxis()
    return figure


def _plot_rates(axis: Axes, results: Sequence[Result], policies: Sequence[tuple[str, int]]) -> None:
    for i, (role, steps) in enumerate(policies):
        success = pooled([result for result in results if (_role(result), result.num_steps) == (role, steps)])
        rate = wilson(int(success.sum()), len(success))
        error = [[rate.value - rate.low], [rate.high - rate.value]]
        axis.errorbar(rate.value, i, xerr=error, fmt="o", color=_COLOURS[role], capsize=4)
    axis.grid(visible=True, axis="x", alpha=0.3)


def read_report(lab: Lab, name: str) -> Report | None:
    """A student's report; None before it is measured."""
    path = lab.results / name / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _closed_loop(lab: Lab) -> list[Result]:
    return list(read_results(lab.results / CLOSED_LOOP))


def shown_name(policy: str) -> str:
    """What the page calls a policy of a study."""
    return _NAMES.get(policy, policy)


def _role(result: Result) -> str:
    return shown_name(policy_name(result.policy))


def _renamed(result: Result) -> Result:
    return dataclasses.replace(result, policy=_role(result))


def fidelity(report: Report, role: str, steps: int, frames: str) -> Report:
    """A report's record of a policy's errors to teacher@10."""
    rows = report["measures"]["fidelity"]
    return next(r for r in rows if (r["name"], r["num_steps"], r["frames"]) == (role, steps, frames))


def relative_error(report: Report, role: str, steps: int, frames: str) -> str:
    """A relative error to teacher@10 with its interval, over `all` or `early` frames."""
    estimate = fidelity(report, role, steps, frames)["error"]
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def difference(first: Report, report: Report, role: str, steps: int) -> str:
    """Difference of the errors over all frames to the first report's student, on the same episodes; that student has none."""
    theirs, ours = fidelity(first, "student", steps, "all"), fidelity(report, role, steps, "all")
    if ours is theirs:
        return ""
    reference, other = (np.array(row.get("episode_references", ())) for row in (theirs, ours))
    # Cached image tokens are rounded, so a student that is measured without them has a teacher that is a little different.
    if not reference.size or reference.shape != other.shape or not np.allclose(reference, other, rtol=1e-2):
        raise ConfigError(
            "reports of one table: expected the same frames and teacher, found others; measure all of them again"
        )
    found = relative_error_difference(np.array(theirs["episode_errors"]), np.array(ours["episode_errors"]), reference)
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def measured(report: Report, role: str, steps: int) -> list[str]:
    """Errors over all and over early frames, energy distance, and kept spread."""
    errors = [relative_error(report, role, steps, frames) for frames in ("all", "early")]
    return [*errors, *distribution(report, role, steps)]


def distribution(report: Report, role: str, steps: int) -> list[str]:
    """Energy distance and kept spread on early frames, empty where they were not measured."""
    rows = report["measures"]["distributions"]
    row = next((r for r in rows if (r["name"], r["num_steps"]) == (role, steps)), None)
    return ["", ""] if row is None else [f"{row['energy']:.3f}", f"{row['spread_kept']:.2f}"]


def neither(lab: Lab, name: str, steps: int) -> str:
    """Share of a policy's early chunks that take neither side of the wall; empty before it is measured."""
    path = lab.results / SIDES
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    found = [r["neither"] for r in records if (policy_name(r["policy"]), r["num_steps"]) == (name, steps)]
    return f"{found[0]:.3f}" if found else ""
