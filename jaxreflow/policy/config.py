"""What a checkpoint says of itself: LeRobot's SmolVLA `config.json`, the VLM's dimensions, and the network they make."""

from __future__ import annotations

import dataclasses
import typing
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from jaxreflow.errors import ConfigError
from jaxreflow.policy.config_fields import CARRIED_DEFAULTS, POLICY_FIELDS
from jaxreflow.support.typed_json import from_json

DEFAULT_VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
# The same policy for LeRobot's commands, through the plugin lerobot_policy_jaxreflow.
PLUGIN_TYPE = "smolvla_jax"
NORMALIZATION_MODES = ("IDENTITY", "MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10")
# Far above every policy's chunk, widths and steps; a stranger's config.json must not fill the memory.
LARGEST = 1 << 16


@dataclasses.dataclass(frozen=True)
class Feature:
    """One input or output of a policy: `type` is STATE, VISUAL or ACTION; `shape` without batch (images C, H, W)."""

    type: str
    shape: tuple[int, ...]


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
        """All VISUAL inputs in the order of the config, LeRobot's `empty_camera_*` included."""
        return tuple(key for key, feature in self.input_features.items() if feature.type == "VISUAL")

    @property
    def camera_keys(self) -> tuple[str, ...]:
        """The real cameras in the order of the config."""
        return tuple(key for key in self.visual_keys if ".empty_camera_" not in key)

    @property
    def state_dim(self) -> int:
        """Real dimensions of `observation.state`; 0 if the policy has none."""
        feature = self.input_features.get("observation.state")
        return feature.shape[0] if feature else 0

    @property
    def action_dim(self) -> int:
        """Real dimensions of `action`."""
        if "action" not in self.output_features:
            raise ConfigError(
                "config.json: `output_features` has no `action`; expected its shape, found "
                f"{sorted(self.output_features) or 'nothing'}"
            )
        return self.output_features["action"].shape[0]

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
            own[name] = {key: {"type": f.type, "shape": list(f.shape)} for key, f in own[name].items()}
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
    yield config.empty_cameras >= 0, f"`empty_cameras` must not be negative, found {config.empty_cameras}"
    yield (
        0 < config.expert_width_multiplier <= 16,
        f"`expert_width_multiplier` must be positive and at most 16, found {config.expert_width_multiplier}",
    )
    yield (
        config.pad_language_to in ("longest", "max_length"),
        f'`pad_language_to` must be "longest" or "max_length", found {config.pad_language_to!r}',
    )
    yield (
        0 < config.min_period < config.max_period,
        f"`min_period` ({config.min_period}) must be positive and below `max_period` ({config.max_period})",
    )
    for kind, mode in config.normalization_mapping.items():
        modes = ", ".join(NORMALIZATION_MODES)
        yield mode in NORMALIZATION_MODES, f"`normalization_mapping` of {kind} must be one of {modes}, found {mode!r}"
    yield (
        not config.carried.get("use_delta_joint_actions_aloha"),
        "`use_delta_joint_actions_aloha` is true: neither LeRobot nor jaxreflow can honour it; set it to false",
    )
    features = {**config.input_features, **config.output_features}
    for key, feature in features.items():
        yield len(feature.shape) > 0, f"the shape of `{key}` must be a list of whole numbers, found an empty one"
    for key, limit in (("observation.state", config.max_state_dim), ("action", config.max_action_dim)):
        size = features[key].shape[0] if key in features else 0
        yield size <= limit, f"`{key}` has {size} dimensions, more than the padded width {limit}"
