"""Distils the teacher of configs/aloha_teacher.py: the bimanual student of docs/results.md.

    python -m jaxreflow.data.features runs/aloha/data --policy runs/aloha/teacher/checkpoints/last/pretrained_model \\
        --out runs/aloha/features
    python train.py aloha --output-dir runs/aloha/students/default

The values are those of configs/metaworld.py.
"""

from jaxreflow.run.config import DatasetConfig, OptimizerFlags, ReflowConfig, TeacherSource

config = ReflowConfig(
    teacher=TeacherSource(path="runs/aloha/teacher/checkpoints/last/pretrained_model"),
    dataset=DatasetConfig(root="runs/aloha/data", features="runs/aloha/features"),
    steps=16_000,
    batch_size=16,
    noises=1,
    times=2,
    time_law="half-at-one-exponential",
    optimizer=OptimizerFlags(name="muon", lr=2e-3, warmup_steps=100, decay_steps=16_000, decay_lr=2.5e-6),
    ema_decay=0.999,
    log_every=100,
    eval_every=1_000,
    save_every=2_000,
    early_task="transfer_cube",
)
