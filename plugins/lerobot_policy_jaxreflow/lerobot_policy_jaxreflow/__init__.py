"""Registers the policy type `smolvla_jax` with LeRobot, which imports this package by its name."""

import importlib.metadata
import os

if tuple(map(int, importlib.metadata.version("lerobot").split(".")[:2])) < (0, 6):
    raise ImportError(
        f"lerobot_policy_jaxreflow: expected LeRobot 0.6 or newer, found {importlib.metadata.version('lerobot')}; "
        "upgrade it with: pip install --upgrade lerobot"
    )
# JAX would take most of a GPU's memory at once and leave none to PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from .configuration_smolvla_jax import SmolVLAJaxConfig

__all__ = ["SmolVLAJaxConfig"]
