"""Distils the teacher of configs/metaworld_teacher.py: the student of docs/results.md.

    python -m jaxreflow.data.features runs/metaworld/data --policy runs/metaworld/teacher/checkpoints/last/pretrained_model \\
        --out runs/metaworld/features
    python train.py metaworld --output-dir runs/metaworld/students/default

`make results` runs both commands, and docs/results.md has the results. The config differs from configs/reflow.py in four
values: the mean squared error, one noise for each observation, two times for each pair, and a higher learning rate.
"""

from jaxreflow.run.config import DatasetConfig, OptimizerFlags, ReflowConfig, TeacherSource

config = ReflowConfig(
    teacher=TeacherSource(path="runs/metaworld/teacher/checkpoints/last/pretrained_model"),
    dataset=DatasetConfig(root="runs/metaworld/data", features="runs/metaworld/features"),
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
    early_task="Bypass a wall and reach a goal",
)
