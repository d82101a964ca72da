"""Compiles the training step for a TPU pod, without the pod, and reads what the compiler says of it.

XLA's cost analysis counts the body of a loop once. The teacher's Euler steps are a loop, but layers and noises are none. So one
Euler step is compiled by itself, and its cost is added for each step but the first.

`optimal_seconds` is the compiler's roofline. For every instruction it takes the operations over the chip's peak, and the bytes
over the memory's bandwidth. The larger of the two counts, summed over all instructions. Transfers between chips are left out.
`cycles` sums the scheduler's own estimate of every instruction, as often as the program runs it (`collectives.executions`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, Sharding, SingleDeviceSharding

from benchmarks.collectives import Collective, collectives, executions
from benchmarks.naive import joint_context, naive_loss, sampler_velocity
from benchmarks.workload import full_policy
from jaxreflow.errors import ConfigError
from jaxreflow.model import init_params, memorise, observe, velocity
from jaxreflow.model.config import ModelConfig, VLMConfig
from jaxreflow.model.params import merge_params, split_params, stored_in_compute_dtype, trainable_in_reflow
from jaxreflow.model.types import Batch, HostOrDevice, Observation, Params
from jaxreflow.policy.architecture import network_of
from jaxreflow.run.config import ReflowConfig
from jaxreflow.support.mesh import BATCH_AXES, batch_sharding, replicated
from jaxreflow.training import experimental
from jaxreflow.training.losses import LossFunction, Networks, reflow_loss
from jaxreflow.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from jaxreflow.training.step import init_state, make_draw, make_train_step

ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
"""Keeps libtpu from asking the cloud which TPU this machine has."""

# Weights fetched in slices are put together by a custom call without cost, which the analysis takes to last -1 second.
COMPILER_OPTIONS: dict[str, str | bool] = {"xla_tpu_sliced_prefetch_max_slices": "0"}

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


class Work(NamedTuple):
    """What one chip does in a step."""

    model: ModelConfig
    batch: int
    noises: int
    teacher_steps: int
    reduce_dtype: str
    features: bool


class Cost(NamedTuple):
    """Floating-point operations, bytes read and written, and the roofline's seconds."""

    flops: float
    bytes: float
    optimal_seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The compiler's account of one step on one chip, with memory in bytes."""

    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    program: int
    flops: float
    bytes_accessed: float
    optimal_seconds: float
    cycles: int
    collectives: tuple[Collective, ...]
    compile_seconds: float

    @property
    def hbm(self) -> int:
        """The memory that the step needs at once on the chip."""
        return self.arguments + self.temporaries + self.outputs - self.aliased + self.program


class Formulation(NamedTuple):
    """A loss, what its teacher's sampler keeps of an observation, and one evaluation of that sampler."""

    loss: Callable[[ModelConfig, int], LossFunction]
    keep: Callable[[Params, Observation, ModelConfig], Any]
    velocity: Callable[..., jax.Array]
    own_teacher: bool


FACTORISED = Formulation(
    lambda model, steps: reflow_loss(Networks(model, model), teacher_steps=steps),
    lambda params, seen, model: memorise(
        params, observe(params, seen, config=model), jnp.asarray(seen.state), config=model
    ),
    velocity,
    own_teacher=False,
)
NAIVE = Formulation(
    lambda model, steps: naive_loss(model, teacher_steps=steps),
    lambda params, seen, model: joint_context(params, seen, config=model),
    sampler_velocity,
    own_teacher=True,
)


def pod_mesh(topology: str) -> Mesh:
    """The mesh `("data", "fsdp")` over the chips of a pod such as `v5e:4x4`, with fsdp = 1. ConfigError without libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "the TPU compiler is missing: expected the package libtpu, found none; install it into an environment of its own "
            'with pip install "jaxreflow[tpu]" (in the repository: pip install -e ".[tpu]")'
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    try:
        pod = topologies.get_topology_desc(platform="tpu", topology_name=topology, chips_per_host_bounds=[2, 2, 1])
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f"--topology {topology}: expected a pod such as v5e:4x4 or v5p:4x4x4; {error}") from error
    return Mesh(np.array(pod.devices).reshape(-1, 1), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def full_model(cameras: int, dtype: str) -> ModelConfig:
    """SmolVLA of 450 million parameters, with this many cameras of 512 x 512."""
    return network_of(full_policy(cameras), VLMConfig(), dtype=dtype)


def abstract_batch(model: ModelConfig, size: int, *, features: bool) -> Batch:
    """Shapes of a batch of `size` observations with 48 language tokens, and images of 512 x 512 or their cached tokens."""
    image_tokens = (512 // model.vision.patch_size // model.scale_factor) ** 2

    def zeros() -> Batch:
        pixels: dict[str, HostOrDevice] = {key: jnp.zeros((size, 512, 512, 3), jnp.uint8) for key in model.visual_keys}
        cached: dict[str, HostOrDevice] = {
            key: jnp.zeros((size, image_tokens, model.text.hidden_size), jnp.bfloat16) for key in model.visual_keys
        }
        return Batch(
            observation=Observation(
                images={} if features else pixels,
                image_mask={key: jnp.zeros(size, bool) for key in model.visual_keys},
                tokens=jnp.zeros((size, 48), jnp.int32),
                token_mask=jnp.zeros((size, 48), bool),
                state=jnp.zeros((size, model.max_state_dim)),
                image_tokens=cached if features else {},
            ),
            actions=jnp.zeros((size, model.chunk_size, model.max_action_dim)),
            action_is_pad=jnp.zeros((size, model.chunk_size), bool),
            index=jnp.zeros(size, jnp.int32),
        )

    return jax.eval_shape(zeros)


def abstract_weights(model: ModelConfig, formulation: Formulation) -> tuple[Params, Params, Params]:
    """Shapes of the trained, the frozen and the teacher's parameters, as a run holds them."""

    def weights() -> tuple[Params, Params, Params]:
        start, frozen = split_params(init_params(jax.random.key(0), model), trainable_in_reflow)
        frozen, teacher = (stored_in_compute_dtype(tree, model) for tree in (frozen, start))
        return start, frozen, merge_params(teacher, frozen) if formulation.own_teacher else teacher

    return jax.eval_shape(weights)


def compile_step(work: Work, formulation: Formulation, mesh: Mesh) -> Estimate:
    """Compiles the update of `ReflowConfig`'s defaults, AdamW and moving average included."""
    run = ReflowConfig()
    settings = OptimizerConfig()
    optimizer = make_optimizer(settings, run.steps)
    step: Any = make_train_step(
        formulation.loss(work.model, work.teacher_steps),
        optimizer,
        make_schedule(settings, run.steps),
        make_draw(experimental.TIME_LAWS[run.time_law], work.noises, work.model),
        mesh,
        ema_decay=run.ema_decay,
        reduce_dtype=work.reduce_dtype,
    )
    start, frozen, teacher = abstract_weights(work.model, formulation)
    state = jax.eval_shape(lambda: init_state(jax.tree.map(jnp.zeros_like, start), optimizer, ema=True))
    batch = abstract_batch(work.model, work.batch * mesh.size, features=work.features)
    key = jax.eval_shape(lambda: jax.random.key(0))
    whole = _placed((state, frozen, teacher), replicated(mesh))
    began = time.perf_counter()
    lowered = step.lower(*whole, _placed(batch, batch_sharding(mesh)), _placed(key, replicated(mesh)))
    compiled = lowered.compile(compiler_options=COMPILER_OPTIONS)
    seconds = time.perf_counter() - began
    memory, text = compiled.memory_analysis(), compiled.as_text()
    once, again = _cost(compiled), euler_step_cost(work, formulation, mesh)
    total = Cost(*(a + (work.teacher_steps - 1) * b for a, b in zip(once, again, strict=True)))
    return Estimate(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        flops=total.flops,
        bytes_accessed=total.bytes,
        optimal_seconds=total.optimal_seconds,
        cycles=sum(times * sum(map(int, _CYCLES.findall(body))) for body, times in executions(text)),
        collectives=tuple(collectives(text)),
        compile_seconds=seconds,
    )


def euler_step_cost(work: Work, formulation: Formulation, mesh: Mesh) -> Cost:
    """One step of the teacher's sampler for a chip's share of the batch, compiled by itself."""
    _, frozen, teacher = abstract_weights(work.model, formulation)
    params = teacher if formulation.own_teacher else merge_params(teacher, frozen)
    observation = abstract_batch(work.model, work.batch, features=work.features).observation
    kept = jax.eval_shape(lambda params, seen: formulation.keep(params, seen, work.model), params, observation)
    chunks = jax.ShapeDtypeStruct(
        (work.batch, work.noises, work.model.chunk_size, work.model.max_action_dim), jnp.float32
    )

    def step(params: Params, kept: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        t = jnp.broadcast_to(t, x.shape[:-2])
        return x - formulation.velocity(params, kept, x, t, config=work.model) / work.teacher_steps

    inputs = _placed((params, kept, chunks, jax.ShapeDtypeStruct((), jnp.float32)), _first_chip(mesh))
    return _cost(jax.jit(step).lower(*inputs).compile(compiler_options=COMPILER_OPTIONS))


def _cost(compiled: Any) -> Cost:
    found = compiled.cost_analysis()
    return Cost(found["flops"], found["bytes accessed"], found["optimal_seconds"])


def _first_chip(mesh: Mesh) -> Sharding:
    return SingleDeviceSharding(mesh.devices.flat[0])


def _placed(tree: Any, sharding: Sharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
