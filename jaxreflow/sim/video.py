"""Videos of episodes that succeeded and that failed, as the policy saw them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from jaxtyping import UInt8

from jaxreflow.data.video_writer import H264, VideoWriter
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy
from jaxreflow.sim.acting import make_act, noise_shape
from jaxreflow.sim.environment import ActionChunks, EnvOptions, environment, make_env
from jaxreflow.sim.results import Result
from jaxreflow.sim.rollout import rollout
from jaxreflow.sim.timing import Timing

# How many times slower they are shown than they were.
_SLOWER, _WIDTH = 2, 384


def write_videos(
    out: Path, results: Sequence[Result], policies: Mapping[str, SmolVLAPolicy], instruction: str | None
) -> None:
    """One success and one failure of each result, where there is one, run once more with every step pictured.

    The file's name says how that repetition ended: another batch size may round it to another end.
    """
    out.mkdir(parents=True, exist_ok=True)
    for result in results:
        for wanted in (1, 0):
            if wanted in result.success:
                seed = result.seed + result.success.index(wanted)
                frames, success = replay(result, policies[result.policy], seed, instruction)
                outcome = "success" if success else "failure"
                name = f"{result.task}_{result.label}_{_file_name(result)}_{seed}_{outcome}.mp4"
                write_video(out / name, frames, environment(result.env).metadata["render_fps"] // _SLOWER)


def _file_name(result: Result) -> str:
    """How chunks followed each other, for a file's name; what is as by default is left out."""
    timing = result.timing
    words = [] if timing == Timing(timing.n_action_steps) else [re.sub(r"\W+", "_", timing.label)]
    return "_".join([f"n{timing.n_action_steps}", *words])


def replay(
    result: Result, policy: SmolVLAPolicy, seed: int, instruction: str | None
) -> tuple[list[UInt8[np.ndarray, "H W 3"]], bool]:
    """One episode's pictures, and whether it succeeded."""
    options = EnvOptions(**{name: result.options[name] for name in ("render", "size", "max_steps")})
    film = _Film(make_env(result.env, result.task, options))
    chunk_size = policy.config.chunk_size
    envs = SyncVectorEnv([lambda: ActionChunks(film, chunk_size)], autoreset_mode=AutoresetMode.DISABLED)
    try:
        task = instruction or film.get_wrapper_attr("task_description")
        act = make_act(policy, result.num_steps, result.timing)
        shape = noise_shape(policy, result.timing)
        outcomes = rollout(envs, act, task, [seed], result.timing, noise_shape=shape)
        return film.frames, bool(outcomes.success[0])
    finally:
        envs.close()


class _Film(gymnasium.Wrapper):
    """Keeps the pictures of its first episode."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.frames: list[np.ndarray] = []
        self._over = False

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**options)
        if not self.frames:
            self.frames.append(_picture(observation))
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.env.unwrapped.renders = True  # type: ignore[attr-defined]
        observation, reward, terminated, truncated, info = super().step(action)
        if not self._over:
            self.frames.append(_picture(observation))
        self._over |= terminated or truncated
        return observation, reward, terminated, truncated, info


def _picture(observation: Mapping[str, Any]) -> UInt8[np.ndarray, "H W 3"]:
    """What all cameras see, side by side."""
    pixels = observation["pixels"]
    return np.concatenate(list(pixels.values()), axis=1) if isinstance(pixels, Mapping) else pixels


def write_video(path: Path, frames: Sequence[UInt8[np.ndarray, "H W 3"]], fps: int) -> None:
    """An H.264 file of `fps` pictures a second; small pictures are enlarged."""
    height, width = frames[0].shape[:2]
    scale = max(_WIDTH // width, 1)
    size = (scale * height // 2 * 2, scale * width // 2 * 2)
    video = VideoWriter(path, size, fps, H264)
    video.add(frame.repeat(scale, axis=0).repeat(scale, axis=1)[: size[0], : size[1]] for frame in frames)
    video.close()
