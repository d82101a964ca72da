"""Checks that every rightly made student passes, each named after what it catches, with all thresholds in one place."""

from __future__ import annotations

import dataclasses

from jaxreflow.data.frames import ALL, EARLY
from jaxreflow.errors import ConfigError
from jaxreflow.evaluate.measure import Measures
from jaxreflow.evaluate.measures.fidelity import Fidelity


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where the verdict draws its lines.

    Those for step counts were chosen on the closed loops of docs/results.md: 13 small students and their three teachers on five
    simulated tasks, at one to ten steps. docs/evaluation.md counts what they let pass there. The error over 10 actions does not
    tell what fails: at .15 one policy lost 48 points of success, and at .34 another lost none. The first had 1.7 times its
    teacher's jerk, the second .3 times.
    """

    loss_consistency: float = 1.2
    """Loss of the exported weights over the training loss, at most."""
    loss_consistency_low: float = 0.5
    """And at least: a student that learns something else leaves the right loss only slowly."""
    more_steps: float = 1.1
    """Student's error at the most steps over that at the fewest, at most."""
    better_than_teacher: float = 0.95
    """Student's error at the fewest steps over the untouched teacher's there, at most, on every set of frames."""
    velocity_error: float = 1.25
    """Student's mean velocity error over the teacher's, both against straight lines to the teacher's endpoints, at most."""
    padded_velocity_error: float = 1.25
    """The same over the padded dims."""
    padded_error: float = 0.9
    """Student's error in the padded dims at the fewest steps, at most: zeros have 1."""
    padded_rms: float = 1e-3
    """Padded endpoints smaller than this are too small to check."""
    jerk: float = 1.3
    """Jerk over that of the teacher at its own steps, at most: the student's at the fewest steps, and of whatever shall act."""
    jump: float = 1.3
    """The same of the step from chunk to chunk."""
    short_error: float = 0.12
    """Short execution: error over the executed actions, all frames, at most, unless the policy is fit for whole chunks."""
    short_error_open: float = 0.4
    """Short execution: with a larger error a policy is not fit; between the two, at little jerk, only a trial tells."""
    chunk_error: float = 0.18
    """Whole chunks: error on all frames, at most."""
    early_error: float = 0.5
    """Whole chunks: error on early frames, at most."""
    energy_share: float = 0.06
    """Whole chunks: energy distance as a share of the teacher's own mean distance between chunks, at most."""
    spread_kept: float = 0.75
    """Whole chunks: share of the teacher's spread over chunks of one observation, at least."""

    def __post_init__(self) -> None:
        if self.short_error > self.short_error_open:
            raise ConfigError(
                f"--thresholds.short-error: expected at most the {self.short_error_open:g} of --thresholds.short-error-open, "
                f"found {self.short_error:g}; raise the other, too"
            )


@dataclasses.dataclass(frozen=True)
class Check:
    """One check; `passed` is None where it could not be made, and `detail` says why or what was found."""

    name: str
    passed: bool | None
    value: float | None
    limit: float
    detail: str


def health_checks(measures: Measures, limits: Thresholds) -> tuple[Check, ...]:
    """All checks of a student."""
    return (
        _loss_consistency(measures, limits),
        _more_steps(measures, limits),
        *_better_than_teacher(measures, limits),
        *_velocity(measures, limits),
        _padded(measures, limits),
        _jerk(measures, limits),
        *_jumps(measures, limits),
    )


def _at_most(name: str, value: float, limit: float, detail: str) -> Check:
    return Check(name, value <= limit, value, limit, detail)


def _row(measures: Measures, name: str, frames: str = ALL, *, most: bool = False) -> Fidelity:
    rows = [row for row in measures.fidelity if row.name == name and row.frames == frames]
    return (max if most else min)(rows, key=lambda row: row.num_steps)


def _quotient(value: float, reference: float) -> float:
    return value / reference if reference else float("inf") if value else 0.0


def _loss_consistency(measures: Measures, limits: Thresholds) -> Check:
    name, limit, found = "loss consistency", limits.loss_consistency, measures.consistency
    if found is None or found.ratio is None:
        reason = (
            found.note
            if found is not None
            else "not available: no run with this teacher is known to have made the student"
        )
        return Check(name, None, None, limit, reason)
    detail = f"exported weights {found.loss:.4g} on held-out frames, {found.note} {found.logged:.4g}"
    if found.ratio < limits.loss_consistency_low:
        return Check(name, False, found.ratio, limit, f"less than {limits.loss_consistency_low:g}: {detail}")
    return _at_most(name, found.ratio, limit, detail)


def _more_steps(measures: Measures, limits: Thresholds) -> Check:
    few, many = _row(measures, "student"), _row(measures, "student", most=True)
    if few.num_steps == many.num_steps:
        return Check("more steps", None, None, limits.more_steps, "not available: one step count was measured")
    value = _quotient(many.error.value, few.error.value)
    detail = f"{many.label} {many.error.value:.3f}, {few.label} {few.error.value:.3f}, to {measures.reference}"
    return _at_most("more steps", value, limits.more_steps, detail)


def _better_than_teacher(measures: Measures, limits: Thresholds) -> list[Check]:
    checks = []
    for frames in (ALL, EARLY):
        if frames in measures.frames:
            own, other = _row(measures, "student", frames), _row(measures, "teacher", frames)
            name = "better than the teacher" + (", early frames" if frames == EARLY else "")
            if other.label == measures.reference:
                detail = f"not available: {other.label} is what the student is compared with"
                checks.append(Check(name, None, None, limits.better_than_teacher, detail))
                continue
            value = _quotient(own.error.value, other.error.value)
            detail = f"{own.label} {own.error.value:.3f}, {other.label} {other.error.value:.3f}, on {frames} frames"
            checks.append(_at_most(name, value, limits.better_than_teacher, detail))
    return checks


def _velocity(measures: Measures, limits: Thresholds) -> list[Check]:
    own, other = (next(f for f in measures.fields if f.name == name) for name in ("student", "teacher"))
    value = _quotient(own.mean_error, other.mean_error)
    detail = f"student {own.mean_error:.2%}, teacher {other.mean_error:.2%}, mean over t and real dims"
    checks = [_at_most("velocity error", value, limits.velocity_error, detail)]
    if own.mean_padded_error is not None and other.mean_padded_error is not None:
        value = _quotient(own.mean_padded_error, other.mean_padded_error)
        detail = (
            f"student {own.mean_padded_error:.2%}, teacher {other.mean_padded_error:.2%}, mean over t and padded dims"
        )
        checks.append(_at_most("velocity error, padded dims", value, limits.padded_velocity_error, detail))
    return checks


def _padded(measures: Measures, limits: Thresholds) -> Check:
    row, limit = _row(measures, "student"), limits.padded_error
    if row.padded_error is None:
        return Check("padded dims", None, None, limit, "not available: the policy has no padded dims")
    if row.padded_rms < limits.padded_rms:
        detail = f"not available: the teacher's padded endpoints are too small, root mean square {row.padded_rms:.2g}"
        return Check("padded dims", None, None, limit, detail)
    detail = f"{row.label} to {measures.reference}, whose padded endpoints have root mean square {row.padded_rms:.3g}"
    return _at_most("padded dims", row.padded_error, limit, detail)


def _jerk(measures: Measures, limits: Thresholds) -> Check:
    own = _row(measures, "student")
    other = next(row for row in measures.fidelity if row.label == measures.reference and row.frames == ALL)
    value = _quotient(own.jerk, other.jerk)
    detail = f"{own.label} {own.jerk:.3f}, {other.label} {other.jerk:.3f}, normalised units"
    return _at_most("jerk", value, limits.jerk, detail)


def _jumps(measures: Measures, limits: Thresholds) -> list[Check]:
    checks = []
    for n in sorted({jump.n_action_steps for jump in measures.jumps}):
        rows = [jump for jump in measures.jumps if jump.n_action_steps == n]
        own = min((jump for jump in rows if jump.name == "student"), key=lambda jump: jump.num_steps)
        other = next(jump for jump in rows if jump.label == measures.reference)
        value = _quotient(own.step, other.step)
        detail = f"{own.label} {own.step:.3f}, {other.label} {other.step:.3f}, normalised units"
        checks.append(_at_most(f"jump between chunks of {n} actions", value, limits.jump, detail))
    return checks
