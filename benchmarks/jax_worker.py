"""jaxreflow's side of the network's benchmarks, in a process of its own (`child.worker`, `network.run_workers`)."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.child import peak_bytes, serve
from benchmarks.floor import Size, matmul_rate, reflow_step, sample
from benchmarks.workload import make_batch
from jaxreflow import flow
from jaxreflow.model import embed_images, memorise, observe, velocity
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import merge_params, stored_in_compute_dtype
from jaxreflow.model.types import Batch, HostOrDevice, Memory, Observation, Params
from jaxreflow.policy.sampling import sample_chunks
from jaxreflow.policy.saved import load_saved_policy
from jaxreflow.run.config import FinetuneConfig, OptimizerFlags, ReflowConfig
from jaxreflow.run.programs import make_update, split_weights
from jaxreflow.support.mesh import make_mesh, replicate, shard_batch
from jaxreflow.training import experimental
from jaxreflow.training.step import make_draw

Work = Callable[[], dict[str, Any]]
INPUTS = "inputs.npz"


def seconds(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """The seconds that `work` took until its result was ready, and the result."""
    start = time.perf_counter()
    result = jax.block_until_ready(work(*arguments))
    return time.perf_counter() - start, result


def make_reflow_step(settings: dict[str, Any]) -> tuple[Work, dict[str, float]]:
    """One update as train.py runs it, and its operations. `objective` "finetune" is plain flow matching."""
    common: Any = {"batch_size": settings["batch"], "noises": settings["noises"], "dtype": settings["dtype"]}
    common["optimizer"] = OptimizerFlags(name=settings["optimizer"])
    run = (
        ReflowConfig(**common, teacher_steps=settings["steps"], ema_decay=0.0)
        if settings["objective"] == "reflow"
        else FinetuneConfig(**common)
    )
    mesh = make_mesh()
    checkpoint = load_saved_policy(settings["checkpoint"], dtype=settings["dtype"])
    model = checkpoint.config
    weights = split_weights(run, checkpoint, mesh)
    state, update, _ = make_update(run, checkpoint, weights, mesh)
    seen = make_batch(model, settings["batch"], settings["cameras"])
    key = jax.random.fold_in(jax.random.split(jax.random.key(run.seed))[0], 0)  # of the first update
    noise, t, _ = make_draw(experimental.TIME_LAWS[run.time_law], run.noises, model)(key, settings["batch"])
    save_inputs(Path(settings["folder"]) / INPUTS, seen, noise, t)
    if settings["features"]:
        seen = with_features(seen, merge_params(weights.start, weights.frozen), model)
    batch = shard_batch(seen, mesh)

    def work() -> dict[str, Any]:
        nonlocal state
        took, (state, metrics) = seconds(update, state, batch)
        return {"seconds": {"update": took}, "check": [float(metrics["loss"])]}

    size = Size(settings["batch"], settings["noises"], settings["cameras"], settings["steps"])
    return work, reflow_step(model, size, features=settings["features"])


def make_sample(settings: dict[str, Any]) -> tuple[Work, dict[str, float]]:
    """A policy's sampler, whole and in parts, and its operations."""
    checkpoint = load_saved_policy(settings["checkpoint"], dtype=settings["dtype"])
    model = checkpoint.config
    params = replicate(stored_in_compute_dtype(checkpoint.load_params(), model), make_mesh())
    batch = make_batch(model, settings["batch"], settings["cameras"])
    seen: Observation = jax.tree.map(jnp.asarray, batch.observation)
    noise, t, _ = make_draw(experimental.uniform_time, settings["noises"], model)(jax.random.key(0), settings["batch"])
    save_inputs(Path(settings["folder"]) / INPUTS, batch, noise, t)

    @jax.jit
    def prefix(params: Params, seen: Observation) -> Memory:
        return memorise(params, observe(params, seen, config=model), jnp.asarray(seen.state), config=model)

    @jax.jit
    def loop(params: Params, memory: Memory, noise: Array) -> Array:
        return flow.euler(
            lambda x_t, t: velocity(params, memory, x_t, t, config=model), noise, num_steps=settings["steps"]
        )

    def work() -> dict[str, Any]:
        sampler = functools.partial(sample_chunks, config=model)
        whole, chunks = seconds(functools.partial(sampler, num_steps=settings["steps"]), params, seen, noise)
        check = np.asarray(chunks).ravel()[:256].tolist()
        if settings.get("whole_only"):
            return {"seconds": {"sample": whole}, "check": check}
        once, _ = seconds(functools.partial(sampler, num_steps=1), params, seen, noise)
        before, memory = seconds(prefix, params, seen)
        steps, _ = seconds(loop, params, memory, noise)
        times = {"sample": whole, "one step": once, "prefix": before, "loop": steps}
        return {"seconds": times, "check": check}

    size = Size(settings["batch"], settings["noises"], settings["cameras"], settings["steps"])
    return work, sample(model, size)


def save_inputs(path: Path, batch: Batch, noise: Array, t: Array) -> None:
    """What another implementation needs for the same work: images in [-1, 1] and channels first, as the tower takes them."""
    seen = batch.observation
    images = [np.asarray(image, np.float32).transpose(0, 3, 1, 2) / 127.5 - 1 for image in seen.images.values()]
    np.savez(
        path,
        images=np.stack(images),
        tokens=seen.tokens,
        token_mask=seen.token_mask,
        state=seen.state,
        noise=noise,
        time=t,
    )


def with_features(batch: Batch, params: Params, model: ModelConfig) -> Batch:
    """The batch with image tokens, rounded as a cache holds them, in place of its images."""
    tokens = jax.jit(functools.partial(embed_images, config=model))(params, batch.observation.images)
    held: dict[str, HostOrDevice] = {key: np.asarray(rows.astype(jnp.bfloat16)) for key, rows in tokens.items()}
    return dataclasses.replace(batch, observation=dataclasses.replace(batch.observation, images={}, image_tokens=held))


def main() -> None:
    """Answers "prepare" (load), "measure" (once), "rate" (of a matrix product) and "finish" (memory)."""
    settings = json.loads(sys.argv[1])
    task = {"reflow-step": make_reflow_step, "sample": make_sample}[settings["task"]]
    work: Work

    def prepare() -> dict[str, Any]:
        nonlocal work
        work, operations = task(settings)
        return {"operations": operations, "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}

    def finish() -> dict[str, Any]:
        on_device = jax.devices()[0].memory_stats() or {}
        return {"peak_bytes": on_device.get("peak_bytes_in_use", peak_bytes())}

    serve(
        {
            "prepare": prepare,
            "measure": lambda: work(),
            "rate": lambda: {"rate": jax.device_count() * matmul_rate(settings["dtype"])},
            "finish": finish,
        }
    )


if __name__ == "__main__":
    main()
