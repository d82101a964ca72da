"""What a user holds: a SmolVLA policy that maps observations to actions, with LeRobot's method names."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Float32

from jaxreflow import flow
from jaxreflow.errors import ConfigError, ProcessorError
from jaxreflow.model.types import Observation, Params
from jaxreflow.policy.candidates import choose
from jaxreflow.policy.observation import TASK, Transforms, example_observation
from jaxreflow.policy.real_time_chunking import make_guidance, no_guidance, read_left_over
from jaxreflow.policy.sampling import Programs, Seen, check_candidates, form_of, refusing_too_many
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy, save_pretrained
from jaxreflow.policy.seen import SeenContext


class SmolVLAPolicy:
    """A SmolVLA policy on JAX: LeRobot's checkpoints, names and units."""

    def __init__(self, checkpoint: SavedPolicy, params: Params, transforms: Transforms, *, seed: int = 0) -> None:
        """`params` may come from elsewhere than the checkpoint's file, as while training."""
        self._identity = object()
        self.checkpoint = checkpoint
        self.config = checkpoint.policy
        self._take(params)
        self.transforms = transforms
        self._key = jax.random.key(seed)
        self._draws = 0
        self._queue: deque[np.ndarray] = deque(maxlen=self.config.n_action_steps)
        # The rest of the chunk whose beginning is in the queue.
        self._left_over: np.ndarray | None = None

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
        """The network's parameters in float32. ConfigError if others of other shapes are assigned."""
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        _check_shapes(params, self._params)
        self._take(params)

    def _take(self, params: Params) -> None:
        self._params = jax.tree.map(jnp.asarray, params)
        self._programs = Programs(self._params, self.checkpoint.config, self._identity)

    def compile(
        self,
        num_steps: int | None = None,
        batch_size: int = 1,
        image_sizes: Mapping[str, tuple[int, int]] | None = None,
        guided: bool = False,
        candidates: int = 1,
        separate: bool = False,
    ) -> float:
        """Compiles the sampler ahead of time and runs it once, so that no action has to wait for it; returns the seconds.

        `num_steps` defaults to the config's. `image_sizes` has the (height, width) of every camera that will be given,
        by its name in observations; the default is all cameras as `input_features` has them. It holds for uint8 images.
        `guided` compiles what `prev_chunk_left_over` needs without candidates, `candidates` the choice among so many chunks.
        `separate` compiles `observe`, and chunks from its context. Observations of other forms compile when they first come.
        May be called for several forms; assigning `params` forgets them all.

        Raises:
            ConfigError: `num_steps`, `batch_size`, `candidates` or an image's size is not positive, there is no such camera, or
                so many candidates need more memory than there is.
        """
        start = time.perf_counter()
        steps, count = self._num_steps(num_steps), _candidates(candidates)
        if guided and count > 1:
            raise ConfigError(
                "`guided`: expected False with `candidates`, which choose without guidance; leave one out"
            )
        example = example_observation(self.transforms, batch_size, image_sizes)
        inputs: Observation | Seen = self.transforms.prepare(example)
        seen = None
        if separate:
            self._programs.compile(form_of(inputs, None), inputs)
            seen = self.observe(example)
            inputs = Seen(seen.context, inputs.state)
        if count > 1:
            check_candidates(self._noise_shape(batch_size, count))
        noise = jax.ShapeDtypeStruct(self._noise_shape(batch_size, count), jnp.float32)
        guidance = no_guidance(self.config, batch_size) if guided else None
        self._programs.compile(form_of(inputs, steps, count, guided), inputs, noise, guidance)
        # What draws the noise compiles with it; the key is one that is drawn from, too, and the counter stays.
        key = jax.random.fold_in(self._key, self._draws)
        left_over = np.zeros((0, self.config.action_dim)) if guided else None
        self.predict_action_chunk(
            example, num_steps=steps, key=key, context=seen, candidates=count, prev_chunk_left_over=left_over
        )
        return time.perf_counter() - start

    def observe(self, observation: Mapping[str, Any]) -> SeenContext:
        """Looks at images and language, which takes most of a chunk's time; `predict_action_chunk(context=...)` adds a newer state.

        So a robot may look less often than it acts, and pays with older images.

        Raises:
            ProcessorError: the observation has the wrong form.
        """
        prepared = self.transforms.prepare(observation)
        tasks = self.transforms.tasks(observation, len(prepared.state))
        return SeenContext(self._programs.run(form_of(prepared, None), prepared), self._programs.weights, tuple(tasks))

    def predict_action_chunk(
        self,
        observation: Mapping[str, Any],
        noise: Any = None,
        num_steps: int | None = None,
        key: Array | None = None,
        *,
        context: SeenContext | None = None,
        candidates: int = 1,
        prev_chunk_left_over: Any = None,
        inference_delay: int | None = None,
        execution_horizon: int | None = None,
        prefix_attention_schedule: str | None = None,
        max_guidance_weight: float | None = None,
    ) -> Float32[np.ndarray, "B C d"]:
        """A chunk of actions in dataset units, `[B, chunk_size, action_dim]`.

        `noise` is `[B, chunk_size, max_action_dim]`; without it, it is drawn from `key`, or from the policy's
        seed and a counter. `num_steps` defaults to the config's. With `context`, of `observe`, the observation's images are not
        read, and may be absent.

        With `prev_chunk_left_over` the chunk agrees with actions that are on their way already (real-time chunking). These are
        the last chunk's actions that are not executed yet, `[T, d]` or `[B, T, d]` in dataset units, or a list of `[T, d]` where
        T differs between robots. The first `inference_delay` of them (default 0) will be executed before the new chunk is there,
        and the guidance ends at `execution_horizon`. `prefix_attention_schedule` is "linear", "exp", "ones" or "zeros". Defaults
        are those of the config's `rtc_config`, else LeRobot's. The default of `max_guidance_weight` is at most the number of
        steps: more would overshoot.

        With `candidates` K above 1, K chunks are drawn for one look at the observation (`noise` is then
        `[B, K, chunk_size, max_action_dim]`), and none is guided. The one that agrees best with `prev_chunk_left_over` is taken,
        or without it their medoid; see `policy.candidates`.

        Raises:
            ProcessorError: the observation, the noise or the left-over has the wrong form.
            ConfigError: `num_steps`, `candidates` or one of the guidance's settings is out of its range, or the context is of
                another policy, of weights that were replaced, of another batch size, or of another task.
        """
        steps, count = self._num_steps(num_steps), _candidates(candidates)
        inputs: Observation | Seen
        if context is None:
            inputs = self.transforms.prepare(observation)
        elif not isinstance(context, SeenContext):
            raise ConfigError(
                f"`context`: expected what `observe` returned, found {type(context).__name__}; call `observe` with the observation"
            )
        else:
            inputs = Seen(context.context, self.transforms.prepare_state(observation))
            context.check(self._programs.weights, len(inputs.state))
            if TASK in self.transforms.renamed(observation):
                context.check_tasks(self.transforms.tasks(observation, context.batch_size))
        guidance, left_over = None, None
        settings: dict[str, Any] = {
            "inference_delay": inference_delay,
            "execution_horizon": execution_horizon,
            "prefix_attention_schedule": prefix_attention_schedule,
            "max_guidance_weight": max_guidance_weight,
        }
        batch = len(inputs.state)
        if prev_chunk_left_over is not None:
            left_over = read_left_over(prev_chunk_left_over, self.transforms, batch)
        if count > 1:
            _refuse_guidance(settings)
        elif left_over is not None:
            guidance = make_guidance(left_over, self.transforms.policy, batch, steps, **settings)
        shape, form = self._noise_shape(batch, count), form_of(inputs, steps, count, guidance is not None)
        if count > 1:
            # Before the noise is drawn: too many candidates are an error, and not the end of this process.
            check_candidates(shape)
            self._programs.compile(form, inputs, jax.ShapeDtypeStruct(shape, jnp.float32), guidance)
        with refusing_too_many(count):
            chunks = np.asarray(self._programs.run(form, inputs, self._noise(noise, key, shape), guidance))
        if count == 1:
            return self.transforms.unnormalize_action(chunks[:, 0])
        chosen = choose(chunks[..., : self.config.action_dim], left_over)
        return self.transforms.unnormalize_action(chunks[np.arange(batch), chosen])

    def _noise_shape(self, batch_size: int, candidates: int) -> tuple[int, int, int, int]:
        return batch_size, candidates, self.config.chunk_size, self.config.max_action_dim

    def _noise(self, noise: Any, key: Array | None, shape: tuple[int, ...]) -> Float[Array, "B K C A"]:
        # Outside, one chunk has no axis of candidates.
        outer = shape if shape[1] > 1 else (shape[0], *shape[2:])
        if noise is None:
            noise = flow.sample_noise(self._next_key() if key is None else key, outer)
        if np.shape(noise) != outer:
            axes = "batch, candidates, chunk" if shape[1] > 1 else "batch, chunk"
            raise ProcessorError(
                f"`noise`: expected shape {list(outer)} ({axes}, padded action dims), found {list(np.shape(noise))}"
            )
        return jnp.asarray(noise, jnp.float32).reshape(shape)

    def select_action(
        self,
        observation: Mapping[str, Any],
        noise: Any = None,
        num_steps: int | None = None,
        key: Array | None = None,
        **options: Any,
    ) -> Float32[np.ndarray, "B d"]:
        """The next action in dataset units, `[B, action_dim]`, from a queue of the last chunk's first `n_action_steps`.

        The queue is refilled when it is empty; only then do the arguments, `predict_action_chunk`'s, count. With `candidates`
        the rest of the last chunk is the left-over, unless another is given. With `n_action_steps` equal to the chunk's size
        nothing is left, and the medoid is taken.
        """
        if not self._queue:
            if options.get("candidates", 1) != 1:
                options.setdefault("prev_chunk_left_over", self._left_over)
            chunk = self.predict_action_chunk(observation, noise, num_steps, key, **options)
            executed = self.config.n_action_steps
            self._queue.extend(chunk[:, i] for i in range(executed))
            self._left_over = chunk[:, executed:]
        return self._queue.popleft()

    def reset(self) -> None:
        """Forgets the queued actions and what is left of the last chunk; call it when an episode starts."""
        self._queue.clear()
        self._left_over = None

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


def _check_shapes(params: Params, others: Params) -> None:
    """ConfigError unless these are all parameters of the same network as the others."""
    expected, found = ({path: np.shape(leaf) for path, leaf in flatten_dict(tree).items()} for tree in (others, params))
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            wanted, got = (list(shapes[path]) if path in shapes else "none" for shapes in (expected, found))
            raise ConfigError(
                f"`params`: {'/'.join(path)}: expected {wanted}, found {got}; give all of this network's parameters"
            )


def _candidates(count: Any) -> int:
    if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
        raise ConfigError(f"`candidates`: expected a whole number of at least 1, found {count!r}")
    return int(count)


def _refuse_guidance(settings: Mapping[str, Any]) -> None:
    given = [f"`{name}`" for name, value in settings.items() if value is not None]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: expected none with `candidates` above 1, which choose without guidance; leave one out"
        )
