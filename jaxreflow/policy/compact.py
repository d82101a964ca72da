"""A policy with fewer VLM layers or smaller images than the one that it is made from, with the weights of that one.

LeRobot runs the layers that are stored under 0 ... N-1, and resizes images to what config.json says: so such a policy is a SmolVLA
as any other.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxreflow.errors import ConfigError
from jaxreflow.model.config import ModelConfig, VLMConfig
from jaxreflow.model.layer_choice import ALL_LAYERS, Choice, LayerChoice, choose_layers
from jaxreflow.policy.architecture import layer_kinds, network_of
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.saved import SavedPolicy
from jaxreflow.policy.weights import EXPERT, TEXT, expected_tensors
from jaxreflow.support.safetensors_file import TensorFile, make_header

_LAYER = re.compile(rf"({re.escape(TEXT)}|{re.escape(EXPERT)})layers\.(\d+)\.(.+)")


def compact_policy(
    saved: SavedPolicy,
    *,
    image_size: int | None = None,
    vlm_layers: int | None = None,
    choice: Choice = "first",
    option: str = "--student.image-size",
) -> SavedPolicy:
    """`saved` for square images of `image_size` pixels, with `vlm_layers` of its VLM's layers; None: as it is.

    The expert shrinks with the VLM, unless config.json names a number of its own for it. Errors call the image size by `option`.

    Raises:
        ConfigError: the vision tower cannot take that size, the policy has no such layers, or these are its own; it names the
            nearest that works.
    """
    policy = saved.policy
    if image_size is not None:
        _check(option, image_size, *_smaller_images(policy, saved.vlm.config))
        policy = dataclasses.replace(policy, resize_imgs_with_padding=(image_size, image_size))
    if vlm_layers is not None:
        _check("--student.vlm-layers", vlm_layers, *_fewer_layers(policy, saved.config))
        policy = dataclasses.replace(policy, num_vlm_layers=vlm_layers)
    if policy == saved.policy:
        return saved
    config = network_of(
        policy, saved.vlm.config, dtype=saved.config.dtype, vision_positions=saved.config.vision_positions
    )
    layers = kept_layers(saved.policy, saved.config, config, choice)
    tensors = select_tensors(saved.tensors, config, layers)
    return dataclasses.replace(saved, policy=policy, config=config, tensors=tensors, layers=layers, derived_from=saved)


def kept_layers(policy: PolicyConfig, original: ModelConfig, config: ModelConfig, choice: Choice) -> LayerChoice:
    """The layers of a policy, whose network is `original`, that are kept where the network of `config` has fewer."""
    if config.num_vlm_layers == original.num_vlm_layers:
        return ALL_LAYERS
    text = choose_layers(layer_kinds(policy, original.num_vlm_layers), config.num_vlm_layers, choice)
    shrinks = len(config.expert_layer_kinds) < len(original.expert_layer_kinds)
    return LayerChoice(text, text if shrinks else None)


def select_tensors(whole: TensorFile, config: ModelConfig, layers: LayerChoice) -> TensorFile:
    """A policy's tensors for the network of `config`, which has these of its layers."""
    return whole if layers == ALL_LAYERS else LayersOfFile(whole, config, layers)


def _smaller_images(policy: PolicyConfig, vlm: VLMConfig) -> tuple[Sequence[int], str]:
    """Sizes of square images for the policy's vision tower, without the policy's own; and why these."""
    unit, own = vlm.vision.patch_size * vlm.scale_factor, policy.resize_imgs_with_padding
    largest = vlm.vision.image_size if own is None else max(own)
    sizes = [size for size in range(unit, largest + 1, unit) if own != (size, size)]
    why = f"patches of {vlm.vision.patch_size} pixels, of which {vlm.scale_factor} x {vlm.scale_factor} make a token"
    bound = f"less than the whole policy's {largest}" if own == (largest, largest) else f"at most {largest}"
    return sizes, f"a multiple of {unit} ({why}), and {bound}"


def _fewer_layers(policy: PolicyConfig, config: ModelConfig) -> tuple[Sequence[int], str]:
    """Numbers of VLM layers below the policy's; and why these."""
    experts = policy.num_expert_layers
    unit = experts if experts > 0 else 1
    why = f"a multiple of its {experts} expert layers (`num_expert_layers`), and " if experts > 0 else ""
    return range(unit, config.num_vlm_layers, unit), f"{why}less than the whole policy's {config.num_vlm_layers}"


def _check(option: str, found: int, possible: Sequence[int], why: str) -> None:
    if found in possible:
        return
    remedy = (
        f"the nearest is {min(possible, key=lambda n: abs(n - found))}" if possible else "there is none: leave it out"
    )
    raise ConfigError(f"{option} {found}: expected {why}; {remedy}")


class LayersOfFile(TensorFile):
    """Those of a file's tensors that the network of `config` has, under the names that they have there."""

    def __init__(self, whole: TensorFile, config: ModelConfig, layers: LayerChoice) -> None:
        self._whole = whole
        self.path, self.sources, self.metadata = whole.path, whole.sources, whole.metadata
        names = {_original_name(key, layers): key for key in expected_tensors(config)}
        # In the order of the whole file's data.
        self._names = {names[key]: key for key in whole.keys if key in names}
        self._infos = {key: whole._infos[whole.stored_keys[original]] for key, original in self._names.items()}
        self._places = whole._places
        self.stored_keys = {key: key for key in self._names}
        self.header = make_header(self._infos, self.metadata)

    @property
    def folder(self) -> Path:
        return self._whole.folder

    def read(self, key: str) -> np.ndarray:
        """A tensor as stored."""
        return self._whole.read(self._names[key])

    @functools.cached_property
    def sha256(self) -> str:
        """The whole file's."""
        return self._whole.sha256


def _original_name(key: str, layers: LayerChoice) -> str:
    """LeRobot's key, in the whole file, of the tensor that has this key here."""
    found = _LAYER.fullmatch(key)
    chosen = None if found is None else layers.text if found[1] == TEXT else layers.expert
    return key if found is None or chosen is None else f"{found[1]}layers.{chosen[int(found[2])]}.{found[3]}"
