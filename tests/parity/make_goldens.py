"""Writes tests/goldens: checkpoints of a few kilobytes with what LeRobot computes on them, for machines without torch.

    .venv-parity/bin/python -m tests.parity.make_goldens

Each golden is a directory: the checkpoint as LeRobot writes it, and `golden.npz` with inputs and values, named as in
`oracle.py` (`shifted/...`: with the position ids that transformers 4.57 gives in float32).
"""

import dataclasses
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.parity.inputs import make_inputs
from tests.parity.make_checkpoint import make_checkpoint
from tests.parity.oracle import Arrays, Oracle
from tests.parity.variants import VARIANTS, Variant

GOLDENS = Path("tests/goldens")
COMMAND = "python -m tests.parity.make_goldens"
TEXT: Mapping[str, int] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 288,
}
VISION: Mapping[str, int] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
}
CAMERAS = {"top": (24, 40), "wrist": (41, 33)}


def smaller(variant: Variant, **policy: object) -> Variant:
    """`variant` with the goldens' dimensions."""
    small = {"num_vlm_layers": 2, "resize_imgs_with_padding": (32, 32), "expert_width_multiplier": 0.5}
    policy = {**small, **variant.policy, **policy}
    return dataclasses.replace(variant, text=TEXT, vision=VISION, cameras=CAMERAS, policy=policy)


VARIANTS_KEPT: Mapping[str, Variant] = {
    "cross": smaller(VARIANTS["tiny"]),
    "mixed": dataclasses.replace(
        smaller(VARIANTS["special_tokens"], num_vlm_layers=3), precision="mixed", normalization="MIN_MAX"
    ),
    "aloha": smaller(VARIANTS["aloha"], attention_mode="self_attn", chunk_size=3, n_action_steps=2),
}


# Large values that one golden shows as well as another.
LEFT_OUT = {"cross": (), "mixed": ("images/",), "aloha": ("images/", "grad/")}


def compute(checkpoint: Path, variant: Variant) -> Arrays:
    """Inputs and all values of one golden."""
    inputs, oracle = make_inputs(variant), Oracle(checkpoint)
    record = {**inputs.to_arrays(), **oracle.preparation(inputs), **oracle.network(inputs), **oracle.chunk(inputs)}
    record |= {**oracle.loss_record(inputs), **oracle.gradients(inputs)}
    shifted = Oracle(checkpoint, positions="native").network(inputs)
    kept = [name for name in shifted if name == "sample/10" or name.startswith("vision/")]
    return {**record, **{f"shifted/{name}": shifted[name] for name in kept}}


def main() -> None:
    shutil.rmtree(GOLDENS, ignore_errors=True)
    for name, variant in VARIANTS_KEPT.items():
        checkpoint = make_checkpoint(GOLDENS / name, variant)
        values = compute(checkpoint, variant).items()
        np.savez_compressed(checkpoint / "golden.npz", **{k: v for k, v in values if not k.startswith(LEFT_OUT[name])})
        for path in checkpoint.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
    packages = ("torch", "lerobot", "transformers", "tokenizers", "safetensors", "numpy")
    manifest = {
        "command": COMMAND,
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "goldens": {name: dataclasses.asdict(variant) for name, variant in VARIANTS_KEPT.items()},
    }
    (GOLDENS / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    size = sum(path.stat().st_size for path in GOLDENS.rglob("*") if path.is_file())
    print(f"{GOLDENS}: {len(VARIANTS_KEPT)} goldens, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
