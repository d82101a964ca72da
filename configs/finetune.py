"""Trains a policy on recorded actions by flow matching, as LeRobot does (1-rectified flow).

    python train.py finetune --policy.path DIR_OR_HUB_ID --dataset.root DIR --output-dir RUN
    python train.py finetune --policy.new --policy.vlm DIR --dataset.root DIR --output-dir RUN

The policy's config.json names optimizer, schedule and trainable set. Expected: `held_out_loss` falls until the policy
overfits. RUN/checkpoints/last/pretrained_model loads in LeRobot, and can be the teacher of `train.py reflow`.
"""

from jaxreflow.run.config import FinetuneConfig

config = FinetuneConfig()
