"""Draws the figures of docs/concepts.md: the demo's teacher and student on held-out frames of the demo's dataset.

    make demo
    python docs/site/figures.py      # into docs/images

No background, lines in mid-tones and text in grey, so that they can be read on light and on dark pages.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxreflow import SmolVLAPolicy, flow, model
from jaxreflow.data.holdout import holdout_split
from jaxreflow.data.lerobot import LeRobotDataset, load_dataset
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.types import Memory, Observation, Params
from jaxreflow.training import experimental

ROOT = Path(__file__).parents[2]
ASSETS, IMAGES = ROOT / "tests" / "assets", ROOT / "docs" / "images"
STUDENT = ROOT / "runs" / "demo" / "checkpoints" / "last" / "pretrained_model"
TASK = "Bypass a wall and reach a goal"
NOISES, FINE = 32, 50
BLUE, GREEN, ORANGE, GREY = "#3b86c8", "#2f9e7a", "#d9682b", "#7d858f"
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "savefig.transparent": True,
    "svg.hashsalt": "jaxreflow",
}


@functools.partial(jax.jit, static_argnames="config")
def remember(params: Params, observation: Observation, *, config: ModelConfig) -> Memory:
    """What the expert keeps of the observations."""
    context = model.observe(params, observation, config=config)
    return model.memorise(params, context, jnp.asarray(observation.state), config=config)


@functools.partial(jax.jit, static_argnames=("config", "num_steps"))
def follow(params: Params, memory: Memory, noise: Array, *, config: ModelConfig, num_steps: int) -> tuple[Array, Array]:
    """The Euler sampler's states, noise first, and the velocities that it met."""

    def step(x: Array, t: Array) -> tuple[Array, tuple[Array, Array]]:
        v = model.velocity(params, memory, x, jnp.broadcast_to(t, x.shape[:2]), config=config)
        return x - v / num_steps, (x, v)

    end, (states, velocities) = jax.lax.scan(step, noise, jnp.asarray(flow.euler_times(num_steps)))
    return jnp.concatenate([states, end[None]]), velocities


class View:
    """Teacher and student, and the noises of one set of frames."""

    def __init__(
        self, policies: dict[str, SmolVLAPolicy], dataset: LeRobotDataset, frames: list[int], noises: int
    ) -> None:
        self.policies = policies
        seen = [dataset.frame(index) for index in frames]
        keys = (*dataset.camera_keys, "observation.state")
        observation: dict[str, Any] = {key: np.stack([frame[key] for frame in seen]) for key in keys}
        observation["task"] = [frame["task"] for frame in seen]
        self.memories = {
            name: remember(p.params, p.transforms.prepare(observation), config=p.checkpoint.config)
            for name, p in policies.items()
        }
        policy = policies["teacher"].config
        shape = (len(frames), noises, policy.chunk_size, policy.max_action_dim)
        self.noise = flow.sample_noise(jax.random.key(0), shape)

    def paths(self, name: str, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """States `[T + 1 B M C d]` and velocities `[T B M C d]`, real dims."""
        policy = self.policies[name]
        found = follow(
            policy.params, self.memories[name], self.noise, config=policy.checkpoint.config, num_steps=num_steps
        )
        states, velocities = (np.asarray(part)[..., : policy.config.action_dim] for part in found)
        return states, velocities


def draw_paths(look: View) -> Figure:
    """Teacher and student from the same noises, in the plane in which the teacher's chunks differ most."""
    ends = look.paths("teacher", FINE)[0][-1, 0].reshape(NOISES, -1)
    centre = ends.mean(0)
    plane = np.linalg.svd(ends - centre, full_matrices=False)[2][:2].T
    sides = np.where(((ends - centre) @ plane)[:, 0] > 0, BLUE, GREEN)
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    shown = [("teacher", FINE), ("teacher", 1), ("student", FINE), ("student", 1)]
    for axis, (name, steps) in zip(figure.subplots(1, 4, sharex=True, sharey=True), shown, strict=True):
        flat = (look.paths(name, steps)[0][:, 0].reshape(steps + 1, NOISES, -1) - centre) @ plane
        for one in range(NOISES):
            axis.plot(*flat[:, one].T, color=sides[one], alpha=0.55, linewidth=0.8)
        axis.plot(*flat[0].T, ".", color=GREY, markersize=3)
        axis.scatter(*flat[-1].T, c=sides, s=12, zorder=3)
        axis.set(title=f"{name}, {steps} step{'s' * (steps > 1)}", xticks=[], yticks=[])
    return figure


def draw_guesses(look: View) -> Figure:
    """Where the teacher's field takes its path to end, at several times, as chunks summed up along x and y."""
    states, velocities = look.paths("teacher", FINE)
    times = flow.euler_times(FINE)
    guesses = states[:-1] - times[:, None, None, None, None] * velocities
    policy = look.policies["teacher"]
    padding = policy.config.max_action_dim - policy.config.action_dim
    ends = states[-1, 0].reshape(NOISES, -1)
    direction = np.linalg.svd(ends - ends.mean(0), full_matrices=False)[2][0]
    sides = np.where((ends - ends.mean(0)) @ direction > 0, BLUE, GREEN)
    figure = Figure(figsize=(10, 2.5), layout="constrained")
    wanted = (1.0, 0.8, 0.6, 0.4, 0.02)
    for axis, t in zip(figure.subplots(1, len(wanted), sharex=True, sharey=True), wanted, strict=True):
        chunks = np.pad(guesses[np.argmin(np.abs(times - t)), 0], ((0, 0), (0, 0), (0, padding)))
        path = np.cumsum(policy.transforms.unnormalize_action(chunks)[..., :2], axis=1)
        for one, colour in zip(np.pad(path, ((0, 0), (1, 0), (0, 0))), sides, strict=True):
            axis.plot(*one.T, color=colour, alpha=0.6, linewidth=0.9)
        axis.set(title=f"t = {t:g}", xlabel="sum of dx")
    figure.axes[0].set_ylabel("sum of dy")
    return figure


def draw_straightness(look: View) -> Figure:
    """How far each policy's velocity is from the chord of its own path, over t."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axis = figure.subplots()
    for name, colour in (("teacher", BLUE), ("student", ORANGE)):
        velocities = look.paths(name, FINE)[1]
        chord = velocities.mean(0)
        bend = np.square(velocities - chord).sum((1, 2, 3, 4)) / np.square(chord).sum()
        axis.plot(flow.euler_times(FINE), bend, color=colour, label=f"{name}: {bend.mean():.3f} on average")
        print(f"straightness of the {name}: {bend.mean():.4f}")
    axis.set(xlabel="t (1 is noise, 0 is the action)", ylabel="straightness, 0 is straight", ylim=(0, None))
    axis.legend()
    return figure


def draw_laws() -> Figure:
    """The laws by which training draws t, as histograms of draws."""
    laws = ("beta", "uniform", "u-shaped", "exponential", "half-at-one-exponential", "noise-biased")
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for axis, law in zip(axes.flat, laws, strict=True):
        drawn = np.asarray(experimental.TIME_LAWS[law](jax.random.key(0), (200_000,)))
        below = drawn[drawn < 1]
        axis.hist(below, bins=40, range=(0, 1), weights=np.full(below.shape, 40 / drawn.size), color=BLUE)
        axis.set(title=law, ylim=(0, 4.2))
        if (drawn == 1).mean() > 0.01:
            _mark_mass(axis, float((drawn == 1).mean()))
    for axis in axes[1]:
        axis.set_xlabel("t (1 is noise)")
    for axis in axes[:, 0]:
        axis.set_ylabel("density")
    return figure


def _mark_mass(axis: Axes, share: float) -> None:
    axis.plot([1, 1], [0, 3.6], color=ORANGE, linewidth=3)
    axis.annotate(f"{share:.0%} of all times at exactly 1", (0.97, 3.5), ha="right", color=ORANGE)


def main(student: Path = STUDENT) -> None:
    """Draws all figures."""
    dataset = load_dataset(ASSETS / "metaworld_mini")
    held_out = holdout_split(dataset, 0.1, seed=0)[1]
    policies = {
        "teacher": SmolVLAPolicy.from_pretrained(ASSETS / "teacher"),
        "student": SmolVLAPolicy.from_pretrained(student),
    }
    early = next(e.first for e in dataset.episodes if e.index in held_out and e.task == TASK)
    frames = dataset.frame_indices(held_out)
    spread = frames[np.linspace(0, len(frames) - 1, 48).round().astype(int)].tolist()
    one, many = View(policies, dataset, [early], NOISES), View(policies, dataset, spread, 1)
    with mpl.rc_context(STYLE):
        figures = {
            "paths": draw_paths(one),
            "guesses": draw_guesses(one),
            "straightness": draw_straightness(many),
            "time_laws": draw_laws(),
        }
        for name, figure in figures.items():
            figure.savefig(IMAGES / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
