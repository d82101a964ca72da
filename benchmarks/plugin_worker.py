"""A policy as LeRobot 0.6's commands make it, and its calls, in a process of its own: see `child.worker`.

The folder's config.json says which code acts: LeRobot's SmolVLA in PyTorch, or the plugin's in JAX.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import peak_bytes, serve
from tests.parity.lerobot_shim import (
    PreTrainedConfig,
    make_pre_post_processors,
    torch,
    upstream_warnings_ignored,
)

Call = Callable[[], Any]


def open_policy(settings: dict[str, Any]) -> tuple[Any, Any]:
    """The policy and its preprocessor, on the device that there is."""
    from lerobot.policies.factory import get_policy_class
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    folder = Path(settings["policy"])
    with upstream_warnings_ignored(), contextlib.redirect_stdout(sys.stderr):
        config = PreTrainedConfig.from_pretrained(folder)
        config.device = "cuda" if torch.cuda.is_available() else "cpu"
        config.vlm_model_name, config.load_vlm_weights = str(folder / "vlm"), False
        config.num_steps, config.compile_model = settings["steps"], settings["compiled"]
        if hasattr(config, "jax_dtype"):
            config.jax_dtype = settings["dtype"]
        policy = get_policy_class(config.type).from_pretrained(folder, config=config)
        if settings["dtype"] == "float32":
            policy.float()
        names = {"tokenizer_processor": {"tokenizer_name": config.vlm_model_name}}
        before, _ = make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=names)
    return policy.eval(), before


def make_call(settings: dict[str, Any]) -> Call:
    """`predict_action_chunk` of one preprocessed random observation."""
    policy, preprocess = open_policy(settings)
    random, config = np.random.default_rng(0), policy.config
    raw: dict[str, Any] = {"task": "open the drawer"}
    for key, feature in config.input_features.items():
        raw[key] = torch.from_numpy(random.random(feature.shape, np.float32))
    observation = preprocess(raw)

    def call() -> Any:
        with torch.no_grad():
            chunk = policy.predict_action_chunk(dict(observation))
        return chunk.float().cpu().numpy()

    return call


def main() -> None:
    """Answers "prepare" (load), "measure" (once) and "finish" (memory)."""
    settings = json.loads(sys.argv[1])
    call: Call

    def prepare() -> dict[str, Any]:
        nonlocal call
        call = make_call(settings)
        return {"threads": torch.get_num_threads()}

    def measure() -> dict[str, Any]:
        torch.manual_seed(0)  # PyTorch draws the noise of both sides.
        start = time.perf_counter()
        chunk = call()
        return {"seconds": {"call": time.perf_counter() - start}, "check": chunk.ravel()[:256].tolist()}

    serve({"prepare": prepare, "measure": measure, "finish": lambda: {"peak_bytes": peak_bytes()}})


if __name__ == "__main__":
    main()
