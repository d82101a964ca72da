"""LeRobot's training options in `train.py`: those with a meaning here by our names, for the others what to do instead.

Names are LeRobot 0.4.4's (`lerobot/configs/train.py`, `configs/default.py`, `policies/smolvla/configuration_smolvla.py`,
`optim/`), in dashes; its underscores are read as dashes everywhere. Names that both share are not listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxreflow.errors import ConfigError
from jaxreflow.support.command_line import Flag, Translation

RENAMED = {
    "--save-freq": "--save-every",
    "--log-freq": "--log-every",
    "--eval-freq": "--eval-every",
    "--policy.dtype": "--dtype",
    "--optimizer.type": "--optimizer.name",
    "--optimizer.grad-clip-norm": "--optimizer.clip-norm",
    "--policy.optimizer-lr": "--optimizer.lr",
    "--policy.optimizer-betas": "--optimizer.betas",
    "--policy.optimizer-eps": "--optimizer.eps",
    "--policy.optimizer-weight-decay": "--optimizer.weight-decay",
    "--policy.optimizer-grad-clip-norm": "--optimizer.clip-norm",
    "--policy.scheduler-warmup-steps": "--optimizer.warmup-steps",
    "--policy.scheduler-decay-steps": "--optimizer.decay-steps",
    "--policy.scheduler-decay-lr": "--optimizer.decay-lr",
    "--scheduler.peak-lr": "--optimizer.lr",
    "--scheduler.num-warmup-steps": "--optimizer.warmup-steps",
    "--scheduler.num-decay-steps": "--optimizer.decay-steps",
    "--scheduler.decay-lr": "--optimizer.decay-lr",
    "--policy.repo-id": "--push-to-hub",
    "--policy.private": "--private",
    "--peft.r": "--lora.rank",
}

# LeRobot's policy is the one to distil in `reflow`, and the one to train in `finetune`, which has --policy.path itself.
PATHS = ("--policy.path", "--policy.pretrained-path")

_SEVERAL_DEVICES = "all devices that JAX finds are used; choose the platform by JAX_PLATFORMS=cpu, cuda or tpu"
_OUTPUT = "a run is named by its directory: give --output-dir outputs/NAME"
_SIMULATION = "policies are run in simulation by `python -m jaxreflow.sim`"
_TRAINED_SET = "reflow trains the expert, or with --trainable as-policy what the teacher's config.json says"
_FEATURES = "a policy's features are in its config.json; a new one has the dataset's"
_TRACKER = "the tracker's own environment variables say where it sends what: WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_MODE"

# By option, or by its first words with a dot at the end.
INSTEAD = {
    "--policy.device": _SEVERAL_DEVICES,
    "--policy.use-amp": "give --dtype bfloat16; weights are trained in float32 all the same",
    "--policy.compile-model": "everything is compiled",
    "--policy.compile-mode": "everything is compiled",
    "--policy.use-cache": "the context is always computed once per observation",
    "--policy.use-peft": "give --lora.rank",
    "--policy.load-vlm-weights": "the VLM's weights are the policy's, or with --policy.new those in --policy.vlm DIR",
    "--policy.tags": "edit the model card on the hub",
    "--policy.license": "give it to `python -m convert push --license ID`",
    "--policy.num-steps": "--num-steps are the student's Euler steps, --teacher-steps the teacher's",
    "--policy.train-expert-only": _TRAINED_SET,
    "--policy.freeze-vision-encoder": _TRAINED_SET,
    "--policy.train-state-proj": _TRAINED_SET,
    "--policy.input-features": _FEATURES,
    "--policy.output-features": _FEATURES,
    "--policy.n-obs-steps": "SmolVLA sees one observation",
    "--config-path": "a run is continued by `--output-dir RUN --resume`; its settings lie there",
    "--job-name": _OUTPUT,
    "--env.": _SIMULATION,
    "--eval.": _SIMULATION,
    "--peft.": "give --lora.rank and --lora.targets",
    "--wandb.": _TRACKER,
    "--scheduler.": "the schedule is warm-up and cosine decay, --optimizer.warmup-steps, .decay-steps and .decay-lr",
    "--use-policy-training-preset": "what is not given of --optimizer comes from the policy's config.json",
    "--save-checkpoint": "a run always saves its last update; --save-every says how often before, --keep how many stay",
    "--tolerance-s": "timestamps are checked with LeRobot's own tolerance, 1e-4 s",
    "--use-rabc": "all frames weigh the same",
    "--rabc-": "all frames weigh the same",
    "--dataset.image-transforms.tfs.": "each transform has its range, such as --dataset.image-transforms.brightness 0.8 1.2, and "
    "--dataset.image-transforms.weights are for all six",
    "--dataset.use-imagenet-stats": "SmolVLA does not normalise images; --stats-from replaces a policy's statistics",
    "--dataset.video-backend": "videos are decoded by PyAV",
    "--dataset.streaming": "a dataset is read from disk; gs:// and s3:// folders are fetched once",
}


def to_ours(flags: Sequence[Flag], options: Mapping[str, Any]) -> list[Flag]:
    """LeRobot's options as those of a run whose options are `options`; ConfigError says what to do instead of the others."""
    push = not any(flag.name == "--policy.push-to-hub" and _is_off(flag) for flag in flags)
    ours: list[Flag] = []
    refused: list[str] = []
    for flag in flags:
        try:
            ours += _to_ours(flag, options, push)
        except ConfigError as error:
            refused.append(str(error))
    if refused:
        raise ConfigError("\n".join(refused))
    return ours


def _to_ours(flag: Flag, options: Mapping[str, Any], push: bool) -> list[Flag]:
    if flag.name in options:
        return [flag]
    match flag.name:
        case "--policy.push-to-hub":
            return []  # --policy.repo-id says where to.
        case "--policy.repo-id" if not push:
            return []
        case "--wandb.enable":
            return [] if _is_off(flag) else [Flag("--tracker", ("wandb",))]
        case "--policy.type":
            _check(flag, "smolvla", "SmolVLA is the only policy that is distilled")
            return [Flag("--policy.new")] if "--policy.new" in options else []
        case "--scheduler.type":
            _check(flag, "cosine_decay_with_warmup", INSTEAD["--scheduler."])
            return []
        case name if name in PATHS:
            return [Flag("--policy.path" if "--policy.path" in options else "--teacher.path", flag.values)]
        case name if name in RENAMED:
            return [Flag(RENAMED[name], flag.values)]
    instead = next((text for name, text in INSTEAD.items() if _matches(flag.name, name)), None)
    if instead is None and flag.name.startswith("--policy.") and "--policy.path" not in options:
        instead = "a student has its teacher's architecture and settings"
    if instead is not None:
        raise ConfigError(f"{flag.name} is an option of LeRobot's that has no place here: {instead}")
    return [flag]


def _is_off(flag: Flag) -> bool:
    return bool(flag.values) and flag.values[0].lower() == "false"


def _check(flag: Flag, expected: str, instead: str) -> None:
    if flag.values != (expected,):
        raise ConfigError(f"{flag.name}: expected {expected}, found {' '.join(flag.values) or 'nothing'}: {instead}")


def _matches(name: str, known: str) -> bool:
    return name.startswith(known) if known.endswith((".", "-")) else name == known


LEROBOT = Translation(RENAMED, to_ours)
