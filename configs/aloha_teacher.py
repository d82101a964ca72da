"""Trains a small SmolVLA on Aloha's TransferCube: the bimanual teacher of docs/results.md.

    python -m jaxreflow.sim record --env aloha:transfer-cube --episodes 1500 --options.size 96 --out runs/aloha/data
    python train.py aloha_teacher --output-dir runs/aloha/blank --steps 1
    python -m benchmarks.recipe.see_first --policy runs/aloha/blank/initial_policy --out runs/aloha/seeing --options.size 96
    python train.py aloha_teacher --policy.path runs/aloha/seeing --policy.new False --output-dir runs/aloha/teacher

The second command makes a blank policy, and the third teaches it to see. Without that the teacher does not find the cube.
`python -m benchmarks.recipe --study aloha` runs all four commands, and docs/results.md has the results.
"""

import os
from pathlib import Path

from jaxreflow.run.config import DatasetConfig, FinetuneConfig, OptimizerFlags, PolicySource

ASSETS = Path(os.path.relpath(Path(__file__).parents[1] / "tests" / "assets"))

config = FinetuneConfig(
    policy=PolicySource(
        new=True,
        vlm=str(ASSETS / "teacher" / "vlm"),
        vlm_model_name="jaxreflow/demo-vlm",
        num_vlm_layers=4,
        expert_width_multiplier=1.5,
        resize_imgs_with_padding=(96, 96),
        tokenizer_max_length=16,
        pad_language_to="max_length",
        train_expert_only=False,
        freeze_vision_encoder=False,
    ),
    dataset=DatasetConfig(root="runs/aloha/data", cache_frames=6.0),
    steps=16_000,
    batch_size=16,
    noises=2,
    optimizer=OptimizerFlags(lr=1e-3),
    ema_decay=0.998,
    save_every=1_000,
)
