"""LeRobot's safetensors <-> parameter trees, by one two-way table.

Linear kernels are `[in, out]` where PyTorch has `[out, in]`. Tensors that never run (the tail of the last text layer, later layers,
the final norm, `lm_head`) have no parameter: they stay in the file.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxreflow.errors import CheckpointError
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.params import PROJECTIONS, ParamPath, param_shapes
from jaxreflow.model.types import Params
from jaxreflow.policy.statistics import BUFFER_PREFIXES
from jaxreflow.support.console import progress
from jaxreflow.support.safetensors_file import TensorFile

VLM = "model.vlm_with_expert.vlm."
VISION = VLM + "model.vision_model."
TEXT = VLM + "model.text_model."
EXPERT = "model.vlm_with_expert.lm_expert."
LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter: its path, LeRobot's key for it, and its shape."""

    path: ParamPath
    key: str
    shape: tuple[int, ...]

    def to_torch(self, leaf: np.ndarray) -> np.ndarray:
        """A leaf in PyTorch's layout."""
        if self.path[-1] != "kernel":
            return leaf
        return leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T

    def from_torch(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor of PyTorch's as a leaf."""
        if self.path[-1] != "kernel":
            return tensor
        return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The tensor's shape under its key."""
        return self.to_torch(np.broadcast_to(np.False_, self.shape)).shape


@functools.cache
def parameter_table(config: ModelConfig) -> tuple[Entry, ...]:
    """Every parameter of the network with its LeRobot key."""
    return tuple(
        Entry(path, f"{_module(path[:-1])}.{LEAF_NAMES[path[-1]]}", shape)
        for path, shape in param_shapes(config).items()
    )


def _module(path: ParamPath) -> str:
    """LeRobot's name of the module at a parameter path."""
    match path:
        case ("vision_model", "layers", *rest):
            return ".".join([VISION + "encoder.layers", *rest])
        case ("vision_model", ("patch_embedding" | "position_embedding") as name):
            return VISION + "embeddings." + name
        case ("vision_model", *rest):
            return VISION + ".".join(rest)
        case ("connector", "proj"):
            return VLM + "model.connector.modality_projection.proj"
        case ("text_model", *rest):
            return TEXT + ".".join(rest)
        case ("expert", *rest):
            return EXPERT + ".".join(rest)
        case (name,) if name in PROJECTIONS:
            return f"model.{name}"
    raise AssertionError(f"parameter {'/'.join(path)} has no place in LeRobot's checkpoint")


@functools.cache
def dead_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the tensors that LeRobot's checkpoints hold although nothing reads them."""
    text, width = config.text, config.text.hidden_size
    q, kv, mlp = (
        text.num_attention_heads * text.head_dim,
        text.num_key_value_heads * text.head_dim,
        text.intermediate_size,
    )
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (q, width),
        "self_attn.k_proj": (kv, width),
        "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, q),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (mlp, width),
        "mlp.up_proj": (mlp, width),
        "mlp.down_proj": (width, mlp),
    }
    alive = {entry.key for entry in parameter_table(config)}
    every = {
        f"{TEXT}layers.{i}.{name}.weight": shape
        for i in range(config.num_context_layers - 1, config.num_vlm_layers)
        for name, shape in layer.items()
    }
    every |= {f"{TEXT}norm.weight": (width,), f"{VLM}lm_head.weight": (text.vocab_size, width)}
    return {key: shape for key, shape in every.items() if key not in alive}


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every key of LeRobot's checkpoint with its shape."""
    alive = {entry.key: entry.torch_shape for entry in parameter_table(config)}
    return {**alive, **dead_tensors(config)}


def module_dtype(key: str, config: ModelConfig, expert_dtype: np.dtype) -> np.dtype:
    """The dtype of LeRobot's own module, to which it rounds whatever the file holds: a wider one would be lost there.

    The VLM is loaded in bfloat16 and the expert made in the text model's dtype; the k/v projections of cross layers are made
    anew in PyTorch's default, as are the projections of state, actions and time.
    """
    if key.startswith(VLM):
        return np.dtype(ml_dtypes.bfloat16)
    if not key.startswith(EXPERT):
        return np.dtype(np.float32)
    layer = re.search(r"layers\.(\d+)\.self_attn\.[kv]_proj", key)
    remade = layer is not None and config.expert_layer_kinds[int(layer[1])] == "cross"
    return np.dtype(np.float32) if remade else expert_dtype


def check_tensors(file: TensorFile, config: ModelConfig) -> None:
    """Compares keys and shapes with what the config needs; as in LeRobot, what nothing reads may be missing or too much.

    Raises:
        CheckpointError: lists every missing and wrongly shaped tensor, and with them those that have no place.
    """
    expected = expected_tensors(config)
    needed = set(expected) - set(dead_tensors(config))
    problems = [f"missing: {key} {list(expected[key])}" for key in sorted(needed - set(file.keys))]
    problems += [
        f"shape of {key}: expected {list(expected[key])}, found {list(file.shape(key))}"
        for key in sorted(set(file.keys) & set(expected))
        if file.shape(key) != expected[key]
    ]
    if problems:
        problems += [f"unexpected: {key} {list(file.shape(key))}" for key in surplus_tensors(file, config)]
        lines = "\n  ".join(problems)
        raise CheckpointError(
            f"{file.path} does not fit config.json and the VLM's config ({len(problems)} problems):\n  {lines}"
        )


def surplus_tensors(file: TensorFile, config: ModelConfig) -> list[str]:
    """Keys that LeRobot's policy has no place for, which it leaves out when it loads the file."""
    known = {key for key in file.keys if not key.startswith(BUFFER_PREFIXES)}
    return sorted(known - set(expected_tensors(config)))


def surplus_warning(file: TensorFile, config: ModelConfig) -> list[str]:
    """A warning of such tensors; none without any."""
    surplus = surplus_tensors(file, config)
    if not surplus:
        return []
    shown = ", ".join(surplus[:3]) + (f" and {len(surplus) - 3} more" if len(surplus) > 3 else "")
    return [
        f"{file.path.name} holds {shown}, for which the policy of config.json has no place: left out, as in LeRobot. If layers "
        "are among them, compare `num_vlm_layers` and `num_expert_layers` with the policy's training"
    ]


def read_params(file: TensorFile, config: ModelConfig) -> Params:
    """The parameter tree of a checkpoint as float32 numpy arrays.

    Raises:
        CheckpointError: keys or shapes do not fit the config.
    """
    check_tensors(file, config)
    return read_checked_params(file, config)


def read_checked_params(file: TensorFile, config: ModelConfig) -> Params:
    """The same of a file that passed `check_tensors`."""
    flat: dict[ParamPath, np.ndarray] = {}
    for entry in parameter_table(config):
        leaf = entry.from_torch(file.read(entry.key))
        flat[entry.path] = np.ascontiguousarray(leaf, np.float32)
    return unflatten_dict(flat)


def updated_tensors(file: TensorFile, params: Params, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of `file` in its order and dtype, with the values of `params` where they differ.

    `params` may be part of the tree. A value that still equals what was loaded, in the parameter's own dtype, keeps the file's
    bits, so that an untouched tensor comes back byte for byte whatever its dtype.
    """
    flat = flatten_dict(params)
    entries = {entry.key: entry for entry in parameter_table(config) if entry.path in flat}
    for key in file.keys:
        stored = file.read(key)
        if key in entries:
            value = np.ascontiguousarray(entries[key].to_torch(np.asarray(flat[entries[key].path])))
            if not _same_bits(stored.astype(value.dtype, copy=False), value):
                stored = value.astype(stored.dtype)
        yield key, stored


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))


def write_params(out: Path, file: TensorFile, params: Params, config: ModelConfig) -> None:
    """Writes `file` again at `out` with the values of `params`: same clean keys, shapes, dtypes, metadata and order.

    One tensor is in memory at a time. An unchanged tree gives the same file.
    """
    with out.open("wb") as target, progress(f"writing {out.name}", len(file.keys), unit="tensor") as advance:
        header = file.clean_header
        target.write(struct.pack("<Q", len(header)) + header)
        for _, tensor in updated_tensors(file, params, config):
            tensor.tofile(target)
            advance(1)
        target.flush()
        os.fsync(target.fileno())
