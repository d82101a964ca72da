"""Small checkpoints of LeRobot's, and ways to change them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

GOLDENS = Path(__file__).parent / "goldens"
PRE_STATS = "policy_preprocessor_step_5_normalizer_processor.safetensors"
NORM = "model.vlm_with_expert.lm_expert.norm.weight"

Tensors = dict[str, np.ndarray]


def copy_checkpoint(name: str, out: Path) -> Path:
    shutil.copytree(GOLDENS / name, out, ignore=shutil.ignore_patterns("golden.npz"))
    edit_config(out, load_vlm_weights=True)
    return out


def edit_config(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(path: Path, change: Callable[[Tensors], Tensors], metadata: dict[str, str] | None = None) -> None:
    tensors = load_file(path)
    save_file(change(tensors), path, metadata)


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
