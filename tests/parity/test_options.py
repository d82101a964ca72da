"""LeRobot's own options: those that `train.py` translates or answers, and those of `lerobot-rollout` on docs/so101.md."""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxreflow.run.lerobot_flags import INSTEAD, RENAMED
from tests.so101_page import commands

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


@pytest.mark.skipif(not IS_0_6, reason="lerobot-rollout is newer than LeRobot 0.4")
def test_rollouts_on_the_so101_page_are_lerobots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed as the command does, with a policy of this repository and no robot."""
    import draccus
    from lerobot.configs import parser
    from lerobot.scripts.lerobot_rollout import RolloutConfig  # registers robots and cameras, too

    teacher = str(Path(__file__).parents[1] / "assets" / "teacher")
    weights = []
    for words in commands("lerobot-rollout"):
        words = [f"--policy.path={teacher}" if word == "--policy.path=STUDENT" else word for word in words]
        monkeypatch.setattr("sys.argv", words)
        config = draccus.parse(RolloutConfig, args=parser.filter_path_args(["policy"], words[1:]))
        assert config.robot.port == "/dev/ttyACM0"
        assert list(config.robot.cameras) == ["front", "wrist"]
        assert config.policy.num_steps == 1
        weights.append(config.inference.rtc.max_guidance_weight if config.inference.type == "rtc" else None)
    assert weights == [None, 1.0]
