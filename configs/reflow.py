"""Distils a teacher into a student that acts in one Euler step, by flow matching on (noise, teacher's endpoint) pairs.

    python train.py reflow --teacher.path DIR_OR_HUB_ID --dataset.root DIR --output-dir RUN

The student starts as the teacher. Its VLM stays frozen and is shared. Law, optimizer and loss won the comparison in
docs/results.md, one at a time, on a small SmolVLA. Figures are the student's error in one step after 1,000 updates. They have
one seed, except for the loss:

- Half of the times t are exactly 1, where a one-step student is evaluated. The others follow a density as e^4t. This law has
  .142. With the others U-shaped it has .150, and LeRobot's Beta law for all times has .163.
- Muon at 2e-3 has .142, and AdamW .152. At 1e-3 they hardly differ (.152, .154).
- Pseudo-Huber has .138 (mean of three seeds), and the mean squared error .142.

Two values are not from that comparison. The learning rate is LeRobot's for SmolVLA. By the rates that are best for experts of
48 to 192 units, a larger one may be better at 720 units (docs/results.md), so try 1e-3, too. Each observation gets four
noises, which share its pass through the VLM, so an update takes 1.56 times as long as with one (docs/benchmarks.md). In equal
time, by these costs, small students with two and four noises have .124, with one .131, with eight .127. On the small model,
where that pass is cheap, one noise is best. All of this together, at this learning rate, has not been trained on a full-size
policy.

Expected: `held_out_loss`, the objective on held-out episodes, falls steeply in the first 1,000 updates, and slowly after them.
The student in RUN/checkpoints/last/pretrained_model loads in LeRobot.
"""

from jaxreflow.run.config import OptimizerFlags, ReflowConfig

config = ReflowConfig(
    time_law="half-at-one-exponential",
    objective="pseudo-huber",
    optimizer=OptimizerFlags(name="muon", lr=1e-4, warmup_steps=500, decay_steps=20_000, decay_lr=2.5e-6),
)
