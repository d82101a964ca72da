"""Fast pictures of a MuJoCo scene: no shadows, reflections and multisampling, at twice the wanted size and averaged."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jaxreflow.errors import SimulationError


def fast_renderer(model: Any, height: int, width: int) -> Any:
    """A `mujoco.Renderer` for `fast_picture`s of `height` x `width` pixels."""
    import mujoco

    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 512
    model.vis.global_.offwidth = max(2 * width, model.vis.global_.offwidth)
    model.vis.global_.offheight = max(2 * height, model.vis.global_.offheight)
    renderer = mujoco.Renderer(model, 2 * height, 2 * width)
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
    return renderer


def fast_picture(renderer: Any, data: Any, camera: str) -> UInt8[np.ndarray, "H W 3"]:
    """What a camera sees now."""
    renderer.update_scene(data, camera=camera)
    double = renderer.render()
    height, width = (side // 2 for side in double.shape[:2])
    return double.reshape(height, 2, width, 2, 3).mean((1, 3)).round().astype(np.uint8)


def no_simulator(found: str) -> SimulationError:
    """What to install where a simulator cannot be imported, as `found` says."""
    return SimulationError(
        f"{found}; expected the packages of `pip install 'jaxreflow[sim]'` and the GL "
        "libraries of `apt-get install libegl1 libgl1 libgl1-mesa-dri` (or libosmesa6 with MUJOCO_GL=osmesa)"
    )


def no_renderer(error: Exception) -> SimulationError:
    """What to install where nothing can be rendered."""
    return SimulationError(
        f"MuJoCo cannot render off-screen with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')!r} ({error!r}); install "
        "`apt-get install libegl1 libgl1 libgl1-mesa-dri` for MUJOCO_GL=egl, or libosmesa6 for MUJOCO_GL=osmesa"
    )
