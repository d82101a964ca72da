"""Scripted demonstrations as a LeRobotDataset.

    python -m jaxreflow.sim record --env metaworld:wall-detour,button-press-topdown-v3 --episodes 200 120 --out DIR

In part of the episodes the executed action is smoothly disturbed, while the recorded action is the expert's own. So the data show
how to come back. Demonstrations that fail are left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxreflow.data.writer import DatasetFeatures, DatasetWriter
from jaxreflow.errors import ConfigError, SimulationError
from jaxreflow.policy.names import ACTION, STATE
from jaxreflow.sim.environment import EnvOptions, environment, make_env, parse_env, policy_observation
from jaxreflow.support.console import progress
from jaxreflow.support.new_folder import new_directory

TASK = "task"
_DISTURBED_SHARE, _SMOOTHNESS = 0.6, 0.85
_BLOCK = 10


@dataclasses.dataclass(frozen=True)
class RecordConfig:
    """Writes scripted demonstrations as a LeRobotDataset v3.0, which LeRobot reads as it is."""

    env: str
    """NAME:TASK[,TASK...], as metaworld:wall-detour,handle-press-v3 or aloha:transfer-cube."""
    out: Path
    """Folder of the new dataset."""
    episodes: tuple[int, ...] = (50,)
    """Successful episodes per task: one number for all tasks, or one each."""
    seed: int = 1_000
    """Seed of the first episode. Each further attempt takes the next seed. Evaluate on seeds far from these."""
    disturbance: float | None = None
    """Largest scale of the disturbance of executed actions, in their units. 0 leaves them as they are (default: the
    environment's; 0.5 in Meta-World, 0.03 rad in Aloha)."""
    workers: int = 2
    """Processes that simulate."""
    options: EnvOptions = dataclasses.field(default_factory=EnvOptions)

    def __post_init__(self) -> None:
        tasks = parse_env(self.env)[1]
        if len(self.episodes) not in (1, len(tasks)) or min(self.episodes) < 1:
            raise ConfigError(
                f"--episodes: expected one positive number, or one for each of {len(tasks)} tasks, found {self.episodes}"
            )
        for name, least in (("workers", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} must be at least {least}, found {getattr(self, name)}")
        if self.disturbance is not None and not (math.isfinite(self.disturbance) and self.disturbance >= 0):
            raise ConfigError(f"--disturbance: expected 0 or a positive number, found {self.disturbance}")


def record(config: RecordConfig) -> None:
    """Records all tasks, in the order in which they are named.

    Raises:
        ConfigError, SimulationError: a task, its expert or the simulator is missing; nothing is written.
    """
    name, tasks = parse_env(config.env)
    counts = config.episodes * len(tasks) if len(config.episodes) == 1 else config.episodes
    env = environment(name)
    for task in tasks:  # Before the first is recorded, all must be there, with an expert.
        one: Any = make_env(name, task, config.options)
        with contextlib.closing(one):
            one.expert(np.random.default_rng(0))
    about = env.recording
    vectors = {STATE: about.state_names, ACTION: about.action_names}
    features = DatasetFeatures(cameras=env.cameras(config.options), vectors=vectors)
    pool = ProcessPoolExecutor(config.workers, mp_context=multiprocessing.get_context("spawn"))
    with (
        new_directory(config.out) as folder,
        DatasetWriter(folder, features, fps=env.metadata["render_fps"], robot_type=about.robot_type) as writer,
        pool,
    ):
        for task, count in zip(tasks, counts, strict=True):
            with progress(task, count, unit="episode") as advance:
                for episode in _demonstrations(pool, task, count, config):
                    cameras = {key: episode[key] for key in features.cameras}
                    writer.add_episode(episode["task"], {key: episode[key] for key in vectors}, cameras)
                    advance(1)


def _demonstrations(pool: Executor, task: str, count: int, config: RecordConfig) -> Iterator[dict[str, Any]]:
    """The first `count` successful episodes in the order of their seeds, whatever the number of workers."""
    found = failed = 0
    starts = itertools.count(config.seed, _BLOCK)
    ahead = [pool.submit(_block, task, next(starts), config) for _ in range(config.workers + 1)]
    while found < count:
        block = ahead.pop(0).result()
        ahead.append(pool.submit(_block, task, next(starts), config))
        failed += sum(episode is None for episode in block)
        for episode in block:
            if episode is not None and found < count:
                found += 1
                yield episode
        if failed > 20 + 4 * found:
            steps = config.options.of(parse_env(config.env)[0]).max_steps
            raise SimulationError(
                f"{task}: the scripted expert failed {failed} times and succeeded {found} times; try a smaller "
                f"--disturbance than {_disturbance(config)} or more --options.max-steps than {steps}"
            )
    for future in ahead:
        future.cancel()


def _disturbance(config: RecordConfig) -> float:
    default: float = environment(parse_env(config.env)[0]).recording.disturbance
    return default if config.disturbance is None else config.disturbance


def _block(task: str, first_seed: int, config: RecordConfig) -> list[dict[str, Any] | None]:
    """Demonstrations of a few seeds, None for each that failed."""
    name = parse_env(config.env)[0]
    with contextlib.closing(make_env(name, task, config.options)) as env:
        return [demonstrate(env, seed, _disturbance(config)) for seed in range(first_seed, first_seed + _BLOCK)]


def demonstrate(env: Any, seed: int, disturbance: float) -> dict[str, Any] | None:
    """One episode of an environment's scripted expert by feature, with its task; None if it failed."""
    random, about = np.random.default_rng(seed), env.recording
    expert = env.expert(random)
    scale = disturbance * random.uniform(0.3, 1.0) * (random.random() < _DISTURBED_SHARE)
    task = random.choice(env.instructions) if env.instructions else env.task_description
    observation, _ = env.reset(seed=seed)
    frames: list[dict[str, np.ndarray]] = []
    push, left, succeeded = np.zeros(len(about.disturbed)), about.tail, False
    for _ in range(env.max_steps):
        action = expert().astype(np.float32)
        seen = policy_observation(observation, "")
        frames.append({**{key: value for key, value in seen.items() if key != TASK}, ACTION: action})
        push = _SMOOTHNESS * push + np.sqrt(1 - _SMOOTHNESS**2) * random.standard_normal(len(push)) * about.disturbed
        observation, _, terminated, _, info = env.step(action + scale * push)
        succeeded |= info["is_success"]
        if terminated and not succeeded:
            return None
        left -= succeeded
        if left < 0:
            return {"task": str(task), **{key: np.stack([frame[key] for frame in frames]) for key in frames[0]}}
    return None
