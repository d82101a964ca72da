"""Options of LeRobot's that `train.py` translates or answers: each is one of the installed LeRobot's."""

import dataclasses
import typing
from collections.abc import Iterator

from jaxreflow.run.lerobot_flags import INSTEAD, RENAMED

from .lerobot_shim import IS_0_6, upstream_warnings_ignored

with upstream_warnings_ignored():
    from lerobot.configs.default import PeftConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.optim.optimizers import AdamWConfig
    from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

# Classes that LeRobot chooses by `type`, of which SmolVLA takes these; PEFT is optional.
CHOSEN = {
    "policy": SmolVLAConfig,
    "optimizer": AdamWConfig,
    "scheduler": CosineDecayWithWarmupSchedulerConfig,
    "peft": PeftConfig,
}
# Read from the command line by its parser; and what users of newer versions type.
BESIDE = {"--policy.path", "--config-path", "--policy.type", "--optimizer.type", "--scheduler.type", "--policy.dtype"}
# What LeRobot 0.6.1 has beside them: its `configs/train.py`, `configs/default.py` and `configs/policies.py`.
NEWER = {
    *("--eval-steps", "--env-eval-freq", "--max-eval-samples", "--dataset.eval-split", "--dataset.repo-type"),
    *("--dataset.return-uint8", "--dataset.depth-output-unit", "--peft.lora-alpha", "--policy.pretrained-revision"),
    *("--save-checkpoint-to-hub", "--job.target", "--cudnn-deterministic", "--prefetch-factor", "--persistent-workers"),
    *("--dataloader-multiprocessing-context", "--reward-model.path", "--sample-weighting.type"),
}
# Options of 0.4.4 that 0.6.1 has no longer, but its users may type.
GONE = {"--eval-freq", "--use-rabc"}


def options(cls: type, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name] if prefix else CHOSEN.get(field.name, hints[field.name])
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(kind):
            yield from options(kind, f"{name}.")
        else:
            yield f"--{name}"


def test_translated_options_are_lerobots() -> None:
    known = {*options(TrainPipelineConfig), *BESIDE, *(GONE if IS_0_6 else NEWER)}
    # What is a dict there, such as the transforms' settings, has options below it, too.
    groups = {name.split(".")[0] + "." for name in known} | {f"{name}." for name in known} | {"--rabc-", "--env."}
    for name in [*RENAMED, *INSTEAD]:
        assert name in known or (name.endswith((".", "-")) and name in groups), name
