"""What the measures mean: whether the student was made rightly, which step count to deploy, and whether to distil at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from jaxreflow.data.frames import ALL, EARLY
from jaxreflow.evaluate.checks import Check, Thresholds, health_checks
from jaxreflow.evaluate.measure import Measures
from jaxreflow.evaluate.measures.fidelity import Fidelity
from jaxreflow.evaluate.measures.latency import CallCost
from jaxreflow.evaluate.sampling import AtSteps
from jaxreflow.policy.real_time_chunking import DEFAULTS

Execution = Literal["short", "whole chunk"]

LEROBOT_GUIDANCE = DEFAULTS["max_guidance_weight"]


@dataclasses.dataclass(frozen=True)
class Suitability(AtSteps):
    """Whether one policy at one step count may stand in for the teacher's sampler, in one way of executing chunks."""

    execution: Execution
    n_action_steps: int
    suitable: bool
    reasons: tuple[str, ...]
    """What speaks against it; empty if nothing does."""
    undecided: bool = False
    """Not suitable by these figures, but with such figures some policies acted well and some failed: only a trial tells."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """One way of executing chunks: is distillation needed, and what should act: the fewest fit steps."""

    execution: Execution
    n_action_steps: int
    distil: str
    deploy: str
    text: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`passed`: no check failed (without a student there is none). Texts are for people, the rest for programs."""

    passed: bool
    headline: str
    checks: tuple[Check, ...]
    suitability: tuple[Suitability, ...]
    advice: tuple[Advice, ...]
    thresholds: Thresholds


def judge(measures: Measures, chunk_size: int, n_action_steps: Sequence[int], thresholds: Thresholds) -> Verdict:
    """The verdict on these measures."""
    student = any(row.name == "student" for row in measures.fidelity)
    checks = health_checks(measures, thresholds) if student else ()
    failed = [check for check in checks if check.passed is False]
    fit: list[Suitability] = []
    advice: list[Advice] = []
    short = min(n_action_steps)
    ways: list[tuple[Execution, int]] = [("short", short)] if short < chunk_size else []
    for execution, n in [*ways, ("whole chunk", chunk_size)]:
        here = _suitabilities(measures, execution, n, thresholds)
        fit += here
        advice.append(_advise(measures, execution, n, here, student and not failed))
    return Verdict(not failed, _headline(student, failed, advice), checks, tuple(fit), tuple(advice), thresholds)


def _suitabilities(measures: Measures, execution: Execution, n: int, limits: Thresholds) -> list[Suitability]:
    found = []
    for row in (row for row in measures.fidelity if row.frames == ALL):
        rough = _roughness(measures, row, limits)
        reasons = [] if row.label == measures.reference else [*rough, *_against_whole(measures, row.label, limits)]
        undecided = False
        if reasons and execution == "short" and not rough:
            reasons, undecided = _against_short(row, n, limits)
        found.append(Suitability(row.name, row.num_steps, execution, n, not reasons, tuple(reasons), undecided))
    return found


def _roughness(measures: Measures, row: Fidelity, limits: Thresholds) -> list[str]:
    other = next(r for r in measures.fidelity if r.label == measures.reference and r.frames == ALL)
    if row.jerk <= limits.jerk * other.jerk:
        return []
    return [f"jerk {row.jerk:.3f}, at most {limits.jerk:g} times the {other.jerk:.3f} of {other.label}"]


def _against_short(row: Fidelity, n: int, limits: Thresholds) -> tuple[list[str], bool]:
    """Replanning repairs what one chunk averages: only the size of the error over the executed part counts."""
    error = row.executed.get(str(n), row.error).value
    what = f"error {error:.3f} over the first {n} actions"
    if error <= limits.short_error:
        return [], False
    if error <= limits.short_error_open:
        return [f"{what}: fit up to {limits.short_error}, not fit beyond {limits.short_error_open}, open between"], True
    return [f"{what}, at most {limits.short_error_open}"], False


def _against_whole(measures: Measures, label: str, limits: Thresholds) -> list[str]:
    reasons = []
    for row in (row for row in measures.fidelity if row.label == label):
        bound = limits.early_error if row.frames == EARLY else limits.chunk_error
        if row.error.value > bound:
            reasons.append(f"error {row.error.value:.3f} on the {row.frames} frames, at most {bound}")
    for found in (found for found in measures.distributions if found.label == label):
        if found.share > limits.energy_share:
            reasons.append(f"energy distance {found.share:.1%} of the teacher's own, at most {limits.energy_share:.0%}")
        if found.spread_kept < limits.spread_kept:
            reasons.append(f"{found.spread_kept:.0%} of the teacher's spread, at least {limits.spread_kept:.0%}")
    return reasons


def _fastest(rows: Sequence[Suitability], costs: Mapping[str, CallCost]) -> Suitability:
    """The fit one whose call is shortest, the teacher rather than a student; the reference is always fit.

    Of one policy, fewer steps are the shorter call, whatever was timed. Steps also tell where nothing was timed.
    """
    fit = [row for row in rows if row.suitable]
    fewest = [
        min((row for row in fit if row.name == name), key=lambda row: row.num_steps) for name in {r.name for r in fit}
    ]

    def order(row: Suitability) -> tuple[float, bool]:
        return costs[row.label].call if costs else float(row.num_steps), row.name != "teacher"

    return min(fewest, key=order)


def _advise(
    measures: Measures, execution: Execution, n: int, rows: Sequence[Suitability], student_sound: bool
) -> Advice:
    untouched = [row for row in rows if row.name == "teacher"]
    costs = {cost.label: cost for cost in measures.calls} if any(row.name for row in measures.latency) else {}
    teacher = _fastest(untouched, {})
    below = [row for row in untouched if row.num_steps < teacher.num_steps]
    unfit = " and ".join(row.label for row in below if not row.undecided)
    if not below:
        distil, words = "no", f"No: {teacher.label}, the teacher untouched, is fit"
    elif any(row.undecided for row in below):
        distil, words = "perhaps", f"Perhaps: {teacher.label} is fit" + (f", {unfit} not" if unfit else "")
    elif teacher.label == measures.reference:
        distil, words = "yes", f"Yes: in fewer steps than {teacher.num_steps} the untouched teacher is not fit"
    else:
        distil = f"below {teacher.num_steps} steps"
        words = f"Only for fewer than {teacher.num_steps} steps: {teacher.label} is fit, {unfit} not"
    usable = rows if student_sound else untouched
    best = _fastest(usable, costs)
    undecided = " and ".join(row.label for row in usable if row.undecided and row.num_steps <= best.num_steps)
    how = f"When {n} actions are executed per chunk" + (", the whole chunk" if execution == "whole chunk" else "")
    text = f"{how}, do you need to distil? {words}. Deploy {best.label}."
    if undecided:
        text += f" Only a trial tells whether {undecided} would do."
    if best.name == "student" and costs and (faster := costs[best.label].times_faster):
        text += f" Here, a call of it is {faster:.1f} times as fast as one of {measures.reference}."
    if best.num_steps < LEROBOT_GUIDANCE:
        text += f" With LeRobot's real-time chunking, give --inference.rtc.max_guidance_weight={best.num_steps}."
    return Advice(execution, n, distil, best.label, text)


def _headline(student: bool, failed: Sequence[Check], advice: Sequence[Advice]) -> str:
    if failed:
        return f"Do not deploy this student: {', '.join(check.name for check in failed)} failed."
    deploy = "; ".join(f"{a.deploy} for {a.n_action_steps} actions per chunk" for a in advice)
    return f"{'The student passes every check that could be made. ' if student else ''}Deploy {deploy}."
