"""SnapFlow (arXiv 2604.05656), the rival of reflow in docs/results.md: trains a one-step policy from a teacher and data.

    python -m benchmarks.recipe.snapflow --teacher DIR --dataset DIR --features DIR --out RUN --updates 16000

The loss is the one of Intel's `physicalai-train` 0.3.0 (`physicalai/policies/mixins/snapflow.py`), whose checkpoints LeRobot does
not load. Half of the observations (alpha) learn flow matching on recorded actions. For the others the policy's own two Euler steps
from fresh noise are the goal of one step, weighted by 0.1 (lambda). The network is told where a step shall end: the embedding of
that time passes a small MLP, whose last layer begins at zero, and is added to the embedding of the time at which the step begins.

A policy that acts in one step always steps from 1 to 0. There the MLP's output is one constant vector, which the bias of the next
layer can take. So what is written here is an ordinary SmolVLA, which LeRobot loads, for one step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from configs import metaworld_biased
from jaxreflow import flow
from jaxreflow.errors import ConfigError
from jaxreflow.model import memorise, observe, velocity
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.layers import time_embedding
from jaxreflow.model.params import merge_params
from jaxreflow.model.types import Batch, Params
from jaxreflow.policy.saved import save_pretrained
from jaxreflow.run.checkpoints import CheckpointStore
from jaxreflow.run.config import DatasetConfig, FinetuneConfig
from jaxreflow.run.data import training_batches
from jaxreflow.run.directory import restore, run_identity
from jaxreflow.run.loop import Cadence, Callbacks, fit
from jaxreflow.run.programs import split_weights
from jaxreflow.run.record.metrics import MetricsLog
from jaxreflow.run.record.trackers import Tracking
from jaxreflow.run.setup import Setup, set_up, set_up_devices
from jaxreflow.support.command_line import parse
from jaxreflow.support.command_line import run as run_command
from jaxreflow.support.mesh import make_replicated, sharded_copy
from jaxreflow.training.losses import Draws, LossFunction
from jaxreflow.training.optimizer import make_optimizer, make_schedule
from jaxreflow.training.step import TrainState, init_state, make_draw, make_train_step

SETTINGS = "snapflow.json"
MLP_IN, MLP_OUT = "target_time_mlp_in", "target_time_mlp_out"
ACTION_TIME_MLP_IN = "action_time_mlp_in"

Predict: TypeAlias = Callable[[Array, Array, Array], Array]
"""`(x_t [B, C, A], t [B], s [B])` to the mean velocity from time t to time s, in each of B observations."""


@dataclasses.dataclass(frozen=True)
class SnapFlowConfig:
    """A SnapFlow student with the trained parameters and the schedule of configs/metaworld_biased.py."""

    teacher: str
    """The policy that it starts from."""
    dataset: str
    """Recorded actions: a LeRobotDataset."""
    out: Path
    """The run's folder. A run that was interrupted goes on."""
    features: str | None = None
    """Cached image tokens of the dataset (default: none)."""
    updates: int = 16_000
    """Updates."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Reflow's, or that of Intel's `physicalai-train`."""
    lr: float = 2e-3
    """Peak learning rate."""
    batch_size: int = 16
    """Observations of an update."""
    alpha: float = 0.5
    """Share of observations that learn flow matching."""
    weight: float = 0.1
    """Weight of the other observations' loss (lambda)."""
    seed: int = 0
    """Seed of the data's order and of all noise."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"--alpha must be from 0 to 1, found {self.alpha}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ConfigError(f"--weight must be a number of at least 0, found {self.weight}")
        if 0 < self.alpha < 1 and round(self.alpha * self.batch_size) in (0, self.batch_size):
            raise ConfigError(
                f"--alpha {self.alpha}: expected both kinds of observations among {self.batch_size}; raise --batch-size"
            )


def matching_errors(
    predict: Predict, actions: Float[Array, "B C A"], noise: Float[Array, "B C A"], t: Float[Array, " B"]
) -> Float[Array, "B C A"]:
    """Squared errors of flow matching on recorded actions."""
    return jnp.square(noise - actions - predict(flow.interpolate(actions, noise, t), t, t))


def step_errors(predict: Predict, noise: Float[Array, "B C A"]) -> Float[Array, "B C A"]:
    """Squared errors of one step from 1 to 0 against two Euler steps of the same network, through which no gradient goes."""
    one, half, zero = (jnp.full(noise.shape[:1], time, jnp.float32) for time in (1.0, 0.5, 0.0))
    at_one = predict(noise, one, one)
    at_half = predict(noise - 0.5 * at_one, half, half)
    goal = jax.lax.stop_gradient(0.5 * (at_one + at_half))
    return jnp.square(predict(noise, one, zero) - goal)


def snapflow_loss(network: ModelConfig, action_dim: int, *, alpha: float, weight: float) -> LossFunction:
    """The mean over real action dims, and over positions inside the episode where recorded actions are the goal.

    The batch is in random order, so that its first observations are as good as any to learn flow matching.
    """

    def loss(trainable: Params, frozen: Params, teacher: Params, batch: Batch, draws: Draws) -> tuple[Array, Array]:
        del teacher
        params = merge_params({name: part for name, part in trainable.items() if name not in (MLP_IN, MLP_OUT)}, frozen)
        context = jax.lax.stop_gradient(observe(params, batch.observation, config=network))
        memory = memorise(params, context, jnp.asarray(batch.observation.state), config=network)
        matching = round(alpha * len(batch.actions))

        def predict(rows: slice) -> Predict:
            own = jax.tree.map(lambda part: part[rows], memory)
            return functools.partial(_predict, trainable, params, own, network)

        noise, t = draws.noise[:, 0], draws.t[:, 0]
        first, rest = slice(matching), slice(matching, None)
        valid = jnp.broadcast_to(~jnp.asarray(batch.action_is_pad)[:, :, None], noise.shape)[..., :action_dim]
        matched = matching_errors(predict(first), jnp.asarray(batch.actions)[first], noise[first], t[first])
        total = jnp.sum(matched[..., :action_dim] * valid[first]) if matching else jnp.float32(0)
        count = jnp.sum(valid[first], dtype=jnp.float32)
        if matching < len(noise):
            stepped = step_errors(predict(rest), noise[rest])[..., :action_dim]
            total, count = total + weight * jnp.sum(stepped), count + stepped.size
        return total, count

    return loss


def _predict(
    trainable: Params, params: Params, memory: Any, network: ModelConfig, x_t: Array, t: Array, s: Array
) -> Array:
    """The velocity of a network that is told where its step ends: each observation has a bias of its own."""
    leaves, structure = jax.tree.flatten(memory)

    def one(leaves: list[Array], x_t: Array, t: Array, shift: Array) -> Array:
        layer = params[ACTION_TIME_MLP_IN]
        own = {**params, ACTION_TIME_MLP_IN: {**layer, "bias": layer["bias"] + shift}}
        seen = jax.tree.unflatten(structure, leaves)
        return velocity(own, seen, x_t[None, None], t[None, None], config=network)[0, 0]

    # Of each observation by itself, as a batch of one.
    return jax.vmap(one)([leaf[:, None] for leaf in leaves], x_t, t, _shift(trainable, s, network))


def _shift(trainable: Params, s: Float[Array, " B"], network: ModelConfig) -> Float[Array, "B W"]:
    """What the target time adds to the layer that joins actions and time, whose inputs are the actions' before the time's."""
    width = network.expert_hidden_size
    embedding = time_embedding(s, width, network.min_period, network.max_period)
    hidden = jax.nn.silu(embedding @ trainable[MLP_IN]["kernel"] + trainable[MLP_IN]["bias"])
    told = hidden @ trainable[MLP_OUT]["kernel"] + trainable[MLP_OUT]["bias"]
    return told @ trainable[ACTION_TIME_MLP_IN]["kernel"][width:]


def with_target_time(start: Params, network: ModelConfig, key: Key[Array, ""]) -> Params:
    """The trained parameters and those of the MLP, whose output is zero."""
    width = network.expert_hidden_size
    bound = 1 / np.sqrt(width)
    kernel = jax.random.uniform(key, (width, width), minval=-bound, maxval=bound)
    zeros = {"kernel": jnp.zeros((width, width)), "bias": jnp.zeros(width)}
    return {**start, MLP_IN: {"kernel": kernel, "bias": jnp.zeros(width)}, MLP_OUT: zeros}


def folded(trained: Params, network: ModelConfig) -> Params:
    """Parameters of an ordinary SmolVLA that does the same wherever a step ends at 0."""
    shift = _shift(trained, jnp.zeros(1), network)[0]
    layer = trained[ACTION_TIME_MLP_IN]
    rest = {name: part for name, part in trained.items() if name not in (MLP_IN, MLP_OUT)}
    return {**rest, ACTION_TIME_MLP_IN: {**layer, "bias": layer["bias"] + shift}}


def train(config: SnapFlowConfig) -> None:
    """Trains to the last update, from the last checkpoint if there is one."""
    settings = run_settings(config)
    _check_settings(config)
    config.out.mkdir(parents=True, exist_ok=True)
    mesh = set_up_devices(settings)
    setup = set_up(settings, mesh, config.out)
    weights = split_weights(settings, setup.saved, mesh)
    resolved = settings.optimizer.resolve(setup.saved.policy)
    optimizer = make_optimizer(resolved, settings.steps)
    network = setup.saved.config
    draw = make_draw(flow.beta_time, 1, network)
    loss = snapflow_loss(network, setup.saved.policy.action_dim, alpha=config.alpha, weight=config.weight)
    schedule = make_schedule(resolved, settings.steps)
    update = make_train_step(loss, optimizer, schedule, draw, mesh, ema_decay=settings.ema_decay)
    key, mlp_key = make_replicated(lambda: tuple(jax.random.split(jax.random.key(config.seed))), mesh)
    start = with_target_time(weights.start, network, mlp_key)
    store = CheckpointStore(config.out / "checkpoints", keep=1, keep_every=None)
    identity = run_identity(setup.saved, setup.dataset)
    state = restore(store, sharded_copy(start, mesh, lambda own: init_state(own, optimizer, ema=True)), identity)
    done = int(state.step)
    (config.out / SETTINGS).write_text(json.dumps(_settings(config), indent=2) + "\n", encoding="utf-8")
    save = _make_save(config, settings, setup, store, identity)
    with (
        contextlib.closing(store),
        MetricsLog(config.out, start=done, steps=settings.steps, tracking=Tracking(None)) as log,
    ):
        fit(
            state,
            lambda state, batch: update(state, weights.frozen, {}, batch, key),
            training_batches(setup.data, settings, done),
            mesh,
            Cadence(settings.steps, settings.log_every, settings.steps, settings.save_every),
            log,
            Callbacks(lambda _: {}, save),
        )


def _check_settings(config: SnapFlowConfig) -> None:
    """ConfigError if the folder has a run of other settings; they are written once teacher and data have been found."""
    path = config.out / SETTINGS
    asked = _settings(config)
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else asked
    changed = [name for name, value in asked.items() if {"optimizer": "muon", **found}.get(name) != value]
    if changed:
        raise ConfigError(
            f"{path}: expected the settings of this run, found other {', '.join(changed)}; choose another --out"
        )


def _settings(config: SnapFlowConfig) -> dict[str, Any]:
    """What must be the same when a run goes on. Weights and data are compared by what they are, wherever they lie."""
    return {
        name: value for name, value in vars(config).items() if name not in ("teacher", "dataset", "features", "out")
    }


def run_settings(config: SnapFlowConfig) -> FinetuneConfig:
    """The settings of configs/metaworld_biased.py with this run's paths and length."""
    biased = metaworld_biased.config
    return dataclasses.replace(
        biased,
        policy=dataclasses.replace(biased.policy, path=config.teacher),
        stats_from="policy",
        dataset=DatasetConfig(
            root=config.dataset, features=config.features, cache_frames=0.0 if config.features else 4.0
        ),
        steps=config.updates,
        batch_size=config.batch_size,
        optimizer=dataclasses.replace(
            biased.optimizer, name=config.optimizer, lr=config.lr, decay_steps=config.updates
        ),
        seed=config.seed,
        output_dir=str(config.out),
    )


def _make_save(
    config: SnapFlowConfig, settings: FinetuneConfig, setup: Setup, store: CheckpointStore, identity: dict[str, Any]
) -> Callable[[int, TrainState], None]:
    def save(step: int, state: TrainState) -> None:
        params = jax.device_get(folded(state.averaged, setup.saved.config))
        meta = {**identity, "step": step, "seed": config.seed, "config": dataclasses.asdict(settings)}
        store.save(step, state, meta, lambda out: save_pretrained(out, setup.saved, params, num_steps=1))

    return save


def main() -> int:
    """0 if it was trained, 1 after an error."""
    return run_command(_main, None)


def _main(args: list[str]) -> int:
    train(parse(SnapFlowConfig, args, prog="python -m benchmarks.recipe.snapflow", about=__doc__ or ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
