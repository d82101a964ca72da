"""Tables of a report, as rows of text: Markdown for terminals and files, HTML on the page."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

from jaxreflow.data.frames import ALL
from jaxreflow.evaluate.measure import Measures
from jaxreflow.evaluate.measures.estimate import Estimate
from jaxreflow.evaluate.measures.fidelity import Fidelity
from jaxreflow.evaluate.report.report import Report
from jaxreflow.evaluate.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Table:
    """A heading and rows of cells; the first cell of a row names it."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def markdown(table: Table) -> str:
    """The table in Markdown."""
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def interval(estimate: Estimate) -> str:
    """`0.134 [0.115, 0.156]`, without brackets where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _known(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def policy_order(measures: Measures) -> list[str]:
    """Labels of all policies but the reference, teacher first, most steps first."""
    labels = [row.label for row in measures.fidelity if row.frames == ALL]
    return [label for label in labels if label != measures.reference]


def find(rows: Sequence[Fidelity], label: str, frames: str) -> Fidelity:
    """The row of a policy on a set of frames."""
    return next(row for row in rows if row.label == label and row.frames == frames)


def error_table(measures: Measures) -> Table:
    """Same-noise errors to the reference: one line per policy, one column per set of frames."""
    sets = list(measures.frames)
    columns = (f"relative error to {measures.reference}, same noise", *(f"{name} frames" for name in sets))
    rows = (
        (label, *(f"{find(measures.fidelity, label, name).error.value:.3f}" for name in sets))
        for label in policy_order(measures)
    )
    return Table(columns, tuple(rows))


def fidelity_table(measures: Measures) -> Table:
    """The same with intervals, the executed part, padded dims, and the recorded actions."""
    counts = list(find(measures.fidelity, measures.reference, ALL).executed)
    columns = ["policy", *(f"{name} frames, 95 % interval" for name in measures.frames)]
    columns += [f"first {n} actions" for n in counts] + [
        "in dataset units",
        "padded dims",
        "to recorded actions",
        "jerk",
    ]
    rows = []
    for label in [measures.reference, *policy_order(measures)]:
        row = find(measures.fidelity, label, ALL)
        own = label == measures.reference
        cells = [interval(find(measures.fidelity, label, name).error) for name in measures.frames]
        cells += [f"{row.executed[n].value:.3f}" for n in counts] + [f"{row.physical_error.value:.3f}"]
        cells += [_known(row.padded_error, ".3f")]
        cells = ["0" for _ in cells] if own else cells
        rows.append((label, *cells, interval(row.recorded_error), f"{row.jerk:.3f}"))
    return Table(tuple(columns), tuple(rows))


def interval_table(measures: Measures) -> Table:
    """Same-noise errors with their intervals: one line per policy, on each set of frames and on the first executed actions."""
    sets = list(measures.frames)
    reference = find(measures.fidelity, measures.reference, ALL)
    short = min((n for n in reference.executed if int(n) < len(reference.per_position)), key=int, default=None)
    columns = [f"relative error to {measures.reference}", *(f"{name} frames" for name in sets)]
    columns += [f"first {short} actions"] if short else []
    rows = []
    for label in policy_order(measures):
        row = find(measures.fidelity, label, ALL)
        cells = [interval(find(measures.fidelity, label, name).error) for name in sets]
        cells += [interval(row.executed[short])] if short else []
        rows.append((label, *cells))
    return Table(tuple(columns), tuple(rows))


def dims_table(measures: Measures, names: Sequence[str]) -> Table:
    """Errors per action dim: relative, and root mean square in the dataset's units."""
    columns = ("policy", *(f"{name}: relative, rms" for name in names))
    rows = []
    for label in policy_order(measures):
        row = find(measures.fidelity, label, ALL)
        rows.append((label, *(f"{e:.3f}, {r:.3g}" for e, r in zip(row.per_dim, row.rmse, strict=True))))
    return Table(columns, tuple(rows))


def distribution_table(measures: Measures) -> Table:
    """Energy distances, with the floor in the first line."""
    columns = ("policy", "energy distance", "share of the teacher's own distance", "spread kept")
    rows = [
        (
            f"{row.label}, other noise (floor)" if row.floor else row.label,
            f"{row.energy:.3f}",
            f"{row.share:.1%}",
            f"{row.spread_kept:.0%}",
        )
        for row in measures.distributions
    ]
    return Table(columns, tuple(rows))


def field_table(measures: Measures) -> Table:
    """Velocity error and straightness, means over t."""
    columns = ("policy", "velocity error", "of padded dims", "straightness (0 is straight)")
    rows = [
        (
            field.name,
            f"{field.mean_error:.2%}",
            _known(field.mean_padded_error, ".2%"),
            f"{field.mean_straightness:.4f}",
        )
        for field in measures.fields
    ]
    return Table(columns, tuple(rows))


def jump_table(measures: Measures) -> Table:
    """Seams between chunks."""
    columns = ("policy", "actions per chunk", "pairs of frames", "step at the seam", "step before it", "disagreement")
    rows = [
        (
            jump.label,
            str(jump.n_action_steps),
            str(jump.pairs),
            f"{jump.step:.3f}",
            _known(jump.inner_step, ".3f"),
            _known(jump.disagreement, ".3f"),
        )
        for jump in measures.jumps
    ]
    return Table(columns, tuple(rows))


def latency_table(measures: Measures) -> Table:
    """Milliseconds, prefix first."""
    columns = ("part", "p50 ms", "p95 ms", "p99 ms", "calls")
    rows = [
        (
            (f"{row.name}: " if row.name else "")
            + (
                "prefix, once per chunk"
                if row.num_steps is None
                else f"{row.num_steps} Euler step{'s' * (row.num_steps > 1)}"
            ),
            f"{row.p50:.2f}",
            f"{row.p95:.2f}",
            f"{row.p99:.2f}",
            str(row.calls),
        )
        for row in measures.latency
    ]
    return Table(columns, tuple(rows))


def rate_table(measures: Measures) -> Table:
    """Actions per second by step count and actions per chunk."""
    counts = sorted({rate.n_action_steps for rate in measures.rates})
    found = {(r.name, r.num_steps, r.n_action_steps): r.actions_per_second for r in measures.rates}
    columns = ("Euler steps", *(f"{n} actions per chunk" for n in counts))
    rows = dict.fromkeys((rate.name, rate.num_steps) for rate in measures.rates)
    return Table(
        columns,
        tuple((f"{name} {steps}".strip(), *(f"{found[name, steps, n]:,.0f}" for n in counts)) for name, steps in rows),
    )


def call_table(measures: Measures) -> Table:
    """The whole call of every policy at every step count, beside the reference's."""
    columns = ("policy", "whole call, ms", "prefix, ms", "Euler steps, ms", f"times as fast as {measures.reference}")
    rows = [
        (row.label, f"{row.call:.2f}", f"{row.prefix:.2f}", f"{row.loop:.2f}", _known(row.times_faster, ".2f"))
        for row in measures.calls
    ]
    return Table(columns, tuple(rows))


STATES = {True: "pass", False: "FAIL", None: "not checked"}


def check_table(verdict: Verdict) -> Table:
    """The checks, failed ones first."""
    order = {False: 0, True: 1, None: 2}
    rows = [
        (
            check.name,
            STATES[check.passed],
            _known(check.value, ".3g"),
            f"at most {check.limit:g}",
            check.detail,
        )
        for check in sorted(verdict.checks, key=lambda check: order[check.passed])
    ]
    return Table(("check", "result", "value", "limit", "found"), tuple(rows))


def suitability_table(verdict: Verdict) -> Table:
    """Which policy at which step count may act, by way of execution."""
    rows = [
        (
            row.label,
            f"{row.n_action_steps} ({row.execution})",
            "fit" if row.suitable else "open" if row.undecided else "not fit",
            "; ".join(row.reasons) or "nothing against it",
        )
        for row in verdict.suitability
    ]
    return Table(("policy", "actions per chunk", "result", "why"), tuple(rows))


def threshold_table(verdict: Verdict) -> Table:
    """All thresholds by name."""
    rows = tuple((name.replace("_", " "), f"{value:g}") for name, value in vars(verdict.thresholds).items())
    return Table(("threshold", "value"), rows)


def format_report(report: Report) -> str:
    """What the command prints: the error table, the checks and the verdict."""
    lines = [markdown(error_table(report.measures)), ""]
    width = max((len(check.name) for check in report.verdict.checks), default=0)
    for check in report.verdict.checks:
        value = "" if check.value is None else f"{check.value:.3g}, at most {check.limit:g}: "
        lines.append(f"{STATES[check.passed]:<11} {check.name:<{width}}  {value}{check.detail}")
    lines += ["", *(textwrap.fill(advice.text, 110) for advice in report.verdict.advice), ""]
    return "\n".join([*lines, textwrap.fill(report.verdict.headline, 110)])
