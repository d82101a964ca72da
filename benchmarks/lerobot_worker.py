"""LeRobot's side of the network's benchmarks, in PyTorch and in a process of its own: see `child.worker`.

It does what LeRobot's users would do for the same pairs. Each noise has a copy of its observation. The teacher samples without
gradients. `forward`, clipping and AdamW train the student.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import peak_bytes, serve
from benchmarks.jax_worker import INPUTS
from tests.parity.lerobot_shim import fill_cache, torch
from tests.parity.oracle import Oracle

Work = Callable[[], dict[str, Any]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Inputs:
    """The arguments of `VLAFlowMatching.sample_actions`, with each observation once for each noise, and noise and time."""

    def __init__(self, path: Path) -> None:
        arrays = np.load(path)
        repeats = arrays["noise"].shape[1]

        def repeated(x: np.ndarray) -> Any:
            return torch.from_numpy(np.repeat(x, repeats, axis=0)).to(DEVICE)

        images = [repeated(camera) for camera in arrays["images"]]
        present = [torch.ones(len(image), dtype=torch.bool, device=DEVICE) for image in images]
        tokens = repeated(arrays["tokens"]).long()
        self.observation = (images, present, tokens, repeated(arrays["token_mask"]), repeated(arrays["state"]))
        noise = arrays["noise"]
        self.noise = torch.from_numpy(noise.reshape(-1, *noise.shape[2:])).to(DEVICE)
        self.time = torch.from_numpy(arrays["time"].reshape(-1)).to(DEVICE)


def load(settings: dict[str, Any]) -> Any:
    """The policy, all in float32, or in the dtypes in which LeRobot loads a checkpoint."""
    cast = "float32" if settings["dtype"] == "float32" else None
    policy = Oracle(Path(settings["checkpoint"]), cast=cast).policy.to(DEVICE)
    policy.config.num_steps = settings["steps"]
    if settings.get("compiled"):  # As LeRobot does where `compile_model` is true.
        torch.set_float32_matmul_precision("high")
        model, mode = policy.model, policy.config.compile_mode
        model.sample_actions = torch.compile(model.sample_actions, mode=mode)
        model.forward = torch.compile(model.forward, mode=mode)
    return policy


def make_reflow_step(settings: dict[str, Any]) -> Work:
    """One update of a student towards the endpoints of a teacher of its own."""
    teacher, student = load(settings), load(settings)
    student.train()
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-10)
    inputs = Inputs(Path(settings["folder"]) / INPUTS)

    def work() -> dict[str, Any]:
        start = now()
        with torch.no_grad():
            endpoint = teacher.model.sample_actions(*inputs.observation, noise=inputs.noise.clone())
        loss = student.model.forward(*inputs.observation, endpoint, noise=inputs.noise, time=inputs.time).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"seconds": {"update": now() - start}, "check": [float(loss.detach())]}

    return work


def make_sample(settings: dict[str, Any]) -> Work:
    """The sampler, whole and in parts."""
    policy = load(settings)
    model, vlm = policy.model, policy.model.vlm_with_expert
    inputs = Inputs(Path(settings["folder"]) / INPUTS)
    *observation, state = inputs.observation

    def prefix() -> tuple[Any, Any]:
        embeddings, mask, blocks = model.embed_prefix(*observation, state=state)
        return mask, fill_cache(vlm, embeddings, mask, blocks)

    def loop(mask: Any, cache: Any) -> None:
        x, count = inputs.noise.clone(), settings["steps"]
        for step in range(count):
            t = torch.full((len(x),), 1 - step / count, device=DEVICE)
            x = x - model.denoise_step(mask, cache, x, t) / count

    @torch.no_grad()
    def work() -> dict[str, Any]:
        times, start = {}, now()
        chunks = model.sample_actions(*inputs.observation, noise=inputs.noise.clone())
        times["sample"], start = now() - start, now()
        check = chunks.float().flatten()[:256].tolist()
        if settings.get("whole_only"):
            return {"seconds": times, "check": check}
        policy.config.num_steps = 1
        model.sample_actions(*inputs.observation, noise=inputs.noise.clone())
        policy.config.num_steps = settings["steps"]
        times["one step"], start = now() - start, now()
        kept = prefix()
        times["prefix"], start = now() - start, now()
        loop(*kept)
        times["loop"] = now() - start
        return {"seconds": times, "check": check}

    return work


def now() -> float:
    """The time at which the device has finished all its work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Answers "prepare" (load), "measure" (once) and "finish" (memory)."""
    settings = json.loads(sys.argv[1])
    task = {"reflow-step": make_reflow_step, "sample": make_sample}[settings["task"]]
    work: Work

    def prepare() -> dict[str, Any]:
        nonlocal work
        work = task(settings)
        return {"threads": torch.get_num_threads()}

    def finish() -> dict[str, Any]:
        return {"peak_bytes": torch.cuda.max_memory_allocated() if DEVICE == "cuda" else peak_bytes()}

    serve({"prepare": prepare, "measure": lambda: work(), "finish": finish})


if __name__ == "__main__":
    main()
