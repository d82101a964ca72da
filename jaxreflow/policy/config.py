"""What a checkpoint says of itself: LeRobot's SmolVLA `config.json`, the VLM's dimensions, and the network they make."""

from __future__ import annotations

import dataclasses
import typing
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from jaxreflow.errors import ConfigError
from jaxreflow.policy.config_fields import CARRIED_DEFAULTS, POLICY_FIELDS
from jaxreflow.policy.names import ACTION, EMPTY_CAMERA, STATE
from jaxreflow.support.typed_json import from_json

DEFAULT_VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
# The same policy for LeRobot's commands, through the plugin lerobot_policy_jaxreflow.
PLUGIN_TYPE = "smolvla_jax"
NORMALIZATION_MODES = ("IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10")
# Far above every policy's chunk, widths and steps; a stranger's config.json must not fill the memory.
LARGEST = 1 << 16
_CHANNELS = (1, 3, 4)
# Of a camera's pictures. LeRobot never reads the declared size, so that it may be anything.
_LARGEST_SIDE = 1 << 13


@dataclasses.dataclass(frozen=True)
class Feature:
    """One input or output of a policy: `type` is STATE, VISUAL or ACTION; `shape` without batch (images C, H, W or H, W, C).

    LeRobot reads the action's shape only, so the others may be another robot's.
    """

    type: str
    shape: tuple[int, ...]


def image_size(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """An image's height and width, whichever axis holds the channels; None for a shape of no image."""
    if len(shape) != 3:
        return None
    first, middle, last = shape
    return (first, middle) if last in _CHANNELS and first not in _CHANNELS else (middle, last)


def features_to_json(features: Mapping[str, Feature]) -> dict[str, Any]:
    """Features as LeRobot's JSON files have them."""
    return {key: {"type": feature.type, "shape": list(feature.shape)} for key, feature in features.items()}


def _default_normalization() -> dict[str, str]:
    return {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """LeRobot's SmolVLA `config.json`; defaults are LeRobot's.

    Raises:
        ConfigError: a field is unknown, inconsistent, or asks for what LeRobot itself cannot run.
    """

    input_features: Mapping[str, Feature] = dataclasses.field(default_factory=dict)
    output_features: Mapping[str, Feature] = dataclasses.field(default_factory=dict)
    normalization_mapping: Mapping[str, str] = dataclasses.field(default_factory=_default_normalization)
    chunk_size: int = 50
    n_action_steps: int = 50
    max_state_dim: int = 32
    max_action_dim: int = 32
    resize_imgs_with_padding: tuple[int, int] | None = (512, 512)
    empty_cameras: int = 0
    adapt_to_pi_aloha: bool = False
    tokenizer_max_length: int = 48
    pad_language_to: str = "longest"
    num_steps: int = 10
    freeze_vision_encoder: bool = True
    train_expert_only: bool = True
    train_state_proj: bool = True
    optimizer_lr: float = 1e-4
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 1e-10
    optimizer_grad_clip_norm: float = 10.0
    scheduler_warmup_steps: int = 1_000
    scheduler_decay_steps: int = 30_000
    scheduler_decay_lr: float = 2.5e-6
    vlm_model_name: str = DEFAULT_VLM
    add_image_special_tokens: bool = False
    attention_mode: str = "cross_attn"
    prefix_length: int = -1
    num_expert_layers: int = -1
    num_vlm_layers: int = 16
    self_attn_every_n_layers: int = 2
    expert_width_multiplier: float = 0.75
    min_period: float = 4e-3
    max_period: float = 4.0
    carried: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(CARRIED_DEFAULTS))

    def __post_init__(self) -> None:
        for holds, rule in _rules(self):
            if not holds:
                raise ConfigError(f"config.json: {rule}")

    @property
    def visual_keys(self) -> tuple[str, ...]:
        """All VISUAL inputs in the order of the config, then the `empty_camera_*` that LeRobot adds when it opens a policy."""
        listed = [key for key, feature in self.input_features.items() if feature.type == "VISUAL"]
        return tuple(dict.fromkeys([*listed, *(f"{EMPTY_CAMERA}{i}" for i in range(self.empty_cameras))]))

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """The real cameras in the order of the config."""
        return tuple(key for key in self.visual_keys if not key.startswith(EMPTY_CAMERA))

    @property
    def used_inputs(self) -> tuple[str, ...]:
        """What the network sees of `input_features`: the state, if it is declared, and the real cameras that are."""
        return tuple(key for key in (STATE, *self.camera_keys) if key in self.input_features)

    def declared_size(self, camera: str) -> tuple[int, int]:
        """Height and width of a camera's images as `input_features` has them, or 480 x 640 where no image is of that shape."""
        height, width = image_size(self.input_features[camera].shape) or (0, 0)
        return (height, width) if 0 < height <= _LARGEST_SIDE and 0 < width <= _LARGEST_SIDE else (480, 640)

    @property
    def state_dim(self) -> int:
        """Real dimensions of `observation.state`; 0 if the config declares none."""
        feature = self.input_features.get(STATE)
        return feature.shape[0] if feature and feature.shape else 0

    @property
    def action_dim(self) -> int:
        """Real dimensions of `action`."""
        if ACTION not in self.output_features:
            raise ConfigError(
                "config.json: `output_features` has no `action`; expected its shape, found "
                f"{sorted(self.output_features) or 'nothing'}"
            )
        return self.output_features[ACTION].shape[0]

    def with_state_dim(self, dim: int) -> PolicyConfig:
        """The same policy for states of `dim` real dimensions."""
        return dataclasses.replace(self, input_features={**self.input_features, STATE: Feature("STATE", (dim,))})

    def with_action_dim(self, dim: int) -> PolicyConfig:
        """The same policy for actions of `dim` real dimensions; ConfigError where they do not fit its padded width."""
        return dataclasses.replace(self, output_features={**self.output_features, ACTION: Feature("ACTION", (dim,))})

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> PolicyConfig:
        """The config of a parsed `config.json`; unknown fields are refused by name."""
        fields = dict(fields)
        if fields.get("type") == PLUGIN_TYPE:
            fields = {**fields, "type": "smolvla"}
            fields.pop("jax_dtype", None)
        if fields.get("type") != "smolvla":
            raise ConfigError(
                f'config.json: `type` must be "smolvla", found {fields.get("type")!r}: only SmolVLA policies can be read'
            )
        unknown = sorted(set(fields) - set(POLICY_FIELDS))
        if unknown:
            raise ConfigError(
                f"config.json: unknown field(s) {', '.join(unknown)}: jaxreflow cannot tell whether they change the "
                "policy; remove them if they do not, or upgrade jaxreflow"
            )
        legacy = sorted(name for name in fields if POLICY_FIELDS[name][0] == "legacy")
        if legacy:
            warnings.warn(
                f"config.json holds training artefacts of an old fork ({', '.join(legacy)}); they are ignored and will "
                "not be written (`python -m convert doctor DIR --fix` removes them)",
                stacklevel=2,
            )
        for name in ("input_features", "output_features"):
            fields[name] = fields.get(name) or {}
        own = {name: kind for name, kind in typing.get_type_hints(cls).items() if name != "carried"}
        try:
            values = {name: from_json(own[name], fields[name], name, floats="finite") for name in fields if name in own}
        except TypeError as error:
            raise ConfigError(f"config.json: a field has the wrong form: {error}") from error
        carried = {name: fields[name] for name in fields if name not in own and name not in legacy and name != "type"}
        return cls(**values, carried=carried)

    def to_json(self) -> dict[str, Any]:
        """The `config.json` that LeRobot reads: `type` first, legacy fields left out."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "carried"}
        for name in ("input_features", "output_features"):
            own[name] = features_to_json(own[name])
        own["normalization_mapping"] = dict(self.normalization_mapping)
        for name, value in own.items():
            own[name] = list(value) if isinstance(value, tuple) else value
        return {"type": "smolvla", **own, **self.carried}


def _rules(config: PolicyConfig) -> Iterator[tuple[bool, str]]:
    """What must hold of a config: whether it does, and the rule with what was found; each may rely on those before it."""
    for name in (
        "chunk_size",
        "n_action_steps",
        "max_state_dim",
        "max_action_dim",
        "tokenizer_max_length",
        "num_steps",
    ):
        value = getattr(config, name)
        yield 1 <= value <= LARGEST, f"`{name}` must be at least 1 and at most {LARGEST}, found {value}"
    yield (
        config.n_action_steps <= config.chunk_size,
        f"`n_action_steps` ({config.n_action_steps}) must not exceed `chunk_size` ({config.chunk_size})",
    )
    yield (
        0 <= config.empty_cameras <= LARGEST,
        f"`empty_cameras` must be at least 0 and at most {LARGEST}, found {config.empty_cameras}",
    )
    yield (
        0 < config.expert_width_multiplier <= 16,
        f"`expert_width_multiplier` must be positive and at most 16, found {config.expert_width_multiplier}",
    )
    yield (
        config.pad_language_to in ("longest", "max_length"),
        f'`pad_language_to` must be "longest" or "max_length", found {config.pad_language_to!r}',
    )
    for name in ("min_period", "max_period"):
        yield getattr(config, name) > 0, f"`{name}` must be positive, found {getattr(config, name)}"
    for kind, mode in config.normalization_mapping.items():
        modes = ", ".join(NORMALIZATION_MODES)
        yield mode in NORMALIZATION_MODES, f"`normalization_mapping` of {kind} must be one of {modes}, found {mode!r}"
    yield (
        not config.carried.get("use_delta_joint_actions_aloha"),
        "`use_delta_joint_actions_aloha` is true: neither LeRobot nor jaxreflow can honour it; set it to false",
    )
    # The state's declared width is not looked at: LeRobot goes by the statistics, and so does `fit_state`.
    if ACTION in config.output_features:
        shape = config.output_features[ACTION].shape
        yield len(shape) > 0, f"the shape of `{ACTION}` must be a list of whole numbers, found an empty one"
        limit = config.max_action_dim
        yield shape[0] <= limit, f"`{ACTION}` has {shape[0]} dimensions, more than the padded width {limit}"
