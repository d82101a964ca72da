"""LeRobot's names of the features that every policy has."""

from __future__ import annotations

STATE, ACTION = "observation.state", "action"
