"""The dtypes of LeRobot's modules, and what a file holds in others."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from jaxreflow.model.config import ModelConfig
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.vlm import VLMFiles, text_dtype
from jaxreflow.policy.weights import TEXT, VLM, expected_tensors, module_dtype
from jaxreflow.support.safetensors_file import TensorFile

BFLOAT16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
USUAL = (BFLOAT16, FLOAT32)


def own_dtypes(file: TensorFile, config: ModelConfig, policy: PolicyConfig, vlm: VLMFiles) -> dict[str, np.dtype]:
    """The dtype in which LeRobot makes the module of each tensor in `file`, and to which it rounds what that holds.

    With `load_vlm_weights` the whole VLM is bfloat16; without, only its text model has the dtype that its config names.
    """
    text = text_dtype(vlm.directory)
    loaded = bool(policy.carried.get("load_vlm_weights", False))

    def own(key: str) -> np.dtype:
        if key.startswith(VLM) and not loaded:
            return text if key.startswith(TEXT) else FLOAT32
        return module_dtype(key, config, text)

    return {key: own(key) for key in expected_tensors(config) if key in file.stored_keys}


def rounded_by_lerobot(file: TensorFile, own: dict[str, np.dtype]) -> list[str]:
    """Keys of text model and expert that are stored wider than LeRobot holds them.

    A float32 vision tower, connector or head is not among them: `load_vlm_weights: false` leaves them so.
    """
    unloaded = {key for key in own if key.startswith(VLM) and not key.startswith(TEXT)}
    return [
        key for key, dtype in own.items() if key not in unloaded and (file.dtype(key), dtype) == (FLOAT32, BFLOAT16)
    ]


def rounded_before(file: TensorFile, own: dict[str, np.dtype]) -> list[str]:
    """Keys outside the VLM that are stored in bfloat16 although LeRobot holds them in float32."""
    return [
        key for key, dtype in own.items() if not key.startswith(VLM) and (file.dtype(key), dtype) == (BFLOAT16, FLOAT32)
    ]


def repairable(file: TensorFile, own: dict[str, np.dtype]) -> list[str]:
    """Keys whose stored dtype can become LeRobot's without a change to what LeRobot computes: it casts them itself."""
    unusual = [key for key in own if file.dtype(key) not in USUAL]
    return [*unusual, *rounded_by_lerobot(file, own)]
