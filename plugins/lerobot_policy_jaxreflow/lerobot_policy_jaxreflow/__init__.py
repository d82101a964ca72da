"""Registers the policy type `smolvla_jax` with LeRobot, which imports this package by its name."""

import importlib.metadata
import os

try:
    _found = importlib.metadata.version("lerobot")
except importlib.metadata.PackageNotFoundError:
    _found = "none"
if _found == "none" or tuple(map(int, _found.split(".")[:2])) < (0, 6):
    raise ImportError(
        f"lerobot_policy_jaxreflow: expected LeRobot 0.6 or newer, found {_found}; with Python 3.12 or newer install it with: "
        "pip install --upgrade 'lerobot[smolvla]'"
    )
# JAX would take most of a GPU's memory at once and leave none to PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from .configuration_smolvla_jax import SmolVLAJaxConfig

__all__ = ["SmolVLAJaxConfig"]
