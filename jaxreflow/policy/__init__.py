"""A policy as LeRobot keeps it: its folder, config, statistics and pre- and postprocessing. Nothing here trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxreflow.policy.smolvla_policy import SmolVLAPolicy

__all__ = ["SmolVLAPolicy"]


def __getattr__(name: str) -> Any:
    # On first use only: `policy.names` and `policy.config` serve readers of data, which must not load JAX.
    if name == "SmolVLAPolicy":
        from jaxreflow.policy.smolvla_policy import SmolVLAPolicy

        return SmolVLAPolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
