"""LeRobot's names of the features that every policy has, and of the cameras that it makes up."""

from __future__ import annotations

STATE, ACTION = "observation.state", "action"
# With a number behind it: a camera that need not be there.
EMPTY_CAMERA = "observation.images.empty_camera_"
