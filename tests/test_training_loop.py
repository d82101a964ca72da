"""The loop, with an update that only counts: what is logged, evaluated and saved when, and what stops it."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from jaxreflow.errors import TrainingError
from jaxreflow.model.types import Batch
from jaxreflow.policy.architecture import network_of
from jaxreflow.run.loop import Cadence, Callbacks, fit, mean_scores
from jaxreflow.run.record.metrics import MetricsLog, read_metrics
from jaxreflow.support.mesh import make_mesh
from jaxreflow.training.step import TrainState
from tests.tiny import VLM, tiny_policy
from tests.tiny_policy import make_batch

CONFIG = network_of(tiny_policy(), VLM)
STATE = TrainState(jnp.int32(0), {"x": jnp.zeros(2)}, (), None)


def batches() -> Iterator[Batch]:
    """Batch i holds the frames 100 i and 100 i + 1."""
    for i in itertools.count():
        batch = make_batch(2, CONFIG)
        yield Batch(batch.observation, batch.actions, batch.action_is_pad, np.array([100 * i, 100 * i + 1], np.int32))


def run(
    tmp_path: Path, losses: dict[int, float], *, skip: int = 0, stop_after: int = 0, **cadence: int
) -> list[tuple[str, int]]:
    """Six updates whose loss is 1 except for `losses`; the events in order."""
    events: list[tuple[str, int]] = []

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        done = int(state.step) + 1
        assert int(batch.index[0]) == 100 * (done - 1)
        return TrainState(jnp.int32(done), state.trainable, (), None), {"loss": jnp.float32(losses.get(done, 1.0))}

    def score(state: TrainState) -> dict[str, float]:
        events.append(("evaluate", int(state.step)))
        return {"held_out_loss": 0.5}

    def save(step: int, state: TrainState) -> None:
        assert step == int(state.step)
        events.append(("save", step))

    settings = Cadence(**{"steps": 6, "log_every": 2, "eval_every": 4, "save_every": 3, **cadence})
    with MetricsLog(tmp_path, start=0, steps=6) as log:
        call = Callbacks(score, save, lambda step: step == stop_after, lambda: events.append(("heard", 0)))
        fit(STATE, step, batches(), make_mesh(), settings, log, call, skip_nonfinite=skip)
    assert events.count(("heard", 0)) == (stop_after or 6) + sum(kind != "heard" for kind, _ in events)
    return [event for event in events if event[0] != "heard"]


def test_cadence_and_metrics(tmp_path: Path) -> None:
    events = run(tmp_path, {})
    assert events == [("save", 3), ("evaluate", 4), ("evaluate", 6), ("save", 6)]
    records = list(read_metrics(tmp_path))
    assert [(r["step"], "held_out_loss" in r) for r in records] == [
        (2, False), (4, False), (4, True), (6, False), (6, True)
    ]  # fmt: skip
    assert set(records[0]) == {"step", "loss", "loss_mean", "step_time", "data_wait", "samples/s", "host_memory"}
    assert 0 <= records[0]["data_wait"] <= records[0]["step_time"]
    np.testing.assert_allclose(records[0]["samples/s"], 2 / records[0]["step_time"])


def test_a_line_has_the_mean_loss_since_the_line_before(tmp_path: Path) -> None:
    run(tmp_path, {3: 5.0})
    lines = [record for record in read_metrics(tmp_path) if "loss" in record]
    assert [(r["loss"], r["loss_mean"]) for r in lines] == [(1.0, 1.0), (1.0, 3.0), (1.0, 1.0)]


@pytest.mark.parametrize("bad", [3, 4, 6])
def test_non_finite_loss_names_its_frames(tmp_path: Path, bad: int) -> None:
    frames = f"{100 * (bad - 1)}, {100 * (bad - 1) + 1}"
    with pytest.raises(TrainingError, match=rf"update {bad}: loss nan; .*frames {frames}:"):
        run(tmp_path, {bad: float("nan")}, log_every=6, save_every=6, eval_every=6)


def test_as_many_non_finite_updates_as_are_tolerated_are_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    losses = {2: float("nan"), 3: float("inf")}
    with pytest.raises(TrainingError, match=r"update 3: loss inf; .*--resume and a higher --skip-nonfinite than 1"):
        run(tmp_path, losses, skip=1)
    assert "update 2: loss nan; it changes nothing" in caplog.text
    assert "frames 100, 101" in caplog.text
    (tmp_path / "metrics.jsonl").unlink()
    run(tmp_path, losses, skip=2)
    assert [(r["step"], r.get("loss"), r.get("skipped")) for r in read_metrics(tmp_path) if "step_time" in r] == [
        (2, None, 1), (4, 1.0, 2), (6, 1.0, 2)
    ]  # fmt: skip


def test_a_run_that_is_asked_to_stop_saves_and_ends(tmp_path: Path) -> None:
    assert run(tmp_path, {}, stop_after=4) == [("save", 3), ("save", 4)]
    assert [r["step"] for r in read_metrics(tmp_path)] == [2, 4]


def test_nothing_is_saved_after_a_non_finite_update(tmp_path: Path) -> None:
    """With a save after every update, the bad one is noticed before its save."""
    written: list[int] = []

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        del batch
        done = int(state.step) + 1
        return TrainState(jnp.int32(done), {}, (), None), {"loss": jnp.float32(jnp.inf if done == 3 else 1.0)}

    call = Callbacks(lambda _: {}, lambda step, _: written.append(step))
    with MetricsLog(tmp_path, start=0, steps=6) as log, pytest.raises(TrainingError, match="update 3"):
        fit(STATE, step, batches(), make_mesh(), Cadence(6, 6, 6, 1), log, call)
    assert written == [1, 2]


def test_a_resumed_log_loses_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "lo']))
    with MetricsLog(tmp_path, start=2, steps=6) as log:
        log.write(3, {"loss": 2.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_unwritable_metrics_are_an_error_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot be written"):
        MetricsLog(tmp_path, start=0, steps=1).write(1, {"loss": 1.0})


def test_held_out_loss_weighs_batches_by_their_valid_entries() -> None:
    parts = [(jnp.float32(6), jnp.float32(2)), (jnp.float32(1), jnp.float32(8))]
    scores = mean_scores(lambda _, i: {"loss": parts[i]}, itertools.islice(batches(), 2), make_mesh())
    assert scores == {"loss": pytest.approx(0.7)}


def test_an_update_that_compiles_again_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Batches 3 and 5 are larger: 3 compiles again and says so, 5 finds 3's program."""

    def sizes() -> Iterator[Batch]:
        for i in range(6):
            yield make_batch(4 if i in (3, 5) else 2, CONFIG)

    @jax.jit
    def program(actions: Array) -> Array:
        return jnp.sum(actions) * 0

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
        return state, {"loss": program(batch.actions)}

    with MetricsLog(tmp_path, start=0, steps=6) as log, caplog.at_level("WARNING"):
        fit(STATE, step, sizes(), make_mesh(), Cadence(6, 1, 6, 6), log, Callbacks(lambda _: {}, lambda *_: None))
    (record,) = caplog.records
    assert record.getMessage().startswith("update 4 compiled 1 program(s) again")
