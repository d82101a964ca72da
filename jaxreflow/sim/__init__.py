"""Policies in simulation: environments, experts, recording and paired closed-loop trials. What needs a simulator belongs here."""

import os

# Without a screen MuJoCo needs to be told, before it is imported, that EGL can render off one.
if "DISPLAY" not in os.environ:
    os.environ.setdefault("MUJOCO_GL", "egl")
