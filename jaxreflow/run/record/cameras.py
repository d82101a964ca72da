"""What the cameras show at the start of a run, as the network gets it: a wrong camera, colour or crop is seen at a glance."""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8
from PIL import Image

from jaxreflow.errors import TrainingError
from jaxreflow.model.config import ModelConfig
from jaxreflow.model.types import HostOrDevice
from jaxreflow.model.vision import to_pixels
from jaxreflow.support.storage import AnyPath, make_folder
from jaxreflow.training.augmentation import ImageTransformsConfig, augment_images, draw_changes

CAMERAS = "cameras"
"""The folder of a run that the pictures lie in."""
EXAMPLES, _COLUMNS = 8, 4


def camera_views(
    images: Mapping[str, HostOrDevice], transforms: ImageTransformsConfig, *, config: ModelConfig
) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
    """One picture per camera: its first `EXAMPLES` images `[B, H, W, 3]`, changed as in training, resized and padded, four to a
    row."""
    changes = draw_changes(jax.random.key(0), EXAMPLES, list(images), transforms) if transforms.enable else {}

    def view(key: str, image: Array) -> UInt8[np.ndarray, "height width 3"]:
        if key in changes:
            image = augment_images(image, jax.tree.map(lambda x: x[: len(image)], changes[key]))
        return _grid(np.asarray(_as_seen(image, config=config)))

    return {key: view(key, jnp.asarray(image[:EXAMPLES])) for key, image in images.items()}


@functools.partial(jax.jit, static_argnames="config")
def _as_seen(images: Array, *, config: ModelConfig) -> Array:
    pixels = (to_pixels(images, config) + 1.0) * 127.5
    # Images that the policy normalises may leave the range.
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


def _grid(images: UInt8[np.ndarray, "N h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
    count, height, width, channels = images.shape
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = images
    return cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def to_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def write_views(views: Mapping[str, UInt8[np.ndarray, "H W 3"]], run_dir: AnyPath) -> None:
    """Writes RUN/cameras/NAME.png for every camera; TrainingError if that fails."""
    folder = run_dir / CAMERAS
    try:
        make_folder(folder)
        for key, image in views.items():
            # The name comes from the policy's config.json: it must not lead out of the folder.
            (folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', key)}.png").write_bytes(to_png(image))
    except OSError as error:
        raise TrainingError(
            f"{folder}: cannot be written ({error}); free space, then continue with --resume"
        ) from error
