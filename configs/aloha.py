"""Distils the teacher of configs/aloha_teacher.py: the bimanual student of docs/results.md.

    python -m jaxreflow.data.features runs/aloha/data --policy runs/aloha/teacher/checkpoints/last/pretrained_model \\
        --out runs/aloha/features
    python train.py aloha --output-dir runs/aloha/students/default

The recipe is that of configs/metaworld.py.
"""

import dataclasses

from configs import metaworld
from jaxreflow.run.config import DatasetConfig, TeacherSource

config = dataclasses.replace(
    metaworld.config,
    teacher=TeacherSource(path="runs/aloha/teacher/checkpoints/last/pretrained_model"),
    dataset=DatasetConfig(root="runs/aloha/data", features="runs/aloha/features"),
    early_task="transfer_cube",
)
