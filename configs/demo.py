"""The main job in miniature: reflow of a tiny SmolVLA on real Meta-World demonstrations, then a report.

    python train.py demo --output-dir runs/demo
    python train.py demo --output-dir runs/scratch --from-scratch

`make demo` runs the first. Teacher and dataset lie in the repository; an installed package asks for others. Expected after 1,000
updates: a student whose one-step chunks are less than half as far from the ten-step teacher as the teacher's own one-step chunks.
Table and pictures are in runs/demo/report.
"""

import os
from pathlib import Path

from jaxreflow.evaluate.demo import DemoConfig
from jaxreflow.run.config import DatasetConfig, OptimizerFlags, TeacherSource

ASSETS = Path(os.path.relpath(Path(__file__).parents[1] / "tests" / "assets"))

config = DemoConfig(
    teacher=TeacherSource(path=str(ASSETS / "teacher") if ASSETS.is_dir() else None),
    dataset=DatasetConfig(root=str(ASSETS / "metaworld_mini") if ASSETS.is_dir() else None),
    steps=1_000,
    batch_size=16,
    noises=2,
    optimizer=OptimizerFlags(lr=1e-3, warmup_steps=100, decay_steps=1_000, decay_lr=2.5e-6),
    ema_decay=0.99,
    log_every=50,
    eval_every=250,
    save_every=500,
)
