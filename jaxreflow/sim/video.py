"""Videos of episodes that succeeded and that failed, as the policy saw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from jaxreflow.data.video_writer import H264, VideoWriter
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy
from jaxreflow.sim.environment import EnvOptions, make_env, policy_observation
from jaxreflow.sim.results import Result
from jaxreflow.sim.rollout import episode_noise

# Shown at less than half of the true speed.
_FPS, _WIDTH = 30, 384


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
                write_video(out / f"{result.task}_{result.label}_n{result.n_action_steps}_{seed}_{outcome}.mp4", frames)


def replay(
    result: Result, policy: SmolVLAPolicy, seed: int, instruction: str | None
) -> tuple[list[UInt8[np.ndarray, "H W 3"]], bool]:
    """One episode's pictures, and whether it succeeded."""
    options = {name: result.options[name] for name in ("render", "size", "max_steps")}
    env = make_env(result.env, result.task, EnvOptions(**options))
    try:
        task = instruction or env.get_wrapper_attr("task_description")
        shape = (policy.config.chunk_size, policy.config.max_action_dim)
        observation, _ = env.reset(seed=seed)
        frames, ended, success, query = [_picture(observation)], False, False, 0
        while not ended:
            noise = episode_noise(np.array([seed]), np.array([query]), shape)
            seen = policy_observation(jax.tree.map(lambda value: value[None], observation), [task])
            query += 1
            for action in policy.predict_action_chunk(seen, noise, num_steps=result.num_steps)[
                0, : result.n_action_steps
            ]:
                observation, _, terminated, truncated, info = env.step(action)
                frames.append(_picture(observation))
                ended, success = terminated or truncated, bool(info["is_success"])
                if ended:
                    break
        return frames, success
    finally:
        env.close()


def _picture(observation: Mapping[str, Any]) -> UInt8[np.ndarray, "H W 3"]:
    """What all cameras see, side by side."""
    pixels = observation["pixels"]
    return np.concatenate(list(pixels.values()), axis=1) if isinstance(pixels, Mapping) else pixels


def write_video(path: Path, frames: Sequence[UInt8[np.ndarray, "H W 3"]]) -> None:
    """An H.264 file; small pictures are enlarged."""
    height, width = frames[0].shape[:2]
    scale = max(_WIDTH // width, 1)
    size = (scale * height // 2 * 2, scale * width // 2 * 2)
    video = VideoWriter(path, size, _FPS, H264)
    video.add(frame.repeat(scale, axis=0).repeat(scale, axis=1)[: size[0], : size[1]] for frame in frames)
    video.close()
