"""Closed loops in parallel environments: each observation to a chunk, executed as its timing says, until every episode ends."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from jaxtyping import Array, Bool, Float, Int

from jaxreflow import flow
from jaxreflow.sim.environment import ActionChunks, EnvOptions, make_env, policy_observation
from jaxreflow.sim.timing import STOP, Timing, plan


class Query(NamedTuple):
    """What a policy is asked in E environments at once."""

    observation: Mapping[str, Any]
    """In the policy's names."""
    noise: Any
    """`[E, C, A]`, or `[E, K, C, A]` for K candidates."""
    left_over: Sequence[np.ndarray]
    """What is left of each environment's last chunk, `[T, d]`; T differs, and is 0 in a new episode."""
    clock: Int[np.ndarray, " E"]
    """Control steps since the episode began."""


Act: TypeAlias = Callable[[Query], np.ndarray]
"""From a query to chunks of actions `[E, C, d]`."""


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What became of each episode, in the order of the seeds."""

    success: Bool[np.ndarray, " E"]
    steps: Int[np.ndarray, " E"]
    queries: Int[np.ndarray, " E"]
    held: Int[np.ndarray, " E"]
    """Steps in which the robot stood still, as no action was there."""
    jerk: Float[np.ndarray, " E"]
    """Root mean square of the third difference of the arm's positions, in their unit per step^3."""
    jump: Float[np.ndarray, " E"]
    """Mean length of the difference, in units of an action, between the last action of a chunk and the first of the next one where
    one follows the other without a stop; NaN where none does."""
    also: dict[str, Bool[np.ndarray, " E"]]
    """What else the environment says of an episode."""


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
def episode_noise(seeds: Int[Array, " N"], queries: Int[Array, " N"], shape: tuple[int, ...]) -> Float[Array, "N ..."]:
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
    timing: Timing,
    *,
    noise_shape: tuple[int, ...],
    also: Sequence[str] = (),
    progress: Callable[[int], Any] = int,
) -> Outcomes:
    """Runs an episode per seed; `noise_shape` is `[C, A]` or `[K, C, A]`, `also` names entries of `info`, `progress` hears of ends.

    A free environment takes the next seed, so that none waits for the longest episode.
    """
    assert envs.single_action_space.shape is not None
    nothing = np.zeros((0, envs.single_action_space.shape[-1]))
    tracks = [_Track(also=dict.fromkeys(also, False)) for _ in seeds]
    # The episode in each environment; one that has no more to do repeats its last one unheeded.
    episode = np.minimum(np.arange(envs.num_envs), len(seeds) - 1)
    running = np.arange(envs.num_envs) < len(seeds)
    waiting = iter(range(envs.num_envs, len(seeds)))
    left_over, clock, queries = [nothing] * envs.num_envs, np.zeros(envs.num_envs, int), np.zeros(envs.num_envs, int)
    observation, _ = envs.reset(seed=[int(seeds[i]) for i in episode])
    while running.any():
        noise = episode_noise(np.asarray(seeds)[episode], queries, noise_shape)
        chunks = act(Query(policy_observation(observation, [task] * envs.num_envs), noise, left_over, clock))
        waits = timing.delay + np.where(clock == 0, timing.look_delay, 0)
        plans = [
            plan(timing, chunk, rest, int(wait)) for chunk, rest, wait in zip(chunks, left_over, waits, strict=True)
        ]
        observation, _, terminated, truncated, info = envs.step(_stacked([one.actions for one in plans]))
        left_over, clock, queries = [one.left_over for one in plans], clock + info["steps"], queries + 1
        over = terminated | truncated
        ended = running & over
        for slot in np.flatnonzero(running):
            tracks[episode[slot]].add(int(slot), info, plans[slot].chunks)
        for slot in np.flatnonzero(over):
            left_over[slot], clock[slot], queries[slot] = nothing, 0, 0
        for slot in np.flatnonzero(ended):
            following = next(waiting, None)
            running[slot] = following is not None
            episode[slot] = episode[slot] if following is None else following
        progress(int(ended.sum()))
        if over.any():
            observation, _ = envs.reset(seed=[int(seeds[i]) for i in episode], options={"reset_mask": over})
    return _outcomes(tracks)


def _stacked(plans: Sequence[np.ndarray]) -> Float[np.ndarray, "E L d"]:
    """The plans as one array; rows of STOP fill up the shorter ones."""
    stacked = np.full((len(plans), max(map(len, plans)), plans[0].shape[1]), STOP)
    for row, actions in zip(stacked, plans, strict=True):
        row[: len(actions)] = actions
    return stacked


@dataclasses.dataclass
class _Track:
    """What an episode has done so far."""

    also: dict[str, bool]
    success: bool = False
    queries: int = 0
    held: int = 0
    commands: list[np.ndarray] = dataclasses.field(default_factory=list)
    positions: list[np.ndarray] = dataclasses.field(default_factory=list)
    chunks: list[int] = dataclasses.field(default_factory=list)
    """The number of the chunk that each command is from, or -1 where the robot stood still."""

    def add(self, slot: int, info: Mapping[str, np.ndarray], chunks: Int[np.ndarray, " L"]) -> None:
        """The steps of one plan, and whether they are of the chunk that was just asked for (see `Plan.chunks`)."""
        steps = int(info["steps"][slot])
        self.queries += 1
        self.chunks.extend(np.array([-1, self.queries - 1, self.queries])[chunks[:steps]].tolist())
        self.commands.extend(info["commands"][slot, :steps])
        self.positions.extend(info["positions"][slot, :steps])
        self.also = {name: bool(info[name][slot]) for name in self.also}
        self.success, self.held = bool(info["is_success"][slot]), self.held + int(info["held"][slot])

    def jerk(self) -> float:
        thirds = np.diff(np.array(self.positions), n=3, axis=0) if len(self.positions) > 3 else np.zeros((1, 1))
        return float(np.sqrt(np.mean(np.sum(np.square(thirds), axis=1))))

    def jump(self) -> float:
        chunks = np.array(self.chunks)
        switches = (chunks[1:] != chunks[:-1]) & (chunks[1:] >= 0) & (chunks[:-1] >= 0)
        if not switches.any():
            return float("nan")
        return float(np.linalg.norm(np.diff(self.commands, axis=0)[switches], axis=1).mean())


def _outcomes(tracks: Sequence[_Track]) -> Outcomes:
    return Outcomes(
        success=np.array([track.success for track in tracks]),
        steps=np.array([len(track.commands) for track in tracks]),
        queries=np.array([track.queries for track in tracks]),
        held=np.array([track.held for track in tracks]),
        jerk=np.array([track.jerk() for track in tracks]),
        jump=np.array([track.jump() for track in tracks]),
        also={name: np.array([track.also[name] for track in tracks]) for name in tracks[0].also},
    )
