"""A new SmolVLA policy for a dataset, written as a checkpoint in LeRobot's layout before its training starts."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.data.matching import dataset_key
from jaxreflow.errors import CheckpointError, DatasetError
from jaxreflow.model import init_params
from jaxreflow.model.config import ModelConfig, VLMConfig
from jaxreflow.policy.architecture import network_of
from jaxreflow.policy.config import DEFAULT_VLM, Feature, PolicyConfig, image_size
from jaxreflow.policy.names import ACTION, STATE
from jaxreflow.policy.normalization import Stats
from jaxreflow.policy.processors import create_processors
from jaxreflow.policy.saved import CONFIG, WEIGHTS, student_policy
from jaxreflow.policy.statistics import rename_stats, to_float32
from jaxreflow.policy.vlm import SMALL_FILES, VLM_FOLDER, load_vlm, text_dtype
from jaxreflow.policy.weights import VLM, expected_tensors, module_dtype, parameter_table
from jaxreflow.run.config import PolicySource
from jaxreflow.support.new_folder import new_directory, write_json
from jaxreflow.support.safetensors_file import TensorFile
from jaxreflow.support.storage import AnyPath

# The width of LeRobot's initialisation for every weight that nothing reads.
_INITIAL_STD = 0.02


def create_policy(
    out: AnyPath,
    source: PolicySource,
    dataset: LeRobotDataset,
    *,
    rename_map: Mapping[str, str],
    seed: int,
    stats: Stats | None = None,
) -> None:
    """Writes a new policy into the folder `out`: the dataset's features, its statistics or `stats`, VLM weights read or random.

    Raises:
        ConfigError, CheckpointError, DatasetError: architecture, VLM or dataset do not fit; nothing is left there.
    """
    vlm_dir = Path(source.vlm) if source.vlm else None
    policy = source.apply(_policy_for(dataset, rename_map))
    vlm = load_vlm(policy, None, vlm_dir).config
    if vlm_dir is not None and source.vlm_model_name is None and not _is_default(vlm):
        policy = dataclasses.replace(policy, vlm_model_name=str(vlm_dir))
    config = network_of(policy, vlm)
    if stats is None:
        stats = rename_stats(to_float32(dataset.stats), rename_map)
    processors = create_processors(policy, stats)
    if rename_map:
        processors = processors.with_rename_map(rename_map)
    processors.check(policy)
    with new_directory(out) as folder:
        write_json(folder / CONFIG, student_policy(policy).to_json())
        tensors = _random_tensors(config, text_dtype(vlm_dir), seed)
        if vlm_dir is not None:
            tensors |= _vlm_tensors(vlm_dir, config)
            _copy_vlm(vlm_dir, folder / VLM_FOLDER, weights=policy.vlm_model_name not in (DEFAULT_VLM, str(vlm_dir)))
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        processors.save(folder)


def _is_default(vlm: VLMConfig) -> bool:
    default = VLMConfig()
    return (vlm.text, vlm.vision, vlm.scale_factor) == (default.text, default.vision, default.scale_factor)


def _policy_for(dataset: LeRobotDataset, rename_map: Mapping[str, str]) -> PolicyConfig:
    inputs: dict[str, Feature] = {}
    for key in dataset.camera_keys:
        shape = dataset.features[key].shape
        size = image_size(shape)
        if size is None:
            raise DatasetError(
                f"{dataset.root}/meta/info.json: the camera {key!r} has shape {list(shape)}, expected three axes, such as "
                "[480, 640, 3]; correct it, or take the camera out of the dataset"
            )
        inputs[rename_map.get(key, key)] = Feature("VISUAL", (3, *size))
    features = {}
    for key in (STATE, ACTION):
        spec = dataset.features.get(dataset_key(key, rename_map, dataset.features))
        if spec is None:
            raise DatasetError(
                f"{dataset.root}: no feature {key!r}, which a policy needs; found {', '.join(dataset.features)}"
            )
        features[key] = Feature("STATE" if key == STATE else "ACTION", tuple(spec.shape))
    if not inputs:
        raise DatasetError(f"{dataset.root}: no camera, and a policy needs one; found {', '.join(dataset.features)}")
    return PolicyConfig(input_features={STATE: features[STATE], **inputs}, output_features={ACTION: features[ACTION]})


def _random_tensors(config: ModelConfig, expert_dtype: np.dtype, seed: int) -> dict[str, np.ndarray]:
    params = flatten_dict(jax.device_get(jax.jit(init_params, static_argnums=1)(jax.random.key(seed), config)))
    random = np.random.default_rng(seed)
    tensors = {
        key: random.normal(0.0, _INITIAL_STD, shape) if len(shape) > 1 else np.ones(shape)
        for key, shape in expected_tensors(config).items()
    }
    for entry in parameter_table(config):
        tensors[entry.key] = np.ascontiguousarray(entry.to_torch(params[entry.path]))
    return {key: tensor.astype(module_dtype(key, config, expert_dtype)) for key, tensor in tensors.items()}


def _vlm_tensors(directory: Path, config: ModelConfig) -> dict[str, np.ndarray]:
    """The VLM's weights in bfloat16, as LeRobot loads them; none if the folder holds no safetensors."""
    files = [TensorFile(path) for path in sorted(directory.glob("*.safetensors"))]
    if not files:
        return {}
    stored = {key: file for file in files for key in file.keys}
    tensors, problems = {}, []
    for key, shape in expected_tensors(config).items():
        if not key.startswith(VLM):
            continue
        name = key.removeprefix(VLM)
        if name == "lm_head.weight" and name not in stored:  # tied to the embeddings
            name = "model.text_model.embed_tokens.weight"
        if name not in stored or stored[name].shape(name) != shape:
            found = list(stored[name].shape(name)) if name in stored else "nothing"
            problems.append(f"{name}: expected {list(shape)}, found {found}")
        else:
            tensors[key] = stored[name].read(name).astype(ml_dtypes.bfloat16)
    if problems:
        lines = "\n  ".join(problems)
        raise CheckpointError(
            f"{directory}: the VLM's weights do not fit its config.json ({len(problems)} problems):\n  {lines}"
        )
    return tensors


def _copy_vlm(directory: Path, out: Path, *, weights: bool) -> None:
    """Copies config and tokenizer, and the weights where `vlm_model_name` does not lead back to this folder."""
    out.mkdir()
    for pattern in [*SMALL_FILES, *(["*.safetensors"] if weights else [])]:
        for path in sorted(directory.glob(pattern)):
            shutil.copyfile(path, out / path.name)
