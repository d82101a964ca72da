"""Distils a teacher into a student that acts in one Euler step, by flow matching on (noise, teacher's endpoint) pairs.

    python train.py reflow --teacher.path DIR_OR_HUB_ID --dataset.root DIR --output-dir RUN

The student starts as the teacher; its VLM stays frozen and is shared. Four noises per observation; half of the times t
are exactly 1, where a one-step student is evaluated, the others U-shaped. Expected: `held_out_loss`, the squared error
of the velocity, falls steeply in the first 1,000 updates and slowly from there on. The student in
RUN/checkpoints/last/pretrained_model loads in LeRobot.
"""

from jaxreflow.run_config import ReflowConfig

config = ReflowConfig()
