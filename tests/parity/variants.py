"""The architectures, precisions and inputs on which jaxreflow is compared with LeRobot; importable without torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Precision = Literal["float32", "mixed", "mixed-vlm"]

TEXT: Mapping[str, int] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 384,
}
VISION: Mapping[str, int] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 64,
    "patch_size": 8,
}
POLICY: Mapping[str, Any] = {
    "chunk_size": 6,
    "n_action_steps": 4,
    "num_vlm_layers": 4,
    "resize_imgs_with_padding": (64, 64),
    "tokenizer_max_length": 12,
    "pad_language_to": "max_length",
    "prefix_length": 0,
}
TASKS = ("Pick up the red cube.", "open the drawer\n", "Fold the towel in half and push it to the edge of the table.")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One checkpoint and the observation it is asked about.

    Attributes:
        about: what this variant covers that the others do not.
        precision: how weights are stored: all float32; as LeRobot makes them without ("mixed") or with
            ("mixed-vlm") the VLM's own weights loaded.
        policy, text, vision: what differs from `POLICY`, `TEXT` and `VISION`.
        cameras: (height, width) by name, in the config's order.
        absent: cameras that the observation leaves out.
        normalization: mode of state and action.
        train: compare the optimizer and whole training steps as well.
    """

    about: str
    precision: Precision = "float32"
    policy: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: Mapping[str, int] = dataclasses.field(default_factory=dict)
    vision: Mapping[str, int] = dataclasses.field(default_factory=dict)
    scale_factor: int = 4
    cameras: Mapping[str, tuple[int, int]] = dataclasses.field(
        default_factory=lambda: {"top": (45, 60), "wrist": (75, 50)}
    )
    absent: tuple[str, ...] = ()
    state_dim: int = 6
    action_dim: int = 6
    normalization: str = "MEAN_STD"
    batch_size: int = 2
    train: bool = False


VARIANTS: Mapping[str, Variant] = {
    "tiny": Variant("everything float32", policy={"empty_cameras": 1}, train=True),
    "mixed": Variant("LeRobot's dtypes, VLM not loaded", precision="mixed", train=True),
    "mixed_vlm": Variant("LeRobot's dtypes, VLM loaded", precision="mixed-vlm"),
    "self_attention": Variant("every layer self-attention", policy={"attention_mode": "self_attn"}),
    "special_tokens": Variant(
        "special tokens around images, padded prefix", policy={"add_image_special_tokens": True, "prefix_length": 40}
    ),
    "half_layers": Variant(
        "half as many expert layers, all cross-attention",
        policy={"num_expert_layers": 2, "self_attn_every_n_layers": -1},
    ),
    "aloha": Variant(
        "Aloha's joint signs and grippers", policy={"adapt_to_pi_aloha": True}, state_dim=14, action_dim=14
    ),
    "one_camera": Variant("one camera", cameras={"top": (64, 64)}),
    "missing_camera": Variant(
        "three cameras, the first absent, one stand-in",
        cameras={"front": (40, 40), "top": (45, 60), "wrist": (75, 50)},
        absent=("front",),
        policy={"empty_cameras": 1},
    ),
    "not_square": Variant(
        "long and tall images, odd sizes, scaled down", cameras={"wide": (61, 203), "tall": (150, 71)}
    ),
    "no_resize": Variant(
        "images taken as they are",
        policy={"resize_imgs_with_padding": None},
        cameras={"top": (64, 64), "wrist": (64, 64)},
    ),
    "small_image": Variant("images smaller than the position table", policy={"resize_imgs_with_padding": (32, 32)}),
    "grid_of_six": Variant(
        "a patch grid that is no power of two",
        policy={"resize_imgs_with_padding": (48, 48)},
        vision={"image_size": 48},
        scale_factor=3,
    ),
    "wide_state": Variant("32 real dimensions of state and action", state_dim=32, action_dim=32),
    "narrow_padding": Variant(
        "other padded widths and time periods",
        policy={"max_state_dim": 9, "max_action_dim": 11, "min_period": 0.01, "max_period": 2.0},
    ),
    "chunk_1": Variant("one action per chunk", policy={"chunk_size": 1, "n_action_steps": 1}),
    "half_width": Variant("expert half as wide", policy={"expert_width_multiplier": 0.5}),
    "every_third": Variant(
        "self-attention every third of five layers", policy={"self_attn_every_n_layers": 3, "num_vlm_layers": 5}
    ),
    "all_layers": Variant("all six layers of the VLM", policy={"num_vlm_layers": 0}),
    "min_max": Variant("MIN_MAX normalisation", normalization="MIN_MAX"),
    "quantiles": Variant("QUANTILES normalisation", normalization="QUANTILES"),
    "quantile10": Variant("QUANTILE10 normalisation", normalization="QUANTILE10"),
    "longest": Variant("language padded to the longest task", policy={"pad_language_to": "longest"}, batch_size=3),
    "frozen_state_proj": Variant("state projection frozen", policy={"train_state_proj": False}),
    "train_language": Variant("full fine-tune, vision frozen", policy={"train_expert_only": False}, train=True),
    "train_half_layers": Variant(
        "full fine-tune with half as many expert layers",
        policy={"train_expert_only": False, "num_expert_layers": 2, "self_attn_every_n_layers": -1},
    ),
    "train_all": Variant(
        "full fine-tune, vision too", policy={"train_expert_only": False, "freeze_vision_encoder": False}, train=True
    ),
}
# Compared on every change, by version of LeRobot. With 0.4.4 they have every kind of layer, dtype, camera and trained part.
# With 0.6.1 they have every kind of layer and dtype. The others run every night.
EVERY_CHANGE: Mapping[str, tuple[str, ...]] = {
    "0.4.4": ("tiny", "mixed", "special_tokens", "half_layers", "missing_camera", "train_all"),
    "0.6.1": ("tiny", "mixed", "special_tokens", "half_layers"),
}
