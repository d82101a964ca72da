"""jaxreflow: reflow for SmolVLA policies, in JAX."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxreflow.policy.smolvla_policy import SmolVLAPolicy

__all__ = ["SmolVLAPolicy", "__version__"]


def __getattr__(name: str) -> Any:
    # On first use only: the policy imports JAX, which tools that merely read a config do not need.
    if name == "SmolVLAPolicy":
        from jaxreflow.policy.smolvla_policy import SmolVLAPolicy

        return SmolVLAPolicy
    if name == "__version__":
        return metadata.version("jaxreflow")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
