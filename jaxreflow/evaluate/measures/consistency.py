"""Whether a student's loss is what its training log says: weights exported wrongly, or trained on other noise, show here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxreflow.evaluate.sampling import Trial, sees_alike
from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.run.config import ReflowConfig
from jaxreflow.run.programs import augmented, loss_and_draw
from jaxreflow.run.record.metrics import METRICS_FILE, Record, read_metrics
from jaxreflow.run.start import student_start
from jaxreflow.support.storage import AnyPath
from jaxreflow.training.losses import CONTEXT_PARAMS


@dataclasses.dataclass(frozen=True)
class Consistency:
    """The reflow loss of the exported weights on held-out frames, and what the run itself measured."""

    loss: float
    """With fresh noise, and with the run's own loss, noises per observation and law of t."""
    train_loss: float | None
    """Mean over the last tenth of its updates; None where there is no log of them."""
    ratio: float | None
    """`loss` over `logged`: 1 is right."""
    note: str
    """Where `logged` comes from, or why there is none."""
    held_out_loss: float | None = None
    """The run's own, of the same weights on the episodes that it held out; None where it measured none at this update."""

    @property
    def logged(self) -> float | None:
        """The run's held-out loss where there is one: unlike `train_loss` it is as large for a student that overfits."""
        return self.train_loss if self.held_out_loss is None else self.held_out_loss


def find_run(student: Path) -> Path | None:
    """The run whose checkpoint `student` is: RUN/checkpoints/STEP/pretrained_model with RUN/metrics.jsonl beside it."""
    parents = student.resolve().parents
    if len(parents) < 3 or parents[1].name != "checkpoints":
        return None
    return parents[2] if (parents[2] / METRICS_FILE).is_file() else None


def last_update(student: Path) -> int | None:
    """The update that a checkpoint's folder is named after, if it is."""
    name = student.resolve().parent.name
    return int(name) if name.isdigit() else None


def final_train_loss(records: Iterable[Record], last: int | None = None) -> tuple[float, int, int] | None:
    """The mean loss of the last tenth of the updates up to `last`, and the first and last of them; None without any.

    A log's line holds the mean since the line before; in logs from before there was one, the loss of its update alone.
    """
    lines = [r for r in records if "loss" in r and (not last or r["step"] <= last)]
    if not lines:
        return None
    end, before = int(lines[-1]["step"]), 0
    losses: list[float] = []
    firsts: list[int] = []
    for line in lines:
        step = int(line["step"])
        if step > 0.9 * end:
            losses.append(float(line.get("loss_mean", line["loss"])))
            firsts.append(before + 1 if "loss_mean" in line else step)
        before = step
    return float(np.mean(losses)), firsts[0], end


def last_held_out_loss(records: Iterable[Record], step: int) -> float | None:
    """The held-out loss that was measured after an update; None if there is none."""
    found = [r["held_out_loss"] for r in records if "held_out_loss" in r and r["step"] == step]
    return float(found[-1]) if found else None


def measure_consistency(
    trial: Trial,
    positions: Sequence[int],
    config: ReflowConfig,
    saved: SavedPolicy,
    run: AnyPath | None,
    last: int | None,
) -> Consistency:
    """The loss by which `config`'s run was trained, on these frames with fresh noise, against that run's log."""
    teacher, student = trial.subjects
    saved = student_start(config.student, saved)
    # All of both policies, as they are: a weight that was exported wrongly shows, trained or not. What both see alike by is given
    # once, so that one look at an observation serves both.
    common = CONTEXT_PARAMS if sees_alike(teacher, student) else ()
    shared = {name: student.params[name] for name in common}
    own, theirs = (
        {name: part for name, part in params.items() if name not in common}
        for params in (student.params, teacher.params)
    )
    loss_fn, draw = augmented(*loss_and_draw(config, saved), config, saved)
    measure = jax.jit(loss_fn)
    key = jax.random.key(trial.settings.seed + 3)
    total, count = 0.0, 0.0
    # Whole batches only: a filled-up one would weigh its last frame more.
    size = min(trial.settings.batch_size, len(positions))
    whole = positions[: len(positions) // size * size]
    for i, part in enumerate(trial.batches(whole, task="training loss")):
        draws = draw(jax.random.fold_in(key, i), size)
        part_sum, part_count = measure(own, shared, theirs, part.batch, draws)
        total, count = total + float(part_sum), count + float(part_count)
    loss = total / count
    records = list(read_metrics(run)) if run is not None and (run / METRICS_FILE).is_file() else []
    return against_training(loss, records, last)


def against_training(loss: float, records: Sequence[Record], last: int | None) -> Consistency:
    """The loss against that of the run's log up to the update `last`. A logged loss of zero says nothing."""
    found = final_train_loss(records, last)
    if found is None:
        return Consistency(loss, None, None, f"not available: no {METRICS_FILE} of the run that made the student")
    train_loss, first, end = found
    held_out_loss = last_held_out_loss(records, end)
    note = (
        f"training loss of updates {first} to {end}"
        if held_out_loss is None
        else f"run's held-out loss of update {end}"
    )
    result = Consistency(loss, train_loss, None, note, held_out_loss)
    if not result.logged:
        return dataclasses.replace(result, note=f"not available: the {note} is 0")
    return dataclasses.replace(result, ratio=loss / result.logged)
