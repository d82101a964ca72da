"""Options of a training run that belong together: its dataset, the policy that it starts from, its optimizer."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection
from typing import Any, Literal

from jaxreflow.errors import ConfigError
from jaxreflow.model.layer_choice import Choice
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.support.option import option
from jaxreflow.support.storage import check_path, is_remote
from jaxreflow.support.tyro_rules import RenameMap
from jaxreflow.training.augmentation import ImageTransformsConfig
from jaxreflow.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """The LeRobotDataset to train on."""

    root: str | None = option(None, may_change=True)
    """Its directory, which may be gs:// or s3://."""
    repo_id: str | None = None
    """Its name on the hub, if it is not on disk."""
    revision: str | None = None
    """Of --dataset.repo-id: a commit, tag or branch (default: main)."""
    episodes: tuple[int, ...] | None = None
    """Episodes to use (default: all)."""
    holdout: float = 0.1
    """Share of the episodes that is held out of training and evaluated."""
    tolerance_s: float = option(1e-4, may_change=True)
    """Seconds that a frame of a video may be away from its timestamp: more where timestamps are from a clock."""
    cache_frames: float = option(0.0, may_change=True)
    """Decode all frames into memory first, at most this many GiB per process; 0: decode each when it is needed."""

    features: str | None = None
    """Cache of image tokens made by `python -m jaxreflow.data.features`: no video is decoded, no vision tower runs."""
    skip_bad: bool = option(False, may_change=True)
    """Put another frame in the place of one that cannot be decoded, and say so, instead of stopping."""
    image_transforms: ImageTransformsConfig = dataclasses.field(default_factory=ImageTransformsConfig)

    def __post_init__(self) -> None:
        if self.revision and not self.repo_id:
            raise ConfigError(
                f"--dataset.revision {self.revision} is one of --dataset.repo-id, which is missing: give both"
            )
        check_path("--dataset.root", self.root)
        check_path("--dataset.features", self.features)
        self.check_cache("--dataset.features", self.features)
        if not 0 < self.tolerance_s < math.inf:
            raise ConfigError(f"--dataset.tolerance-s must be positive, found {self.tolerance_s}")
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"--dataset.holdout must lie in [0, 1), found {self.holdout}")
        if not 0 <= self.cache_frames < math.inf:
            raise ConfigError(f"--dataset.cache-frames must not be negative, found {self.cache_frames}")

    def check_cache(self, option: str, cache: str | None) -> None:
        """ConfigError if a cache of image tokens, which `option` names, cannot stand for these images."""
        if cache and self.episodes is not None and is_remote(self.root or ""):
            raise ConfigError(
                f"{option} is checked against all files of the dataset, but of a remote one only those of "
                "--dataset.episodes are fetched; leave one of the two out, or give a local copy of the dataset"
            )
        if cache and self.image_transforms.enable:
            raise ConfigError(
                f"--dataset.image-transforms.enable changes images, of which {option} holds the tokens, made "
                "before: leave one of the two out"
            )


@dataclasses.dataclass(frozen=True)
class TeacherSource:
    """The policy to distil."""

    path: str | None = option(None, may_change=True)
    """A LeRobot checkpoint: directory, which may be gs:// or s3://, or hub name."""
    revision: str | None = option(None, may_change=True)
    """Of a hub name: a commit, tag or branch (default: main)."""

    def __post_init__(self) -> None:
        check_path("--teacher.path", self.path)


@dataclasses.dataclass(frozen=True)
class StudentConfig:
    """The student's network, where it is to cost less than its teacher's; everything else is the teacher's."""

    image_size: int | None = option(None, label="the student's image size", unsaid=None)
    """Width and height to which the student resizes and pads images (default: as the teacher)."""
    vlm_layers: int | None = option(None, label="the student's VLM layers", unsaid=None)
    """VLM layers of the student, and so many of its expert (default: all of the teacher's)."""
    layers: Choice = option("first", label="of the teacher's layers", unsaid="first")
    """Which of the teacher's layers the student starts from: the first ones, or some at even distances."""
    features: str | None = None
    """Cache of the student's image tokens, made by `python -m jaxreflow.data.features --image-size`; its tower stays frozen."""

    def __post_init__(self) -> None:
        check_path("--student.features", self.features)
        for name in ("image_size", "vlm_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--student.{name.replace('_', '-')} must be at least 1, found {value}")
        if self.layers != "first" and self.vlm_layers is None:
            raise ConfigError(
                f"--student.layers {self.layers} is about --student.vlm-layers, which is missing: give both, or neither"
            )

    @property
    def sees_otherwise(self) -> bool:
        """Whether the student makes other tokens of an image than its teacher."""
        return self.image_size is not None

    @property
    def is_compact(self) -> bool:
        """Whether the student's network is asked to differ from its teacher's."""
        return self.image_size is not None or self.vlm_layers is not None


@dataclasses.dataclass(frozen=True)
class PolicySource:
    """The policy to train: one that exists, or a new one. Fields of its config.json override what it would have."""

    path: str | None = option(None, may_change=True)
    """A LeRobot checkpoint: directory, which may be gs:// or s3://, or hub name."""
    revision: str | None = option(None, may_change=True)
    """Of a hub name: a commit, tag or branch (default: main)."""
    new: bool = False
    """Make a new policy for the dataset's features."""
    vlm: str | None = None
    """For a new policy, directory of the VLM: config, tokenizer, and weights (random if it holds none)."""
    normalization_mapping: RenameMap | None = None
    """IDENTITY, MEAN_STD, MIN_MAX, QUANTILES or QUANTILE10 of STATE, ACTION and VISUAL."""
    chunk_size: int | None = None
    """Actions predicted at once."""
    n_action_steps: int | None = None
    """Actions of a chunk that are executed."""
    max_state_dim: int | None = None
    """Width to which states are padded."""
    max_action_dim: int | None = None
    """Width to which actions are padded."""
    resize_imgs_with_padding: tuple[int, int] | Literal["none"] | None = None
    """Width and height to which images are resized and padded."""
    empty_cameras: int | None = None
    """Absent cameras that masked images stand in for."""
    adapt_to_pi_aloha: bool | None = None
    """Aloha's joints in pi's space."""
    tokenizer_max_length: int | None = None
    """Tokens of an instruction."""
    pad_language_to: Literal["longest", "max_length"] | None = None
    """Length to which instructions are padded."""
    num_steps: int | None = None
    """Euler steps of the sampler."""
    freeze_vision_encoder: bool | None = None
    """Leave the vision tower as it is."""
    train_expert_only: bool | None = None
    """Leave the whole VLM as it is."""
    train_state_proj: bool | None = None
    """Train the state's projection."""
    vlm_model_name: str | None = None
    """Hub name of the VLM that LeRobot loads."""
    add_image_special_tokens: bool | None = None
    """Tokens around the image tokens."""
    attention_mode: Literal["cross_attn", "self_attn"] | None = None
    """How the expert looks at the VLM."""
    prefix_length: int | None = None
    """Length to which the prefix is padded; -1: none."""
    num_expert_layers: int | None = None
    """Layers of the expert; -1: as many as of the VLM."""
    num_vlm_layers: int | None = None
    """First layers of the VLM that run."""
    self_attn_every_n_layers: int | None = None
    """Under cross_attn, one layer of so many has self-attention."""
    expert_width_multiplier: float | None = None
    """Width of the expert relative to the VLM's."""
    min_period: float | None = None
    """Shortest period of the time embedding."""
    max_period: float | None = None
    """Longest period of the time embedding."""

    def __post_init__(self) -> None:
        check_path("--policy.path", self.path)
        check_path("--policy.vlm", self.vlm, schemes=())
        if self.new and (self.path or self.revision):
            given = "--policy.path" if self.path else "--policy.revision"
            raise ConfigError(f"--policy.new and {given} exclude each other: give one of them")

    def apply(self, policy: PolicyConfig) -> PolicyConfig:
        """`policy` with the fields that are set here."""
        own = {field.name for field in dataclasses.fields(PolicyConfig)}
        given = {name: value for name, value in vars(self).items() if name in own and value is not None}
        if given.get("resize_imgs_with_padding") == "none":
            given["resize_imgs_with_padding"] = None
        return dataclasses.replace(policy, **given)


# What must stay in a policy whose weights exist: widths, layers and their kinds, and the VLM. No tensor depends on the rest.
FIXED_FIELDS = frozenset(
    {
        *("max_state_dim", "max_action_dim", "num_vlm_layers", "num_expert_layers", "expert_width_multiplier"),
        *("attention_mode", "self_attn_every_n_layers", "vlm_model_name"),
    }
)


@dataclasses.dataclass(frozen=True)
class OptimizerFlags:
    """The optimizer, with warm-up and cosine decay; what is not set comes from the policy's config.json."""

    name: str = "adamw"
    """adamw (LeRobot's), or muon (arXiv 2502.16982) for matrices and adamw for the rest."""
    lr: float | None = None
    """Peak learning rate."""
    betas: tuple[float, float] | None = None
    """Decay of AdamW's first and second moment."""
    eps: float | None = None
    """Added to the root of the second moment."""
    weight_decay: float | None = None
    """Decoupled weight decay."""
    clip_norm: float | None = None
    """Largest global norm of the gradient."""
    warmup_steps: int | None = None
    """Updates of linear warm-up."""
    decay_steps: int | None = None
    """Update at which the cosine ends; shorter runs scale it and the warm-up down to their length."""
    decay_lr: float | None = None
    """Learning rate from there on."""

    def resolve(self, policy: PolicyConfig) -> OptimizerConfig:
        """The optimizer of a run that starts from `policy`."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return OptimizerConfig(**{**policy_optimizer(policy), **given})


def policy_optimizer(policy: PolicyConfig) -> dict[str, Any]:
    """The optimizer that a policy's config.json names, as fields of `OptimizerConfig`."""
    return {
        "lr": policy.optimizer_lr,
        "betas": policy.optimizer_betas,
        "eps": policy.optimizer_eps,
        "weight_decay": policy.optimizer_weight_decay,
        "clip_norm": policy.optimizer_grad_clip_norm,
        "warmup_steps": policy.scheduler_warmup_steps,
        "decay_steps": policy.scheduler_decay_steps,
        "decay_lr": policy.scheduler_decay_lr,
    }


def flag_of(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"


def check_numbers(settings: Any, names: Collection[str], *, at_least: Literal[0, 1]) -> None:
    """ConfigError for a smaller number in one of these fields; an unset one is none."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < at_least:
            expected = "be at least 1" if at_least else "not be negative"
            raise ConfigError(f"{flag_of(name)} must {expected}, found {value}")


def check_choice(flag: str, value: str, choices: Collection[str]) -> None:
    """ConfigError for a value that is no choice of its option."""
    if value not in choices:
        raise ConfigError(f"{flag} must be one of {', '.join(choices)}, found {value!r}")


def parse_window(profile: str | None, steps: int) -> tuple[int, int] | None:
    """First and number of the updates that `--profile` names; ConfigError if they are none of the run's."""
    if profile is None:
        return None
    match = re.fullmatch(r"(\d+),(\d+)", profile)
    if not match:
        raise ConfigError(f"--profile: expected START,N, such as 100,5, found {profile!r}")
    first, count = int(match[1]), int(match[2])
    if first < 1 or count < 1 or first + count - 1 > steps:
        raise ConfigError(
            f"--profile {profile}: expected START,N, at least one update of 1 to {steps} (--steps), found updates {first} to "
            f"{first + count - 1}"
        )
    return first, count
