"""The benchmarks of update and sampler, on a small policy: the same work on every side, and a floor that is right."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array

from benchmarks import floor, reflow_step, sample
from benchmarks.child import worker
from benchmarks.floor import LANGUAGE_TOKENS, Size
from benchmarks.network import deviation
from benchmarks.reflow_step import ReflowStepConfig
from benchmarks.sample import PARTS, SampleConfig
from benchmarks.workload import full_policy, make_batch
from jaxreflow.model import embed_images, extend, init_params, memorise, observe, velocity
from jaxreflow.model.config import VLMConfig
from jaxreflow.model.params import split_params, trainable_in_reflow
from jaxreflow.model.types import Context, Observation, Params
from jaxreflow.policy.architecture import network_of
from jaxreflow.run.arithmetic import products
from jaxreflow.training import experimental
from jaxreflow.training.losses import Networks, reflow_loss
from jaxreflow.training.step import make_draw

TEACHER = Path(__file__).parent / "assets" / "teacher"
MODEL = network_of(full_policy(cameras=2), VLMConfig())


def counted(function: Any, *arguments: Any) -> float:
    """Operations of every matrix product in a program."""
    return sum(count for _, count in products(jax.make_jaxpr(function)(*arguments).jaxpr))


@pytest.fixture(scope="module")
def params() -> Params:
    """Shapes of the full model's parameters."""
    return jax.eval_shape(lambda: init_params(jax.random.key(0), MODEL))


@pytest.mark.slow
def test_the_floor_counts_every_product(params: Params) -> None:
    batch, rows, x = make_batch(MODEL, 1, 2), 2 * 64 + LANGUAGE_TOKENS, jnp.zeros((1, 3, 50, 32))

    def extended(params: Params, seen: Observation) -> Context:
        return extend(params, observe(params, seen, config=MODEL), seen.state, config=MODEL)

    def moved(params: Params, seen: Observation) -> Array:
        memory = memorise(params, observe(params, seen, config=MODEL), seen.state, config=MODEL)
        return velocity(params, memory, x, jnp.zeros((1, 3)), config=MODEL)

    found = {
        "images": counted(lambda p, o: embed_images(p, o.images, config=MODEL), params, batch.observation),
        "encode": counted(lambda p, o: observe(p, o, config=MODEL), params, batch.observation),
        "extend": counted(extended, params, batch.observation),
        "velocity": counted(moved, params, batch.observation),
    }
    parts = {
        "images": 2 * floor.embed_image(MODEL),
        "encode": floor.encode(MODEL, rows),
        "extend": floor.extend(MODEL, rows),
        "velocity": floor.remember(MODEL, rows + 1) + floor.velocity(MODEL, 3, rows + 1),
    }
    assert found == dict(zip(parts, itertools.accumulate(parts.values()), strict=True))
    whole = floor.sample(MODEL, Size(batch=5, noises=3, cameras=2, steps=7))
    assert whole["loop"] == 5 * 7 * floor.velocity(MODEL, 3, rows + 1)
    assert whole["prefix"] + whole["loop"] / 7 == 5 * found["velocity"]


@pytest.mark.slow
def test_the_floor_of_an_update_is_what_its_gradient_needs(params: Params) -> None:
    """Autodiff has few products more, such as the gradient of the first layer's input."""
    trained, frozen = split_params(params, trainable_in_reflow)
    draws = make_draw(experimental.uniform_time, 4, MODEL)(jax.random.key(0), 1)
    loss = jax.value_and_grad(reflow_loss(Networks(MODEL, MODEL), teacher_steps=10), has_aux=True)
    found = counted(loss, trained, frozen, trained, make_batch(MODEL, 1, 2), draws)
    counts = floor.reflow_step(MODEL, Size(batch=1, noises=4, cameras=2, steps=10))
    assert 0.99 * found < sum(counts.values()) < 1.01 * found


def read(path: Path) -> dict[str, Any]:
    (line,) = path.read_text().splitlines()
    return json.loads(line)


@pytest.mark.slow
def test_updates_with_and_without_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ReflowStepConfig(TEACHER, cameras=1, noises=2, runs=2, steps=2, features=True, json=tmp_path / "lines")
    reflow_step.run(dataclasses.replace(config, against="flow-matching", optimizer="muon"))
    found = read(config.json)
    assert found["floor"]["operations"]["images"] == 0
    updates = found["jaxreflow"]["seconds"]["update"]
    assert found["pairs_per_second"]["max"] == pytest.approx(2 / updates["min"])
    assert found["ratio"]["runs"] == updates["runs"] == 2
    assert found["flow matching"]["peak_bytes"] > 50e6
    assert "of the floor" in capsys.readouterr().out


@pytest.mark.slow
def test_sampling_in_parts(tmp_path: Path) -> None:
    config = SampleConfig(TEACHER, cameras=1, runs=1, steps=2, json=tmp_path / "lines")
    sample.run(config)
    found = read(config.json)
    assert set(found["jaxreflow"]["seconds"]) == set(PARTS)
    assert found["ratio"] == {}
    assert all(times["min"] > 0 for times in found["jaxreflow"]["seconds"].values())


def test_different_results_are_refused() -> None:
    assert deviation([1.0, 4.0], [1.0, 4.1], limit=0.05) == pytest.approx(0.1 / 4.1)
    for wrong in (4.5, float("nan")):
        with pytest.raises(SystemExit, match="do not compute the same"):
            deviation([1.0, wrong], [1.0, 4.0], limit=0.05)


def test_a_worker_that_ends_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with worker("benchmarks.jax_worker", {"task": "nothing"}) as ask, pytest.raises(SystemExit, match=r"'prepare'"):
        ask("prepare")
    assert "KeyError" in capfd.readouterr().err
