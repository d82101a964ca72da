"""Closed loops in parallel environments: each observation to a chunk, its first actions executed, until every episode ends."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from jaxtyping import Array, Bool, Float, Int

from jaxreflow import flow
from jaxreflow.sim.environment import ActionChunks, EnvOptions, make_env, policy_observation

# From observations in the policy's names and noise `[N, C, A]` to chunks of actions `[N, C, D]`.
Act: TypeAlias = Callable[[Mapping[str, Any], Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What became of each episode, in the order of the seeds."""

    success: Bool[np.ndarray, " E"]
    steps: Int[np.ndarray, " E"]
    queries: Int[np.ndarray, " E"]


@contextlib.contextmanager
def parallel_envs(name: str, task: str, options: EnvOptions, count: int, chunk_size: int) -> Iterator[AsyncVectorEnv]:
    """`count` environments, each in a process of its own, that execute chunks of actions."""
    make = functools.partial(_make_chunked, name, task, options, chunk_size)
    envs = AsyncVectorEnv([make] * count, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
    try:
        yield envs
    finally:
        envs.close()


def _make_chunked(name: str, task: str, options: EnvOptions, chunk_size: int) -> gymnasium.Env:
    return ActionChunks(make_env(name, task, options), chunk_size)


@functools.partial(jax.jit, static_argnames="shape")
def episode_noise(seeds: Int[Array, " N"], queries: Int[Array, " N"], shape: tuple[int, int]) -> Float[Array, "N C A"]:
    """Noise for each episode's next chunk: it depends on the episode's seed and the number of its query only.

    So policies that are compared on the same seeds get the same noise, however many environments run at once.
    """

    def draw(seed: Array, query: Array) -> Array:
        return flow.sample_noise(jax.random.fold_in(jax.random.key(seed), query), shape)

    return jax.vmap(draw)(seeds, queries)


def rollout(
    envs: SyncVectorEnv | AsyncVectorEnv,
    act: Act,
    task: str,
    seeds: Sequence[int],
    *,
    noise_shape: tuple[int, int],
    n_action_steps: int,
    progress: Callable[[int], Any] = int,
) -> Outcomes:
    """Runs an episode per seed; `noise_shape` is the chunk's and the padded actions' length, `progress` hears of each end.

    A free environment takes the next seed, so that none waits for the longest episode.
    """
    result = Outcomes(*(np.zeros(len(seeds), kind) for kind in (np.bool_, np.int64, np.int64)))
    # The episode in each environment; one that has no more to do repeats its last one unheeded.
    episode = np.minimum(np.arange(envs.num_envs), len(seeds) - 1)
    running = np.arange(envs.num_envs) < len(seeds)
    waiting = iter(range(envs.num_envs, len(seeds)))
    observation, _ = envs.reset(seed=[int(seeds[i]) for i in episode])
    while running.any():
        noise = episode_noise(np.asarray(seeds)[episode], result.queries[episode], noise_shape)
        chunk = act(policy_observation(observation, [task] * envs.num_envs), noise)
        observation, _, terminated, truncated, info = envs.step(chunk[:, :n_action_steps])
        result.steps[episode[running]] += info["steps"][running]
        result.queries[episode[running]] += 1
        over = terminated | truncated
        ended = running & over
        result.success[episode[ended]] = info["is_success"][ended]
        for slot in np.flatnonzero(ended):
            following = next(waiting, None)
            running[slot] = following is not None
            episode[slot] = episode[slot] if following is None else following
        progress(int(ended.sum()))
        if over.any():
            observation, _ = envs.reset(seed=[int(seeds[i]) for i in episode], options={"reset_mask": over})
    return result
