"""Success of LeRobot's own policy in jaxreflow's simulation of two arms, with stock pictures; in the environment of `make parity`.

    python -m tests.parity.closed_loop benchmarks/recipe/policies/aloha_teacher --num-steps 1 --dtype float32

LeRobot loads the VLM in bfloat16. `--dtype float32` has it compute as `python -m jaxreflow.sim` does. `--noise jaxreflow` gives it
the noise of that command's policies on the same episodes.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.recipe.lerobot_eval import copy_without_hub
from jaxreflow.sim.aloha import TASK, AlohaEnv
from jaxreflow.sim.intervals import wilson
from jaxreflow.sim.rollout import episode_noise
from tests.parity.lerobot_shim import SmolVLAConfig, SmolVLAPolicy, make_pre_post_processors, torch

N_ACTION_STEPS = 10
Act = Callable[[dict, torch.Tensor | None], np.ndarray]


def load(folder: Path, num_steps: int, dtype: str) -> tuple[SmolVLAPolicy, Act]:
    """LeRobot's policy, and its actions for the observations of an environment and a noise (None: its own)."""
    config = SmolVLAConfig.from_pretrained(folder)
    config.device, config.num_steps, config.n_action_steps = "cpu", num_steps, N_ACTION_STEPS
    config.vlm_model_name = str(folder / "vlm")
    policy = SmolVLAPolicy.from_pretrained(folder, config=config).eval()
    if dtype == "float32":
        policy.float()
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))

    def act(observation: dict, noise: torch.Tensor | None) -> np.ndarray:
        picture = torch.from_numpy(observation["pixels"]["top"].copy()).permute(2, 0, 1)[None].float() / 255
        state = torch.from_numpy(np.asarray(observation["agent_pos"])).float()[None]
        batch = before({"observation.images.top": picture, "observation.state": state, "task": ["transfer_cube"]})
        with torch.inference_mode():
            return after(policy.select_action(batch, noise=noise))[0].numpy()

    return policy, act


def simulated_noise(policy: SmolVLAPolicy, seed: int, query: int) -> torch.Tensor:
    """The noise `[1, C, A]` that `python -m jaxreflow.sim` gives to an episode's next chunk."""
    shape = (policy.config.chunk_size, policy.config.max_action_dim)
    return torch.from_numpy(np.array(episode_noise(np.array([seed]), np.array([query]), shape)))


def succeeds(env: AlohaEnv, policy: SmolVLAPolicy, act: Act, seed: int, *, own_noise: bool) -> bool:
    """One episode; pictures are drawn where the policy looks."""
    torch.manual_seed(seed)
    policy.reset()
    env.renders = True
    observation, info = env.reset(seed=seed)
    over, step = False, 0
    while not over and not info["is_success"]:
        noise = None if own_noise else simulated_noise(policy, seed, step // N_ACTION_STEPS)
        action, step = act(observation, noise), step + 1
        env.renders = step % N_ACTION_STEPS == 0
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    return bool(info["is_success"])


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the rate of success."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--dtype", choices=("float32", "as-loaded"), default="as-loaded")
    parser.add_argument("--noise", choices=("lerobot", "jaxreflow"), default="lerobot")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=100_000)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        copy_without_hub(args.policy, Path(folder) / "policy")
        policy, act = load(Path(folder) / "policy", args.num_steps, args.dtype)
        env = AlohaEnv(TASK, render="stock")
        seeds, own_noise = range(args.seed, args.seed + args.episodes), args.noise == "lerobot"
        success = [succeeds(env, policy, act, seed, own_noise=own_noise) for seed in seeds]
    rate = wilson(sum(success), len(success))
    print(f"{sum(success)} of {len(success)}: {rate.value:.2f} [{rate.low:.2f}, {rate.high:.2f}]")


if __name__ == "__main__":
    main()
