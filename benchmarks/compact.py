"""What a call of a compact student costs beside one of its teacher, in LeRobot's own code and in jaxreflow."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from benchmarks.child import worker
from benchmarks.floor import Size, sample
from benchmarks.jax_worker import INPUTS, save_inputs
from benchmarks.network import JAX, LEROBOT, Side
from benchmarks.result import result, spread
from benchmarks.workload import CACHE, full_checkpoint, make_batch
from jaxreflow import flow
from jaxreflow.model.config import ModelConfig
from jaxreflow.policy.compact import compact_policy
from jaxreflow.policy.saved import load_saved_policy, save_pretrained


@dataclasses.dataclass(frozen=True)
class CompactConfig:
    """Seconds of the whole call at batch 1: the teacher in ten steps, and students in one, in turn on this machine."""

    sizes: tuple[int, ...] = (512, 384, 256, 256)
    """The students' image sizes."""
    layers: tuple[int, ...] = (16, 16, 16, 8)
    """Their VLM layers, one number for each size."""
    code: Literal["jaxreflow", "lerobot", "lerobot-compiled"] = "jaxreflow"
    """Whose code runs all of them. LeRobot's needs the environment of `make parity`; compiled is its `compile_model`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype. LeRobot is converted to float32, or keeps the dtypes in which it loads a checkpoint."""
    cameras: int = 2
    """Cameras of the random policy of full size."""
    runs: int = 5
    """Turns. In a turn each policy is called twice, and the second call counts."""
    json: Path = Path("build/benchmarks.jsonl")
    """File to which the result is appended."""


def run(config: CompactConfig) -> None:
    """Prints every policy's seconds and how many times faster than the teacher it is, and appends one JSON line."""
    students = list(zip(config.sizes, config.layers, strict=True))
    with result("compact", config) as record, contextlib.ExitStack() as stack:
        sides = [_side("teacher@10", full_checkpoint(config.cameras), 10, config, stack)]
        for size, layers in students:
            checkpoint = _compact_checkpoint(config.cameras, size, layers)
            sides.append(_side(f"student@1, {size} px, {layers} layers", checkpoint, 1, config, stack))
        for _ in range(config.runs):
            for side in sides:
                side.ask("measure")
                side.runs.append(side.ask("measure")["seconds"])
        teacher = sides[0].times("sample")
        for side in sides:
            faster = [own / other for own, other in zip(teacher, side.times("sample"), strict=True)]
            record[side.name] = side.record() | {"times_faster": spread(faster)}
            gigaflops = side.about["operations"] / 1e9
            print(
                f"{side.name:32}{statistics.median(side.times('sample')):8.3f} s{statistics.median(faster):7.2f} times "
                f"({min(faster):.2f} - {max(faster):.2f}), by arithmetic {sides[0].about['operations'] / 1e9 / gigaflops:.2f}"
            )


def _side(name: str, checkpoint: Path, steps: int, config: CompactConfig, stack: contextlib.ExitStack) -> Side:
    """A worker that has loaded the policy and been called once, with inputs in the size that its tower takes."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    model = load_saved_policy(checkpoint).config
    _save_inputs(Path(folder) / INPUTS, model, config.cameras)
    common: dict[str, Any] = {"task": "sample", "checkpoint": str(checkpoint), "folder": folder, "steps": steps}
    common |= {"whole_only": True, "batch": 1, "noises": 1, "cameras": config.cameras, "dtype": config.dtype}
    module = JAX if config.code == "jaxreflow" else LEROBOT
    side = Side(name, stack.enter_context(worker(module, common | {"compiled": config.code == "lerobot-compiled"})))
    side.about = side.ask("prepare") | {"operations": sum(sample(model, Size(1, 1, config.cameras, steps)).values())}
    side.first = side.ask("measure")
    return side


def _save_inputs(path: Path, model: ModelConfig, cameras: int) -> None:
    noise = flow.sample_noise(jax.random.key(0), (1, 1, model.chunk_size, model.max_action_dim))
    save_inputs(path, make_batch(model, 1, cameras), noise, jnp.ones((1, 1)))


def _compact_checkpoint(cameras: int, size: int, layers: int) -> Path:
    """The random policy of full size with fewer layers and smaller images. The first call writes it."""
    out = CACHE / f"full_{cameras}_cameras_{size}_px_{layers}_layers"
    if not out.is_dir():
        whole = load_saved_policy(full_checkpoint(cameras))
        student = compact_policy(
            whole,
            image_size=None if whole.policy.resize_imgs_with_padding == (size, size) else size,
            vlm_layers=None if whole.config.num_vlm_layers == layers else layers,
        )
        save_pretrained(out, student, {}, num_steps=1)
    return out
