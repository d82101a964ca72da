"""LeRobot's training options in `train.py`: those with a meaning here by our names, for the others what to do instead.

Names are those of LeRobot 0.4.4 and 0.6.1 (`lerobot/configs/train.py`, `configs/default.py`, `optim/`,
`policies/smolvla/configuration_smolvla.py`), in dashes. Underscores are read as dashes. Names that both share are not listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxreflow.errors import ConfigError
from jaxreflow.support.command_line import Flag, Translation

RENAMED = {
    "--save-freq": "--save-every",
    "--log-freq": "--log-every",
    "--eval-freq": "--eval-every",
    "--eval-steps": "--eval-every",
    "--dataset.eval-split": "--dataset.holdout",
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
    "--peft.lora-alpha": "--lora.alpha",
    "--tolerance-s": "--dataset.tolerance-s",
}

# LeRobot's policy is the one to distil in `reflow`, and the one to train in `finetune`, which has --policy.path itself.
PATHS = {
    "--policy.path": "path",
    "--policy.pretrained-path": "path",
    "--policy.pretrained-revision": "revision",
}

_SEVERAL_DEVICES = "all devices that JAX finds are used; choose the platform by JAX_PLATFORMS=cpu, cuda or tpu"
_OUTPUT = "a run is named by its directory: give --output-dir outputs/NAME"
_SIMULATION = "policies are run in simulation by `python -m jaxreflow.sim`"
_TRAINED_SET = "reflow trains the expert, or with --trainable as-policy what the teacher's config.json says"
_FEATURES = "a policy's features are in its config.json; a new one has the dataset's"
_TRACKER = "the tracker's own environment variables say where it sends what: WANDB_PROJECT, WANDB_ENTITY, WANDB_NAME, WANDB_MODE"

_LOADER = "Grain reads the frames, in as many processes as --num-workers says"

_NO_EVALUATION = "an evaluation is left out only where no episode is held out: give --dataset.holdout 0"

# What LeRobot leaves out at 0, by option, and how to do so here.
WITHOUT = {
    "--eval-steps": _NO_EVALUATION,
    "--eval-freq": _NO_EVALUATION,
    "--save-freq": "a run always saves its last update; for that one alone give --save-every the number of --steps",
}

# Switches whose `false` asks for nothing: a run is so in any case.
OFF_HERE = frozenset(
    {
        *("--policy.use-amp", "--policy.use-peft", "--policy.use-delta-joint-actions-aloha", "--dataset.streaming"),
        *("--save-checkpoint-to-hub", "--cudnn-deterministic", "--use-rabc"),
    }
)

# Options that have one value here, and why.
_ONLY = {
    "--job.target": (
        "local",
        "a run starts where this command is typed; launch/ has files for SLURM, TPUs and Kubernetes",
    ),
    "--dataset.repo-type": ("dataset", "a bucket's files are read when they are a folder on disk, or gs:// or s3://"),
}

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
    "--policy.num-vlm-layers": "give --student.vlm-layers, if a student is to have fewer than its teacher",
    "--policy.resize-imgs-with-padding": "give --student.image-size, if a student is to see smaller images than its teacher",
    "--policy.train-expert-only": _TRAINED_SET,
    "--policy.freeze-vision-encoder": _TRAINED_SET,
    "--policy.train-state-proj": _TRAINED_SET,
    "--policy.input-features": _FEATURES,
    "--policy.output-features": _FEATURES,
    "--policy.use-delta-joint-actions-aloha": "LeRobot does not train SmolVLA so either; leave it out",
    "--policy.rtc-config.": "real-time chunking is a setting of the robot's loop, not of training",
    "--policy.n-obs-steps": "SmolVLA sees one observation",
    "--config-path": "a run is continued by `--output-dir RUN --resume`; its settings lie there",
    "--job-name": _OUTPUT,
    "--env.": _SIMULATION,
    "--env-eval-freq": _SIMULATION,
    "--eval.": _SIMULATION,
    "--peft.target-modules": "give --lora.targets, by this package's names of layers",
    "--peft.": "adapters are --lora.rank, --lora.alpha and --lora.targets",
    "--wandb.": _TRACKER,
    "--scheduler.": "the schedule is warm-up and cosine decay, --optimizer.warmup-steps, .decay-steps and .decay-lr",
    "--use-policy-training-preset": "what is not given of --optimizer comes from the policy's config.json",
    "--save-checkpoint": "a run always saves its last update; --save-every says how often before, --keep how many stay",
    "--max-eval-samples": "--eval-batches says how many batches an evaluation looks at",
    "--save-checkpoint-to-hub": "the finished policy is pushed by --push-to-hub USER/NAME",
    "--job.": _ONLY["--job.target"][1],
    "--reward-model.": "SmolVLA is the only model that is trained",
    "--cudnn-deterministic": "give XLA_FLAGS=--xla_gpu_deterministic_ops=true in the environment",
    "--prefetch-factor": _LOADER,
    "--persistent-workers": _LOADER,
    "--dataloader-multiprocessing-context": _LOADER,
    "--sample-weighting.": "all frames weigh the same",
    "--use-rabc": "all frames weigh the same",
    "--rabc-": "all frames weigh the same",
    "--dataset.image-transforms.tfs.": "each transform has its range, such as --dataset.image-transforms.brightness 0.8 1.2, and "
    "--dataset.image-transforms.weights are for all six",
    "--dataset.use-imagenet-stats": "SmolVLA does not normalise images; --stats-from replaces a policy's statistics",
    "--dataset.video-backend": "videos are decoded by PyAV",
    "--dataset.return-uint8": "images stay uint8 until the device has them",
    "--dataset.depth-output-unit": "SmolVLA sees colour images alone",
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
        case name if name in OFF_HERE and _is_off(flag):
            return []
        case "--env-eval-freq" if _is_zero(flag):
            return []
        case name if name in WITHOUT and _is_zero(flag):
            raise ConfigError(f"{name} {flag.values[0]}: {WITHOUT[name]}")
        case "--peft.method-type":
            loud = Flag(flag.name, tuple(map(str.upper, flag.values)))
            _check(loud, "LORA", "LoRA adapters are the only ones that are trained here")
            return []
        case "--job.target" | "--dataset.repo-type":
            _check(flag, *_ONLY[flag.name])
            return []
        case "--scheduler.type":
            _check(flag, "cosine_decay_with_warmup", INSTEAD["--scheduler."])
            return []
        case name if name in PATHS:
            source = "--policy" if "--policy.path" in options else "--teacher"
            return [Flag(f"{source}.{PATHS[name]}", flag.values)]
        case name if name in RENAMED:
            return [Flag(RENAMED[name], flag.values)]
    instead = next((text for name, text in INSTEAD.items() if _matches(flag.name, name)), None)
    if instead is None and flag.name.startswith("--policy.") and "--policy.path" not in options:
        instead = "a student has its teacher's architecture and settings"
    if instead is not None:
        raise ConfigError(f"{flag.name} is an option of LeRobot's that has no place here: {instead}")
    return [flag]


def _is_zero(flag: Flag) -> bool:
    return bool(flag.values) and re.fullmatch(r"0|-\d+", flag.values[0]) is not None


def _is_off(flag: Flag) -> bool:
    return bool(flag.values) and flag.values[0].lower() == "false"


def _check(flag: Flag, expected: str, instead: str) -> None:
    if flag.values != (expected,):
        raise ConfigError(f"{flag.name}: expected {expected}, found {' '.join(flag.values) or 'nothing'}: {instead}")


def _matches(name: str, known: str) -> bool:
    return name.startswith(known) if known.endswith((".", "-")) else name == known


LEROBOT = Translation(RENAMED, to_ours)
