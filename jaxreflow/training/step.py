"""One training step for every loss.

A loss is a function `(trainable, frozen, teacher, batch, draws) -> (sum, count)`. Its value is the quotient over the whole
global batch. Noise and time are drawn for that whole batch before it is split. So neither gradient accumulation nor the
number of devices changes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from jaxreflow import flow
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.types import Batch, Params
from jaxreflow.support.mesh import BATCH_AXES, batch_sharding, fsdp_axis, parameter_spec, replicated, split_over_fsdp
from jaxreflow.training.losses import Draws, LossFunction

Metrics: TypeAlias = dict[str, Array]
Draw: TypeAlias = Callable[[Array, int], Draws]


@flax.struct.dataclass
class TrainState:
    """What an update changes: updates done, trained parameters, optimizer state, moving average (None: off)."""

    step: Int[Array, ""]
    trainable: Params
    opt_state: Any
    ema: Params | None

    @property
    def averaged(self) -> Params:
        """The moving average where it is kept, else the parameters themselves."""
        return self.trainable if self.ema is None else self.ema


def init_state(trainable: Params, optimizer: optax.GradientTransformation, *, ema: bool) -> TrainState:
    """The state before the first update; the moving average starts at the parameters."""
    return TrainState(jnp.int32(0), trainable, optimizer.init(trainable), trainable if ema else None)


def make_draw(law: flow.TimeLaw, noises: int, config: ModelConfig, *, times: int = 1) -> Draw:
    """`(key, B) -> Draws` for M noises `[B, M, C, A]` per observation and T times per noise, `[B, M * T]`."""

    def draw(key: Key[Array, ""], batch_size: int) -> Draws:
        noise_key, time_key = jax.random.split(key)
        noise = flow.sample_noise(noise_key, (batch_size, noises, config.chunk_size, config.max_action_dim))
        return Draws(noise, law(time_key, (batch_size, noises * times)))

    return draw


def make_train_step(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    draw: Draw,
    mesh: Mesh,
    *,
    accumulation: int = 1,
    ema_decay: float = 0.0,
    reduce_dtype: str = "float32",
) -> Callable[[TrainState, Params, Params, Batch, Array], tuple[TrainState, Metrics]]:
    """The jitted update `(state, frozen, teacher, batch, key) -> (state, {loss, grad_norm, lr})`; `state` is donated.

    The step's key is `fold_in(key, state.step)`. An update whose loss or gradient is not finite changes nothing but the
    number of updates. Devices send each other their gradients in `reduce_dtype`, once per update, and nothing else but
    scalars. Where the state is split over "fsdp", its parameters are gathered once per update, and of the gradients each
    device gets its part.
    """
    mean_gradients = _mean_gradients(loss_fn, mesh, accumulation, reduce_dtype)

    def train_step(
        state: TrainState, frozen: Params, teacher: Params, batch: Batch, key: Array
    ) -> tuple[TrainState, Metrics]:
        draws = draw(jax.random.fold_in(key, state.step), batch.index.shape[0])
        loss, gradients = mean_gradients(state.trainable, frozen, teacher, batch, draws)
        norm = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        ema = None if state.ema is None else _average(state.ema, trainable, state.step, ema_decay)
        new = TrainState(state.step, trainable, opt_state, ema)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, state)
        new = split_over_fsdp(new.replace(step=state.step + 1), mesh)
        metrics = {"loss": loss, "grad_norm": norm, "lr": schedule(state.step)}
        return new, jax.lax.with_sharding_constraint(metrics, replicated(mesh))

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(
    loss_fn: LossFunction, draw: Draw, mesh: Mesh
) -> Callable[[Params, Params, Params, Batch, Array], tuple[Array, Array]]:
    """The jitted loss `(trainable, frozen, teacher, batch, key) -> (sum, count)`."""

    def eval_step(trainable: Params, frozen: Params, teacher: Params, batch: Batch, key: Array) -> tuple[Array, Array]:
        draws = jax.lax.with_sharding_constraint(draw(key, batch.index.shape[0]), batch_sharding(mesh))
        return loss_fn(trainable, frozen, teacher, batch, draws)

    return jax.jit(eval_step, out_shardings=replicated(mesh))


def _mean_gradients(
    loss_fn: LossFunction, mesh: Mesh, accumulation: int, reduce_dtype: str
) -> Callable[[Params, Params, Params, Batch, Draws], tuple[Float[Array, ""], Params]]:
    """`(trainable, frozen, teacher, batch, draws) -> (loss, gradient)` over all examples of all devices.

    Sums are added up and divided once, so unequal counts weigh as they should.
    """
    sums = functools.partial(_sums, jax.value_and_grad(loss_fn, has_aux=True), accumulation)
    if mesh.size == 1:  # A CPU would copy the gradients even to itself.
        return lambda *inputs: _mean(*sums(jnp.float32(0), *inputs))
    return functools.partial(_mean_over_devices, sums, mesh, reduce_dtype)


def _mean_over_devices(
    sums: Callable[..., tuple[Array, Array, Params]], mesh: Mesh, reduce_dtype: str, trainable: Params, *inputs: Any
) -> tuple[Float[Array, ""], Params]:
    """The mean of every device's `sums`; gradients are summed over devices once, after the last part."""

    def on_each_device(trainable: Params, *own_inputs: Any) -> tuple[Array, Params]:
        # Parameters that count as equal everywhere would have their gradients summed over devices at every use.
        zero, trainable = _per_device((jnp.float32(0), trainable))
        loss, count, gradients = sums(zero, trainable, *own_inputs)
        sent = jax.tree.map(lambda g: g.astype(reduce_dtype), gradients)
        loss, count = jax.lax.psum((loss, count), BATCH_AXES)
        return _mean(loss, count, jax.tree.map(lambda g: g.astype(jnp.float32), _sum_over_devices(sent, mesh)))

    whole, split = PartitionSpec(), PartitionSpec(BATCH_AXES)
    parts = jax.tree.map(lambda x: parameter_spec(x.shape, mesh.shape["fsdp"]), trainable)
    trainable = jax.lax.with_sharding_constraint(trainable, replicated(mesh))
    mapped = jax.shard_map(
        on_each_device, mesh=mesh, in_specs=(whole, whole, whole, split, split), out_specs=(whole, parts)
    )
    return mapped(trainable, *inputs)


def _sums(
    gradient_of_sum: Callable[..., tuple[tuple[Array, Array], Params]],
    accumulation: int,
    zero: Array,
    trainable: Params,
    frozen: Params,
    teacher: Params,
    *examples: Any,
) -> tuple[Array, Array, Params]:
    """Loss, count and gradients, each added up over `accumulation` parts of this device's examples (batch and draws).

    Every part takes its examples from all devices, so none moves.
    """
    if accumulation == 1:
        (loss, count), gradients = gradient_of_sum(trainable, frozen, teacher, *examples)
        return loss, count, gradients

    leaves, tree = jax.tree.flatten(examples)

    def add(total: tuple[Array, Array, Params], part: list[Array]) -> tuple[tuple[Array, Array, Params], None]:
        (loss, count), gradients = gradient_of_sum(trainable, frozen, teacher, *jax.tree.unflatten(tree, part))
        return jax.tree.map(jnp.add, total, (loss, count, gradients)), None

    parts = [jnp.moveaxis(x.reshape(-1, accumulation, *x.shape[1:]), 1, 0) for x in leaves]
    return jax.lax.scan(add, (zero, zero, jax.tree.map(jnp.zeros_like, trainable)), parts)[0]


def _sum_over_devices(gradients: Params, mesh: Mesh) -> Params:
    """Gradients summed over all devices; of those that are split over "fsdp" each device gets its part only."""

    def total(g: Array) -> Array:
        axis = fsdp_axis(g.shape, mesh.shape["fsdp"])
        if axis is None:
            return jax.lax.psum(g, BATCH_AXES)
        return jax.lax.psum(jax.lax.psum_scatter(g, "fsdp", scatter_dimension=axis, tiled=True), "data")

    return jax.tree.map(total, gradients)


def _mean(loss: Array, count: Array, gradients: Params) -> tuple[Float[Array, ""], Params]:
    # A batch that lies in padding altogether has nothing to learn from, and no gradient.
    count = jnp.maximum(count, 1.0)
    return loss / count, jax.tree.map(lambda g: g / count, gradients)


def _per_device(tree: Any) -> Any:
    """The same values, of which each device has its own."""
    return jax.lax.pcast(tree, BATCH_AXES, to="varying")


def _average(ema: Params, params: Params, step: Array, decay: float) -> Params:
    """Moving average whose decay rises as (1 + n) / (10 + n), so that short runs leave their first weights behind."""
    count = step.astype(jnp.float32)
    rate = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
    return jax.tree.map(lambda old, new: old + (1.0 - rate) * (new - old), ema, params)
