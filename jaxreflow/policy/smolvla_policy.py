"""What a user holds: a SmolVLA policy that maps observations to actions, with LeRobot's method names."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from jaxreflow import flow, model
from jaxreflow.errors import ConfigError, ProcessorError
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import stored_in_compute_dtype
from jaxreflow.model.types import Observation, Params
from jaxreflow.policy.observation import Transforms, example_observation
from jaxreflow.policy.real_time_chunking import make_guidance, no_guidance
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy, save_pretrained


@functools.partial(jax.jit, static_argnames=("config", "num_steps"))
def sample_chunks(
    params: Params,
    observation: Observation,
    noise: Float[Array, "B M C A"],
    guidance: flow.Guidance | None = None,
    *,
    config: ModelConfig,
    num_steps: int,
) -> Float[Array, "B M C A"]:
    """Integrates M noises per observation to chunks of normalised, padded actions with `num_steps` Euler steps."""
    state = jnp.asarray(observation.state)
    memory = model.memorise(params, model.observe(params, observation, config=config), state, config=config)

    def velocity(x_t: Array, t: Array) -> Array:
        return model.velocity(params, memory, x_t, t, config=config)

    return flow.euler(velocity if guidance is None else flow.guide(velocity, guidance), noise, num_steps)


def _form(leaves: list[Any], structure: Hashable, num_steps: int, guided: bool) -> Hashable:
    """All that a compiled sampler depends on besides the policy."""
    return num_steps, guided, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


class SmolVLAPolicy:
    """A SmolVLA policy on JAX: LeRobot's checkpoints, names and units."""

    def __init__(self, checkpoint: SavedPolicy, params: Params, transforms: Transforms, *, seed: int = 0) -> None:
        """`params` may come from elsewhere than the checkpoint's file, as while training."""
        self.checkpoint = checkpoint
        self.config = checkpoint.policy
        self.params = params
        self.transforms = transforms
        self._key = jax.random.key(seed)
        self._draws = 0
        self._queue: deque[np.ndarray] = deque(maxlen=self.config.n_action_steps)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        vlm: str | Path | None = None,
        dtype: str = "float32",
        vision_positions: str = "exact",
        revision: str | None = None,
        stats_from: str | Path | None = None,
        seed: int = 0,
    ) -> SmolVLAPolicy:
        """Reads a policy from a folder or the hub.

        `vlm` is a local folder with the VLM's config and tokenizer, `dtype` that of the computation ("float32" or
        "bfloat16"), `vision_positions` "exact" or "shifted" (as transformers 4.57 in float32), `stats_from` a file with
        other statistics.

        Raises:
            CheckpointError, ConfigError, ProcessorError: the policy cannot be read as it stands.
        """
        checkpoint = load_saved_policy(
            path, vlm=vlm, dtype=dtype, vision_positions=vision_positions, revision=revision, stats_from=stats_from
        )
        return cls(checkpoint, checkpoint.load_params(), checkpoint.load_transforms(), seed=seed)

    @property
    def params(self) -> Params:
        """The network's parameters in float32."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = jax.tree.map(jnp.asarray, params)
        # What sampling reads, so that no call rounds all weights anew; in float32 the same arrays.
        self._stored = stored_in_compute_dtype(self._params, self.checkpoint.config)
        # A compiled program takes its arrays from where they were when it was compiled.
        self._compiled: dict[Hashable, jax.stages.Compiled] = {}

    def compile(
        self,
        num_steps: int | None = None,
        batch_size: int = 1,
        image_sizes: Mapping[str, tuple[int, int]] | None = None,
        guided: bool = False,
    ) -> float:
        """Compiles the sampler ahead of time and runs it once, so that no action has to wait for it; returns the seconds.

        `num_steps` defaults to the config's. `image_sizes` has the (height, width) of every camera that will be given,
        by its name in observations; the default is all cameras as `input_features` has them. It holds for uint8 images.
        `guided` compiles what `prev_chunk_left_over` needs. Observations of other forms compile when they first come.
        May be called for several forms; assigning `params` forgets them all.

        Raises:
            ConfigError: `num_steps`, `batch_size` or an image's size is not positive, or there is no such camera.
        """
        start = time.perf_counter()
        steps = self._num_steps(num_steps)
        example = example_observation(self.transforms, batch_size, image_sizes)
        prepared = self.transforms.prepare(example)
        # As leaves: JAX describes a program's arguments in their own classes, and Observation holds nothing but arrays.
        leaves, structure = jax.tree.flatten(prepared)

        def sample(params: Params, leaves: list[Array], noise: Array, guidance: flow.Guidance | None) -> Array:
            observation = jax.tree.unflatten(structure, leaves)
            return sample_chunks(params, observation, noise, guidance, config=self.checkpoint.config, num_steps=steps)

        noise = jax.ShapeDtypeStruct((batch_size, 1, self.config.chunk_size, self.config.max_action_dim), jnp.float32)
        guidance = no_guidance(self.config, batch_size) if guided else None
        compiled = jax.jit(sample).lower(self._stored, leaves, noise, guidance).compile()
        self._compiled[_form(leaves, structure, steps, guided)] = compiled
        # What draws the noise compiles with it; the key is one that is drawn from, too, and the counter stays.
        key = jax.random.fold_in(self._key, self._draws)
        left_over = np.zeros((0, self.config.action_dim)) if guided else None
        self.predict_action_chunk(example, num_steps=steps, key=key, prev_chunk_left_over=left_over)
        return time.perf_counter() - start

    def predict_action_chunk(
        self,
        observation: Mapping[str, Any],
        noise: Any = None,
        num_steps: int | None = None,
        key: Array | None = None,
        *,
        prev_chunk_left_over: Any = None,
        inference_delay: int | None = None,
        execution_horizon: int | None = None,
        prefix_attention_schedule: str | None = None,
        max_guidance_weight: float | None = None,
    ) -> Float32[np.ndarray, "B C d"]:
        """A chunk of actions in dataset units, `[B, chunk_size, action_dim]`.

        `noise` is `[B, chunk_size, max_action_dim]`; without it, it is drawn from `key`, or from the policy's
        seed and a counter. `num_steps` defaults to the config's.

        With `prev_chunk_left_over` the chunk agrees with actions that are on their way already (real-time chunking). These are
        the last chunk's actions that are not executed yet, `[T, d]` or `[B, T, d]` in dataset units. The first `inference_delay`
        of them (default 0) will be executed before the new chunk is there, and the guidance ends at `execution_horizon`.
        `prefix_attention_schedule` is "linear", "exp", "ones" or "zeros". Defaults are those of the config's `rtc_config`,
        else LeRobot's. The default of `max_guidance_weight` is at most the number of steps: more would overshoot.

        Raises:
            ProcessorError: the observation, the noise or the left-over has the wrong form.
            ConfigError: `num_steps` or one of the guidance's settings is out of its range.
        """
        steps = self._num_steps(num_steps)
        prepared = self.transforms.prepare(observation)
        shape = (len(prepared.state), self.config.chunk_size, self.config.max_action_dim)
        if noise is None:
            noise = flow.sample_noise(self._next_key() if key is None else key, shape)
        if np.shape(noise) != shape:
            raise ProcessorError(
                f"`noise`: expected shape {list(shape)} (batch, chunk, padded action dims), "
                f"found {list(np.shape(noise))}"
            )
        one_noise = jnp.asarray(noise, jnp.float32)[:, None]
        guidance = None
        if prev_chunk_left_over is not None:
            guidance = make_guidance(
                prev_chunk_left_over,
                self.transforms,
                shape[0],
                steps,
                inference_delay=inference_delay,
                execution_horizon=execution_horizon,
                prefix_attention_schedule=prefix_attention_schedule,
                max_guidance_weight=max_guidance_weight,
            )
        leaves, structure = jax.tree.flatten(prepared)
        compiled = self._compiled.get(_form(leaves, structure, steps, guidance is not None))
        if compiled is not None:
            chunks = compiled(self._stored, leaves, one_noise, guidance)
        else:
            network = self.checkpoint.config
            chunks = sample_chunks(self._stored, prepared, one_noise, guidance, config=network, num_steps=steps)
        return self.transforms.unnormalize_action(np.asarray(chunks)[:, 0])

    def select_action(
        self,
        observation: Mapping[str, Any],
        noise: Any = None,
        num_steps: int | None = None,
        key: Array | None = None,
        **guidance: Any,
    ) -> Float32[np.ndarray, "B d"]:
        """The next action in dataset units, `[B, action_dim]`, from a queue of the last chunk's first `n_action_steps`.

        The queue is refilled when it is empty; only then do the arguments, `predict_action_chunk`'s, count.
        """
        if not self._queue:
            chunk = self.predict_action_chunk(observation, noise, num_steps, key, **guidance)
            self._queue.extend(chunk[:, i] for i in range(self.config.n_action_steps))
        return self._queue.popleft()

    def reset(self) -> None:
        """Forgets the queued actions; call it when an episode starts."""
        self._queue.clear()

    def save_pretrained(self, out: str | Path) -> None:
        """Writes the policy as a folder that LeRobot and `from_pretrained` read; see `pretrained.save_pretrained`."""
        save_pretrained(out, self.checkpoint, self.params)

    def _num_steps(self, num_steps: int | None) -> int:
        steps = self.config.num_steps if num_steps is None else num_steps
        if steps < 1:
            raise ConfigError(f"`num_steps` must be at least 1, found {steps}")
        return steps

    def _next_key(self) -> Array:
        self._draws += 1
        return jax.random.fold_in(self._key, self._draws - 1)
