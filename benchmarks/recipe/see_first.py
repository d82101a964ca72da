"""Teaches a policy's vision tower where things are, before the policy learns to act: the Aloha teacher's first stage.

    python -m benchmarks.recipe.see_first --policy RUN/initial_policy --out SEEING

A small tower from random weights, trained on demonstrations alone, remembers them and does not find the cube. Here it learns to
tell the places of the cube and of both grippers from pictures of the scripted expert's episodes, through a linear layer that is
then thrown away. What is written is the policy with the tower and the connector that have learnt it.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, UInt8

from jaxreflow.errors import ConfigError
from jaxreflow.model import embed_images
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.types import Params
from jaxreflow.policy.saved import load_saved_policy, save_pretrained
from jaxreflow.sim.environment import EnvOptions, make_env
from jaxreflow.support.command_line import parse
from jaxreflow.support.command_line import run as run_command
from jaxreflow.support.compilation import use_compilation_cache
from jaxreflow.support.console import progress
from jaxreflow.support.new_folder import check_new
from jaxreflow.training.optimizer import OptimizerConfig, make_optimizer

SEEN = ("vision_model", "connector")
READOUT = "readout"
_SEED, _EPISODES_A_TASK = 700_000, 20


@dataclasses.dataclass(frozen=True)
class SeeFirstConfig:
    """Regression of the cube's and both grippers' places from pictures, in metres."""

    policy: str
    """A policy for Aloha's TransferCube, as a folder."""
    out: Path
    """Folder of the policy that has learnt to see."""
    episodes: int = 800
    """Episodes of the scripted expert that are looked at."""
    every: int = 6
    """Steps between two pictures of an episode."""
    updates: int = 4_000
    """Updates."""
    batch_size: int = 64
    """Pictures of an update."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    seed: int = 0
    """Seed of the linear layer and of the order of pictures."""
    workers: int = 2
    """Processes that simulate."""
    options: EnvOptions = dataclasses.field(default_factory=EnvOptions)

    def __post_init__(self) -> None:
        for name in ("episodes", "every", "updates", "batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, found {getattr(self, name)}")
        if self.episodes % _EPISODES_A_TASK or self.episodes < 2 * _EPISODES_A_TASK:
            raise ConfigError(
                f"--episodes: expected {2 * _EPISODES_A_TASK} or another multiple of {_EPISODES_A_TASK}, found {self.episodes}"
            )


def collect(config: SeeFirstConfig) -> tuple[UInt8[np.ndarray, "N H W 3"], Float[np.ndarray, "N 9"], int]:
    """Pictures, the places of the cube and of the left and the right gripper's link in metres, and how many are held out.

    Held out are the pictures of the last tenth of the episodes, at least of those that one process watches.
    """
    firsts = range(_SEED, _SEED + config.episodes, _EPISODES_A_TASK)
    context = multiprocessing.get_context("spawn")
    parts = []
    with (
        ProcessPoolExecutor(config.workers, mp_context=context) as pool,
        progress("pictures", config.episodes, unit="episode") as advance,
    ):
        for part in pool.map(functools.partial(_watch, config), firsts):
            parts.append(part)
            advance(_EPISODES_A_TASK)
    pictures, places = zip(*parts, strict=True)
    held_out = sum(map(len, pictures[-max(len(parts) // 10, 1) :]))
    return np.concatenate(pictures), np.concatenate(places), held_out


def _watch(config: SeeFirstConfig, first: int) -> tuple[np.ndarray, np.ndarray]:
    env: Any = make_env("aloha", "transfer-cube", config.options)
    links = [env.model.body(f"vx300s_{arm}/gripper_link").id for arm in ("left", "right")]
    pictures, places = [], []
    for seed in range(first, first + _EPISODES_A_TASK):
        expert = env.expert(np.random.default_rng(seed))
        env.renders = False
        env.reset(seed=seed)
        over, step = False, 0
        while not over:
            env.renders = step % config.every == config.every - 1
            observation, _, ended, truncated, _ = env.step(expert())
            if env.renders:
                pictures.append(observation["pixels"]["top"])
                places.append(np.concatenate([env.cube, *env.data.xpos[links]]))
            over, step = ended or truncated, step + 1
    env.close()
    if not pictures:
        raise ConfigError(f"--every {config.every}: expected fewer steps than an episode has; give at most 100")
    return np.stack(pictures), np.stack(places).astype(np.float32)


def errors_in_metres(
    params: Params, pictures: Array, places: Float[Array, "B 9"], scale: Float[Array, "2 9"], network: ModelConfig
) -> Float[Array, "B 3"]:
    """Distances between true and told places of the cube, the left and the right gripper."""
    told = _tell(params, pictures, network) * scale[1] + scale[0]
    return jnp.linalg.norm((told - places).reshape(len(places), 3, 3), axis=-1)


def _tell(params: Params, pictures: Array, network: ModelConfig) -> Float[Array, "B 9"]:
    (camera,) = network.visual_keys
    tokens = embed_images(params, {camera: pictures}, config=network)[camera]
    return tokens.reshape(len(tokens), -1) @ params[READOUT]["kernel"] + params[READOUT]["bias"]


def learn(
    params: Params,
    pictures: np.ndarray,
    places: np.ndarray,
    held_out: int,
    network: ModelConfig,
    config: SeeFirstConfig,
) -> tuple[Params, Float[np.ndarray, "N 3"]]:
    """The tower and the connector after training, and their errors in metres on the `held_out` last pictures."""
    scale = jnp.stack([jnp.mean(places, 0), jnp.std(places, 0)])
    optimizer = make_optimizer(
        OptimizerConfig(lr=config.lr, warmup_steps=200, decay_steps=config.updates, weight_decay=1e-4), config.updates
    )
    trained = _with_readout(params, pictures[:1], network, jax.random.key(config.seed))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: tuple[Params, Any], pictures: Array, places: Array) -> tuple[tuple[Params, Any], Array]:
        def loss(own: Params) -> Array:
            return jnp.mean(jnp.square(_tell(own, pictures, network) - (places - scale[0]) / scale[1]))

        value, gradients = jax.value_and_grad(loss)(state[0])
        changes, optimizer_state = optimizer.update(gradients, state[1], state[0])
        return (optax.apply_updates(state[0], changes), optimizer_state), value

    state = (trained, optimizer.init(trained))
    random = np.random.default_rng(config.seed)
    with progress("updates", config.updates, unit="update") as advance:
        for _ in range(config.updates):
            rows = random.integers(0, len(pictures) - held_out, config.batch_size)
            state, _ = update(state, pictures[rows], places[rows])
            advance(1)
    measure = jax.jit(functools.partial(errors_in_metres, network=network))
    parts = range(len(pictures) - held_out, len(pictures), config.batch_size)
    rest = [(pictures[i : i + config.batch_size], places[i : i + config.batch_size]) for i in parts]
    errors = np.concatenate([np.asarray(measure(state[0], *part, scale)) for part in rest])
    return {name: state[0][name] for name in SEEN}, errors


def _with_readout(params: Params, picture: np.ndarray, network: ModelConfig, key: Key[Array, ""]) -> Params:
    (camera,) = network.visual_keys
    tokens = jax.eval_shape(lambda image: embed_images(params, {camera: image}, config=network)[camera], picture)
    width = tokens.shape[1] * tokens.shape[2]
    kernel = jax.random.normal(key, (width, 9)) / np.sqrt(width)
    return {**{name: params[name] for name in SEEN}, READOUT: {"kernel": kernel, "bias": jnp.zeros(9)}}


def run(config: SeeFirstConfig) -> str:
    """Looks, learns, writes the policy, and says how well it sees."""
    use_compilation_cache()
    check_new(config.out)
    saved = load_saved_policy(config.policy)
    if len(saved.config.visual_keys) != 1:
        raise ConfigError(
            f"--policy: expected one with the camera `top` of aloha:transfer-cube alone, found {list(saved.config.visual_keys)}"
        )
    pictures, places, held_out = collect(config)
    params, errors = learn(saved.load_params(), pictures, places, held_out, saved.config, config)
    save_pretrained(config.out, saved, jax.device_get(params))
    cube, left, right = 100 * np.sqrt(np.mean(np.square(errors), axis=0))
    return (
        f"{len(pictures)} pictures; root mean square errors in cm on held-out episodes: cube {cube:.2f}, left gripper {left:.2f}, "
        f"right gripper {right:.2f}\n{config.out}"
    )


def main() -> int:
    """0 if it was trained, 1 after an error."""
    return run_command(_main, None)


def _main(args: list[str]) -> int:
    print(run(parse(SeeFirstConfig, args, prog="python -m benchmarks.recipe.see_first", about=__doc__ or "")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
