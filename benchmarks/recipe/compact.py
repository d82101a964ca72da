"""The study of students that see cheaper: fewer image tokens, fewer layers, and what of them is trained.

    python -m benchmarks.recipe --study compact

Its teacher has slack, as SmolVLA has: 8 VLM layers, and 64 image tokens of pictures of 128 pixels.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from benchmarks.recipe.lab import Lab, Scale
from benchmarks.recipe.variants import Variant, length

VLM = Path("tests/assets/teacher/vlm")
IMAGE_SIZE, PATCH_SIZE, LAYERS = 128, 8, 8
_HALF, _QUARTER, _LAYERS = ("--student.image-size", "96"), ("--student.image-size", "64"), ("--student.vlm-layers", "4")
_EXPERT, _LANGUAGE = ("--trainable", "expert"), ("--trainable", "expert+connector+language")

FULL = Variant("full", "network", "the teacher's", _EXPERT)
NETWORKS = (
    FULL,
    Variant("tokens_36", "network", "36 of 64 image tokens", (*_HALF, *_LANGUAGE)),
    Variant("tokens_16", "network", "16 of 64 image tokens", (*_QUARTER, *_LANGUAGE)),
    Variant("layers_first", "network", "the first 4 of 8 layers", (*_LAYERS, *_LANGUAGE)),
    Variant("layers_spaced", "network", "4 of 8 layers, spaced", (*_LAYERS, "--student.layers", "spaced", *_LANGUAGE)),
    Variant("both", "network", "16 of 64 image tokens, the first 4 of 8 layers", (*_QUARTER, *_LAYERS, *_LANGUAGE)),
)
TRAINED = tuple(
    Variant(f"tokens_16_{name}", "trained, at 16 image tokens", trainable, (*_QUARTER, "--trainable", trainable, *more))
    for name, trainable, more in (
        ("expert", "expert", ()),
        ("connector", "expert+connector", ()),
        ("vision", "expert+connector+language+vision", ()),
        ("adapters", "expert+connector+language:lora", ("--lora.rank", "16")),
    )
)
FINALISTS = ("full", "tokens_16", "layers_first", "both")


def compact_lab(root: Path, scale: Scale) -> Lab:
    """The lab of this study, with the VLM's config and tokenizer in `root`/vlm."""
    vlm = root / "vlm"
    if not vlm.is_dir():
        write_vlm(vlm)
    size = ("--policy.resize-imgs-with-padding", str(IMAGE_SIZE), str(IMAGE_SIZE))
    return Lab(root, scale, IMAGE_SIZE, ("--policy.vlm", str(vlm), "--policy.num-vlm-layers", str(LAYERS), *size))


def write_vlm(folder: Path) -> None:
    """The demo's VLM with more layers, for larger pictures of smaller patches; no weights."""
    shutil.copytree(VLM, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["num_hidden_layers"] = LAYERS
    config["vision_config"] |= {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def run_study(lab: Lab) -> None:
    """Trains and measures what is missing: all students at equal updates, then the finalists in closed loop."""
    lab.prepare()
    updates = lab.scale.student_updates or 4_000
    students = [dataclasses.replace(v, flags=(*v.flags, *length(updates))) for v in (*NETWORKS, *TRAINED)]
    for student in students:
        lab.train(student)
        lab.evaluate(student, num_steps=(10, 2, 1), repeats=30, draws=lab.scale.screening_draws)
    lab.close_loop([student for student in students if student.name in FINALISTS])
