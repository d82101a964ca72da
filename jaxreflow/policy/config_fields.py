"""Every field of LeRobot's SmolVLA `config.json`, and what becomes of it here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

FieldUse = Literal["honoured", "carried", "refused", "legacy"]

# Every field of LeRobot's SmolVLA config.json (0.4.4 and 0.6): what jaxreflow does with it. `docs/config.md` prints this table.
POLICY_FIELDS: Mapping[str, tuple[FieldUse, str]] = {
    "type": ("honoured", 'must be "smolvla"'),
    "input_features": ("honoured", "camera order, state dimension"),
    "output_features": ("honoured", "action dimension"),
    "normalization_mapping": ("honoured", "IDENTITY, MEAN_STD, MIN_MAX, QUANTILES, QUANTILE10 by feature type"),
    "chunk_size": ("honoured", "actions per chunk, C"),
    "n_action_steps": ("honoured", "length of `select_action`'s queue"),
    "max_state_dim": ("honoured", "width of the padded state"),
    "max_action_dim": ("honoured", "width of the padded action, A"),
    "resize_imgs_with_padding": ("honoured", "(width, height), or null for no resize"),
    "empty_cameras": ("honoured", "how many absent cameras may be stood in for"),
    "adapt_to_pi_aloha": ("honoured", "joint signs and gripper scale of Aloha"),
    "tokenizer_max_length": ("honoured", "language tokens, T"),
    "pad_language_to": ("honoured", "always padded to tokenizer_max_length: padding is masked, the result is the same"),
    "num_steps": ("honoured", "Euler steps of the sampler"),
    "freeze_vision_encoder": ("honoured", "trainable set of `finetune`"),
    "train_expert_only": ("honoured", "trainable set of `finetune`"),
    "train_state_proj": ("honoured", "trainable set of `finetune`"),
    "optimizer_lr": ("honoured", "default of `finetune`"),
    "optimizer_betas": ("honoured", "default of `finetune`"),
    "optimizer_eps": ("honoured", "default of `finetune`"),
    "optimizer_weight_decay": ("honoured", "default of `finetune`"),
    "optimizer_grad_clip_norm": ("honoured", "default of `finetune`"),
    "scheduler_warmup_steps": ("honoured", "default of `finetune`"),
    "scheduler_decay_steps": ("honoured", "default of `finetune`"),
    "scheduler_decay_lr": ("honoured", "default of `finetune`"),
    "vlm_model_name": ("honoured", "where the VLM's config and tokenizer come from"),
    "load_vlm_weights": ("carried", "read by LeRobot only; true in a student whose VLM has weights"),
    "add_image_special_tokens": ("honoured", "[fake, global] before and [fake] after every image"),
    "attention_mode": ("honoured", "cross_attn or self_attn"),
    "prefix_length": ("honoured", "trailing padding is masked, so it is left out: the result is the same"),
    "num_expert_layers": ("honoured", "0 or less: as many as the VLM"),
    "num_vlm_layers": ("honoured", "first layers of the text model; 0 or less: all"),
    "self_attn_every_n_layers": ("honoured", "0 or less: cross-attention everywhere"),
    "expert_width_multiplier": ("honoured", "expert width over text width"),
    "min_period": ("honoured", "time embedding"),
    "max_period": ("honoured", "time embedding"),
    "use_delta_joint_actions_aloha": ("refused", "true is refused, as LeRobot does"),
    "use_peft": ("refused", "true is refused: merge the adapter first"),
    "n_obs_steps": ("carried", "the last observation is used, as in LeRobot"),
    "use_cache": ("carried", "no effect: the prefix is always computed once"),
    "rtc_config": ("carried", "real-time chunking runs in LeRobot"),
    "compile_model": ("carried", "torch.compile, read by LeRobot only"),
    "compile_mode": ("carried", "torch.compile, read by LeRobot only"),
    "device": ("carried", "read by LeRobot only"),
    "use_amp": ("carried", "read by LeRobot only"),
    "push_to_hub": ("carried", "read by LeRobot only"),
    "repo_id": ("carried", "read by LeRobot only"),
    "private": ("carried", "read by LeRobot only"),
    "tags": ("carried", "read by LeRobot only"),
    "license": ("carried", "read by LeRobot only"),
    "pretrained_path": ("carried", "read by LeRobot only"),
    "pretrained_revision": ("carried", "read by LeRobot only"),
    "training_mode": ("legacy", "accepted with a warning, never written"),
    "use_reflow": ("legacy", "accepted with a warning, never written"),
    "teacher_model_path": ("legacy", "accepted with a warning, never written"),
}

# What LeRobot 0.4.4 writes for the fields that jaxreflow only carries, for policies made here.
CARRIED_DEFAULTS: Mapping[str, Any] = {
    "n_obs_steps": 1,
    "device": "cpu",
    "use_amp": False,
    "use_peft": False,
    "push_to_hub": False,
    "repo_id": None,
    "private": None,
    "tags": None,
    "license": None,
    "pretrained_path": None,
    "use_delta_joint_actions_aloha": False,
    "use_cache": True,
    "load_vlm_weights": False,
    "rtc_config": None,
    "compile_model": False,
    "compile_mode": "max-autotune",
}


def parse_value(name: str, annotation: str, value: Any) -> Any:
    """A value of a config.json as a field annotated so wants it; TypeError, naming the field, if it is no such value."""
    if annotation.endswith(" | None"):
        return None if value is None else parse_value(name, annotation.removesuffix(" | None"), value)
    if annotation.startswith("tuple"):
        if not isinstance(value, list) or len(value) != 2:
            raise TypeError(f"`{name}` must be a list of two numbers, found {value!r}")
        return tuple(parse_value(name, "int" if "int" in annotation else "float", item) for item in value)
    if annotation == "float":
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise TypeError(f"`{name}` must be a finite float, found {value!r}")
        return float(value)
    kinds = {"int": int, "bool": bool, "str": str}
    if not isinstance(value, kinds[annotation]) or (annotation == "int" and isinstance(value, bool)):
        raise TypeError(f"`{name}` must be {annotation}, found {value!r}")
    return value
