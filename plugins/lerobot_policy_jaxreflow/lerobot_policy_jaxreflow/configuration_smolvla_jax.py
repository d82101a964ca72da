"""The config of a SmolVLA that runs in JAX: LeRobot's own, under another type."""

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig


@PreTrainedConfig.register_subclass("smolvla_jax")
@dataclass
class SmolVLAJaxConfig(SmolVLAConfig):
    """LeRobot's SmolVLA config, and the dtype that JAX computes in."""

    jax_dtype: str = "float32"
    """"float32", or "bfloat16" for speed on a GPU."""
