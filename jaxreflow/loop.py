"""The training loop: batches in; updates, metrics, evaluations and checkpoints out. It knows no files and no losses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxreflow.compilation import CompileWatch
from jaxreflow.errors import TrainingError
from jaxreflow.metrics import MetricsLog, Stopwatch
from jaxreflow.sharding import shard_batch
from jaxreflow.training import Metrics, TrainState
from jaxreflow.types import Batch


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

    def read(self) -> dict[str, float]:
        """Waits for the metrics; TrainingError names the batch if the loss or its gradient is not finite."""
        values = {name: float(value) for name, value in jax.device_get(self.metrics).items()}
        wrong = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
        if wrong:
            frames = ", ".join(str(index) for index in self.frames)
            raise TrainingError(
                f"update {self.step}: {', '.join(wrong)}; the run stops; its last checkpoint is from before. The batch "
                f"held the dataset's frames {frames}: look there for broken values, or start again with a lower "
                "--optimizer.lr"
            )
        return values


def fit(
    state: TrainState,
    step_fn: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    batches: Iterator[Batch],
    mesh: Mesh,
    cadence: Cadence,
    log: MetricsLog,
    *,
    batch_size: int,
    evaluate: Callable[[TrainState], Mapping[str, float]],
    save: Callable[[int, TrainState], None],
) -> TrainState:
    """Updates `state` until `cadence.steps` updates are done; `batches` start where `state` stands.

    The host reads an update's metrics while the device computes the next one, so it never waits for the newest, yet no
    checkpoint follows a non-finite update.

    Raises:
        TrainingError: the loss or the gradient of an update is not finite.
    """
    watch = Stopwatch()
    previous: _Update | None = None
    with CompileWatch() as compiling:
        for step in range(int(state.step) + 1, cadence.steps + 1):
            with watch.waiting():
                batch = next(batches)
            frames = np.asarray(batch.index)
            with compiling.part("update", step):
                state, metrics = step_fn(state, shard_batch(batch, mesh))
            if previous is not None:
                previous.read()
            previous = _Update(step, frames, metrics)
            log.advance()
            last = step == cadence.steps
            if last or step % cadence.log_every == 0:
                values = previous.read()
                log.write(step, {**values, **watch.read(batch_size)})
            if last or step % cadence.eval_every == 0:
                with compiling.part("the evaluation after update", step):
                    scores = evaluate(state)
                if scores:
                    log.write(step, dict(scores))
                watch.restart()
            if last or step % cadence.save_every == 0:
                previous.read()
                with compiling.part("the checkpoint after update", step):
                    save(step, state)
                watch.restart()
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
