"""What a policy runs: chunks from an observation, or from what was seen of one and a newer state."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreflow import flow, model
from jaxreflow.errors import ConfigError
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import stored_in_compute_dtype
from jaxreflow.model.types import Context, HostOrDevice, Observation, Params
from jaxreflow.policy.seen import Weights
from jaxreflow.support.device_memory import device_memory
from jaxreflow.support.jax_errors import is_out_of_memory


@flax.struct.dataclass
class Seen:
    """An observation whose images and language went through the network already."""

    context: Context
    state: Float[HostOrDevice, "B max_state_dim"]


@functools.partial(jax.jit, static_argnames=("config", "num_steps"))
def sample_chunks(
    params: Params,
    observation: Observation | Seen,
    noise: Float[Array, "B M C A"],
    guidance: flow.Guidance | None = None,
    *,
    config: ModelConfig,
    num_steps: int,
) -> Float[Array, "B M C A"]:
    """Integrates M noises per observation to chunks of normalised, padded actions with `num_steps` Euler steps."""
    state = jnp.asarray(observation.state)
    context = (
        observation.context if isinstance(observation, Seen) else model.observe(params, observation, config=config)
    )
    memory = model.memorise(params, context, state, config=config)

    def velocity(x_t: Array, t: Array) -> Array:
        return model.velocity(params, memory, x_t, t, config=config)

    return flow.euler(velocity if guidance is None else flow.guide(velocity, guidance), noise, num_steps)


@functools.partial(jax.jit, static_argnames="config")
def see(params: Params, observation: Observation, *, config: ModelConfig) -> Context:
    """The context of an observation's images and language; its state is not read."""
    return model.observe(params, observation, config=config)


class Form(NamedTuple):
    """All that a compiled program depends on besides its policy."""

    num_steps: int | None
    """None: `see`, which takes no steps."""
    candidates: int
    guided: bool
    structure: Hashable
    leaves: tuple[tuple[tuple[int, ...], Any], ...]


def form_of(inputs: Observation | Seen, num_steps: int | None, candidates: int = 1, guided: bool = False) -> Form:
    """The form of a call with these inputs."""
    leaves, structure = jax.tree.flatten(inputs)
    return Form(num_steps, candidates, guided, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))


class Programs:
    """What a policy's weights run: programs compiled ahead of time for the forms that were asked for, else JAX's own."""

    def __init__(self, params: Params, config: ModelConfig, policy: object) -> None:
        # What sampling reads, so that no call rounds all weights anew; in float32 the same arrays.
        self._stored = stored_in_compute_dtype(params, config)
        self._config = config
        # A compiled program takes its arrays from where they were when it was compiled.
        self._compiled: dict[Form, jax.stages.Compiled] = {}
        self.weights = Weights(policy)

    def run(self, form: Form, inputs: Observation | Seen, *rest: Any) -> Any:
        """`see` of the inputs, or `sample_chunks` given noise and guidance as `rest`."""
        if form in self._compiled:
            return self._compiled[form](self._stored, jax.tree.leaves(inputs), *rest)
        return self._call(form, self._stored, inputs, *rest)

    def compile(self, form: Form, inputs: Observation | Seen, *rest: Any) -> None:
        """Compiles ahead of time, unless it was done; of arrays only shapes and dtypes count.

        Raises:
            ConfigError: so many candidates need more memory than the device has.
        """
        if form in self._compiled:
            return
        # As leaves: JAX describes a program's arguments in their own classes, and these classes hold nothing but arrays.
        leaves, structure = jax.tree.flatten(inputs)

        def program(params: Params, leaves: list[Array], *rest: Any) -> Any:
            return self._call(form, params, jax.tree.unflatten(structure, leaves), *rest)

        compiled = jax.jit(program).lower(self._stored, leaves, *rest).compile()
        if form.candidates > 1:
            _check_memory(compiled, form.candidates)
        self._compiled[form] = compiled

    def _call(self, form: Form, params: Params, inputs: Any, *rest: Any) -> Any:
        if form.num_steps is None:
            return see(params, inputs, config=self._config)
        return sample_chunks(params, inputs, *rest, config=self._config, num_steps=form.num_steps)


def _check_memory(compiled: jax.stages.Compiled, candidates: int) -> None:
    analysis: Any = compiled.memory_analysis()
    _refuse(candidates, analysis.temp_size_in_bytes + analysis.argument_size_in_bytes + analysis.output_size_in_bytes)


def check_candidates(shape: tuple[int, int, int, int]) -> None:
    """ConfigError if the noise alone, `[B, K, C, A]` in float32, needs more memory than the device has."""
    _refuse(shape[1], 4 * math.prod(shape))


@contextlib.contextmanager
def refusing_too_many(candidates: int) -> Iterator[None]:
    """ConfigError where the device has enough memory for several candidates, and too little of it is free."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if candidates > 1 and is_out_of_memory(error):
            raise ConfigError(f"`candidates`: {candidates} need more memory than is free; give fewer") from error
        raise


def _refuse(candidates: int, needed: int) -> None:
    if needed > (most := device_memory()):
        raise ConfigError(
            f"`candidates`: {candidates} need {needed / 2**30:.1f} GiB, the device has {most / 2**30:.1f}; give fewer"
        )
