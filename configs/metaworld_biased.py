"""Fine-tunes the teacher of configs/metaworld_teacher.py by flow matching at times near noise: the baseline of docs/results.md.

    python train.py metaworld_biased --output-dir runs/metaworld/students/noise_biased

Trained parameters, updates, velocities per update and optimizer are those of configs/metaworld.py. The times t follow
Beta(4, 1) (arXiv 2606.05737). No teacher takes part in the training.
"""

from jaxreflow.run.config import DatasetConfig, FinetuneConfig, OptimizerFlags, PolicySource

config = FinetuneConfig(
    policy=PolicySource(
        path="runs/metaworld/teacher/checkpoints/last/pretrained_model",
        train_expert_only=True,
        freeze_vision_encoder=True,
    ),
    dataset=DatasetConfig(root="runs/metaworld/data", features="runs/metaworld/features"),
    steps=16_000,
    batch_size=16,
    noises=2,
    time_law="noise-biased",
    num_steps=1,
    optimizer=OptimizerFlags(name="muon", lr=2e-3, warmup_steps=100, decay_steps=16_000, decay_lr=2.5e-6),
    ema_decay=0.999,
    log_every=100,
    eval_every=1_000,
    save_every=2_000,
)
