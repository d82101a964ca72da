"""Trains the demo's teacher: a SmolVLA of 0.96M parameters, all of it from random weights, on three Meta-World tasks.

    python train.py demo_teacher --output-dir runs/demo_teacher

Its VLM (config, tokenizer, random weights) lies in tests/assets/teacher/vlm. What came out of it, in what time and with what
held-out loss, stands in tests/assets/README.md.
"""

import os
from pathlib import Path

from jaxreflow.run.config import DatasetConfig, FinetuneConfig, OptimizerFlags, PolicySource

ASSETS = Path(os.path.relpath(Path(__file__).parents[1] / "tests" / "assets"))

config = FinetuneConfig(
    policy=PolicySource(
        new=True,
        vlm=str(ASSETS / "teacher" / "vlm") if ASSETS.is_dir() else None,
        vlm_model_name="jaxreflow/demo-vlm",
        num_vlm_layers=4,
        expert_width_multiplier=1.0,
        resize_imgs_with_padding=(96, 96),
        tokenizer_max_length=16,
        pad_language_to="max_length",
        train_expert_only=False,
        freeze_vision_encoder=False,
    ),
    dataset=DatasetConfig(root=str(ASSETS / "metaworld_mini") if ASSETS.is_dir() else None),
    steps=4_500,
    batch_size=32,
    noises=2,
    optimizer=OptimizerFlags(lr=1e-3),
    ema_decay=0.998,
    save_every=500,
)
