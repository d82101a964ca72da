"""All measures of one evaluation, as one record that can be written as JSON."""

from __future__ import annotations

import dataclasses

from jaxreflow.data.frames import ALL, EARLY, frame_sets, pick
from jaxreflow.evaluate.measures.consistency import Consistency, measure_consistency
from jaxreflow.evaluate.measures.distribution import Distribution, measure_distributions
from jaxreflow.evaluate.measures.fidelity import Fidelity, measure_fidelity
from jaxreflow.evaluate.measures.latency import CallCost, Rate, call_costs, measure_latency
from jaxreflow.evaluate.measures.smoothness import Jump, measure_jumps
from jaxreflow.evaluate.measures.velocity_field import Field, measure_fields
from jaxreflow.evaluate.sampling import Trial
from jaxreflow.policy.latency import Latency
from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.run.config import ReflowConfig
from jaxreflow.support.storage import AnyPath


@dataclasses.dataclass(frozen=True)
class Training:
    """The run that made a student: its settings, its directory and the update whose weights these are, where known."""

    config: ReflowConfig
    saved: SavedPolicy
    run: AnyPath | None
    update: int | None


@dataclasses.dataclass(frozen=True)
class Measures:
    """Everything that was measured; lists have one entry per policy and step count, and set of frames where there are two."""

    reference: str
    """The teacher at its own step count, such as `teacher@10`."""
    frames: dict[str, int]
    """Number of frames in each set."""
    fidelity: list[Fidelity]
    fields: list[Field]
    distributions: list[Distribution]
    jumps: list[Jump]
    latency: list[Latency]
    rates: list[Rate]
    consistency: Consistency | None
    """None without a student, or if no run with this teacher is known to have made it."""

    @property
    def calls(self) -> list[CallCost]:
        """What a call of every policy costs at every step count; empty if latency was not measured."""
        return call_costs(self.latency, [row for row in self.fidelity if row.frames == ALL], self.reference)


def measure(trial: Trial, training: Training | None) -> Measures:
    """Measures the trial's policies; `training` is known of students made by a reflow run only."""
    settings = trial.settings
    sets = frame_sets(trial.source, settings.frames, settings.early_task, settings.early_frames)
    apart = sets.get(EARLY, sets[ALL])
    latency, rates = measure_latency(trial) if settings.repeats else ([], [])
    return Measures(
        reference=trial.reference.label,
        frames={name: len(positions) for name, positions in sets.items()},
        fidelity=[row for name, positions in sets.items() for row in measure_fidelity(trial, name, positions)],
        fields=measure_fields(trial, pick(sets[ALL], settings.field_frames)),
        distributions=(measure_distributions(trial, pick(apart, settings.observations)) if settings.draws else []),
        jumps=measure_jumps(trial),
        latency=latency,
        rates=rates,
        consistency=(
            None
            if training is None
            else measure_consistency(trial, sets[ALL], training.config, training.saved, training.run, training.update)
        ),
    )
