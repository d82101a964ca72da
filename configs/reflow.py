"""Distils a teacher into a student that acts in one Euler step, by flow matching on (noise, teacher's endpoint) pairs.

    python train.py reflow --teacher.path DIR_OR_HUB_ID --dataset.root DIR --output-dir RUN

The student starts as the teacher; its VLM stays frozen and is shared. Law, optimizer and loss won the comparison in
docs/results.md, one at a time, on a small SmolVLA; figures are the student's error in one step after 1,000 updates, of one seed
but for the last:

- half of the times t exactly 1, where a one-step student is evaluated, the others by a density as e^4t: .142, with the
  others U-shaped .150, with LeRobot's Beta law for all .163;
- Muon at 2e-3: .142, AdamW .152; at 1e-3 they hardly differ (.152, .154);
- pseudo-Huber: .138 (mean of three seeds), mean squared error .142.

Not from there: the learning rate is LeRobot's for SmolVLA, and each observation gets four noises, which share its pass through
the VLM: an update takes 1.5 times as long as with one (docs/benchmarks.md). On the small model, where that pass is cheap, one
noise each of more observations was better. All of this together, at this learning rate, has not been trained on a full-size policy.

Expected: `held_out_loss`, the objective on held-out episodes, falls steeply in the first 1,000 updates and slowly from there on.
The student in RUN/checkpoints/last/pretrained_model loads in LeRobot.
"""

from jaxreflow.run.config import OptimizerFlags, ReflowConfig

config = ReflowConfig(
    time_law="half-at-one-exponential",
    objective="pseudo-huber",
    optimizer=OptimizerFlags(name="muon", lr=1e-4, warmup_steps=500, decay_steps=20_000, decay_lr=2.5e-6),
)
