"""The training loop: batches in; updates, metrics, evaluations and checkpoints out. It knows no files and no losses."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array

from jaxreflow.errors import TrainingError
from jaxreflow.model.types import Batch
from jaxreflow.run.record.metrics import MetricsLog, Stopwatch, memory
from jaxreflow.support.compilation import CompileWatch
from jaxreflow.support.mesh import shard_batch
from jaxreflow.training.step import Metrics, TrainState

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cadence:
    """After how many updates the loop does what; the last update is always logged, evaluated and saved."""

    steps: int
    log_every: int
    eval_every: int
    save_every: int


@dataclasses.dataclass(frozen=True)
class _Update:
    """An update on its way: its number, the frames it saw, and metrics that the device may still be computing."""

    step: int
    frames: np.ndarray
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class Callbacks:
    """What the loop calls beside the update."""

    score: Callable[[TrainState], Mapping[str, float]]
    """Scores of an evaluation, by name."""
    save: Callable[[int, TrainState], None]
    """Writes a checkpoint after this update."""
    stop: Callable[[int], bool] = lambda _: False
    """Asked after every update; true ends the loop with a checkpoint."""
    heard: Callable[[], None] = lambda: None
    """Called whenever the loop has come on."""


class _Judge:
    """Reads the metrics of updates; more than `tolerated` with a loss or gradient that is not finite are an error."""

    def __init__(self, tolerated: int) -> None:
        self.skipped = 0
        self._tolerated = tolerated
        self._losses: list[float] = []

    def mean_loss(self) -> dict[str, float]:
        """`loss_mean` over the updates that were read since the last call, if there are any."""
        losses, self._losses = self._losses, []
        return {"loss_mean": math.fsum(losses) / len(losses)} if losses else {}

    def read(self, update: _Update) -> dict[str, float]:
        """Waits for the finite metrics; TrainingError names the batch if others are one too many."""
        values = {name: float(value) for name, value in jax.device_get(update.metrics).items()}
        wrong = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
        if not wrong:
            self._losses.append(values["loss"])
            return values
        self.skipped += 1
        # Every process sees the same metrics and comes here.
        frames = ", ".join(str(index) for index in multihost_utils.process_allgather(update.frames, tiled=True))
        found = f"update {update.step}: {', '.join(wrong)}"
        if self.skipped > self._tolerated:
            raise TrainingError(
                f"{found}; the run stops; its last checkpoint is from before. The batch held the dataset's frames "
                f"{frames}: look there for broken values, or start again with a lower --optimizer.lr, or go on with "
                f"--resume and a higher --skip-nonfinite than {self._tolerated}"
            )
        _log.warning("%s; it changes nothing (--skip-nonfinite); its batch held the dataset's frames %s", found, frames)
        return {name: value for name, value in values.items() if math.isfinite(value)}


def fit(
    state: TrainState,
    update: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    batches: Iterator[Batch],
    mesh: Mesh,
    cadence: Cadence,
    log: MetricsLog,
    call: Callbacks,
    *,
    skip_nonfinite: int = 0,
) -> TrainState:
    """Updates `state` until `cadence.steps` updates are done; `batches` start where `state` stands.

    The host reads an update's metrics while the device computes the next one. So it never waits for the newest, yet no
    checkpoint follows a non-finite update that is not tolerated.

    Raises:
        TrainingError: the loss or the gradient of more than `skip_nonfinite` updates is not finite.
    """
    watch, judge = Stopwatch(), _Judge(skip_nonfinite)
    unread: _Update | None = None
    with CompileWatch() as compiling:
        for step in range(int(state.step) + 1, cadence.steps + 1):
            call.heard()
            with watch.waiting():
                batch = next(batches)
            frames = np.asarray(batch.index)
            with compiling.part("update", step):
                state, metrics = update(state, shard_batch(batch, mesh))
            if unread is not None:
                judge.read(unread)
            unread = _Update(step, frames, metrics)
            log.advance()
            last, stopping = step == cadence.steps, call.stop(step)
            logging_now = last or stopping or step % cadence.log_every == 0
            saving_now = last or stopping or step % cadence.save_every == 0
            if logging_now or saving_now:
                values = judge.read(unread)
                unread = None
            if logging_now:
                skipped = {"skipped": float(judge.skipped)} if judge.skipped else {}
                speed = watch.read(len(frames) * jax.process_count())
                log.write(step, {**values, **judge.mean_loss(), **skipped, **speed, **memory()})
            if last or (step % cadence.eval_every == 0 and not stopping):
                call.heard()
                with compiling.part("the evaluation after update", step):
                    scores = call.score(state)
                if scores:
                    log.write(step, dict(scores))
                watch.restart()
            if saving_now:
                call.heard()
                with compiling.part("the checkpoint after update", step):
                    call.save(step, state)
                watch.restart()
            if stopping:
                break
    return state


def mean_scores(
    eval_step: Callable[[Batch, int], Mapping[str, tuple[Array, Array]]], batches: Iterator[Batch], mesh: Mesh
) -> dict[str, float]:
    """Scores over `batches`; `eval_step` gets the batch's place and gives each score's sum and what it is divided by."""
    parts = jax.device_get([eval_step(shard_batch(batch, mesh), i) for i, batch in enumerate(batches)])
    return {
        name: sum(float(part[name][0]) for part in parts) / sum(float(part[name][1]) for part in parts)
        for name in parts[0]
    }
