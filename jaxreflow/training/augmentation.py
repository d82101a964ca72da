"""Random changes of the training images: LeRobot's six transforms, on the device, at the size that the dataset has.

An operation is a function of one float32 image `[H, W, 3]` in [0, 1] and its amount, and equals torchvision's of that name on
float tensors (`tests/parity/test_augmentation.py`). What is drawn for a batch is drawn for all of its examples at once, so that
it does not depend on where they are computed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxreflow.errors import ConfigError
from jaxreflow.model.types import HostOrDevice, Observation

TRANSFORMS = ("brightness", "contrast", "saturation", "hue", "sharpness", "affine")
Range = tuple[float, float]

# The luma of ITU-R BT.601, as torchvision rounds it.
LUMA = np.array([0.2989, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True)
class ImageTransformsConfig:
    """Random changes of the training images; the defaults are LeRobot's. Every camera's image draws its own."""

    enable: bool = False
    """Change the images of every training batch; held-out images stay as they are."""
    max_num_transforms: int = 3
    """How many of the six are applied to an image; as many as have a weight if it is more, as in LeRobot."""
    random_order: bool = False
    """Apply them in the order in which they were drawn, not as listed here."""
    weights: tuple[float, float, float, float, float, float] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    """How readily each is drawn: brightness, contrast, saturation, hue, sharpness, affine; 0: never."""
    brightness: Range = (0.8, 1.2)
    """Factor; 1: as it was, as for the next two."""
    contrast: Range = (0.8, 1.2)
    saturation: Range = (0.5, 1.5)
    hue: Range = (-0.05, 0.05)
    """Turns of the colour wheel, -0.5 to 0.5."""
    sharpness: Range = (0.5, 1.5)
    """0: blurred, 1: as it was, 2: sharpened."""
    affine_degrees: Range = (-5.0, 5.0)
    """Angle by which the image is turned, clockwise."""
    affine_translate: Range = (0.05, 0.05)
    """Largest shift, as a share of width and height."""

    def __post_init__(self) -> None:
        flag = "--dataset.image-transforms."
        if self.max_num_transforms < 1:
            raise ConfigError(f"{flag}max-num-transforms must be at least 1, found {self.max_num_transforms}")
        if not all(0 <= weight < math.inf for weight in self.weights) or not any(self.weights):
            raise ConfigError(
                f"{flag}weights must not be negative, and at least one must be positive, found {self.weights}"
            )
        lowest = {"hue": -0.5, "affine_degrees": -360.0}
        highest = {"hue": 0.5, "affine_degrees": 360.0}
        for name in (*TRANSFORMS[:-1], "affine_degrees"):
            (low, high), least, most = getattr(self, name), lowest.get(name, 0.0), highest.get(name, math.inf)
            if not (least <= low <= high <= most and high < math.inf):
                raise ConfigError(
                    f"{flag}{name.replace('_', '-')} must be a lower and an upper bound from {least:g} to {most:g}, "
                    f"found {low:g} {high:g}"
                )
        if not all(0 <= share <= 1 for share in self.affine_translate):
            raise ConfigError(
                f"{flag}affine-translate must be two shares from 0 to 1, found {' '.join(map(str, self.affine_translate))}"
            )

    @property
    def num_transforms(self) -> int:
        """How many are applied: no more than have a positive weight."""
        return min(self.max_num_transforms, sum(weight > 0 for weight in self.weights))


class Changes(NamedTuple):
    """What is done to one camera's image of every example.

    `which` names the transforms by their place in `TRANSFORMS`, in the order in which they are applied. `amounts` holds the
    factors of brightness, contrast, saturation and sharpness, hue's turns in between, then the affine's angle in degrees and its
    shift to the right and downwards in shares of width and height.
    """

    which: Int[Array, "B N"]
    amounts: Float[Array, "B 8"]


def draw_changes(
    key: Key[Array, ""], batch_size: int, cameras: Sequence[str], config: ImageTransformsConfig
) -> dict[str, Changes]:
    """The changes of a whole batch, every camera's by itself: distinct transforms by weight, amounts uniform in their ranges."""
    ranges = [getattr(config, name) for name in (*TRANSFORMS[:-1], "affine_degrees")]
    ranges += [(-share, share) for share in config.affine_translate]
    low, high = np.asarray(ranges, np.float32).T
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.asarray(config.weights, np.float32))

    def draw(key: Key[Array, ""]) -> Changes:
        which_key, amount_key = jax.random.split(key)
        # The largest of log weight + Gumbel noise are a draw by weight without replacement, in the order of the draw.
        scores = log_weights + jax.random.gumbel(which_key, (batch_size, len(TRANSFORMS)))
        which = jax.lax.top_k(scores, config.num_transforms)[1]
        amounts = jax.random.uniform(amount_key, (batch_size, len(ranges)))
        return Changes(which if config.random_order else jnp.sort(which, axis=1), low + (high - low) * amounts)

    return {camera: draw(jax.random.fold_in(key, i)) for i, camera in enumerate(cameras)}


@jax.named_scope("augment")
def augment(observation: Observation, changes: Mapping[str, Changes]) -> Observation:
    """The observation with changed images, in float32, of the cameras that it has."""
    images: dict[str, HostOrDevice] = {
        camera: augment_images(jnp.asarray(x), changes[camera]) for camera, x in observation.images.items()
    }
    return dataclasses.replace(observation, images=images)


def augment_images(
    images: UInt8[Array, "B H W 3"] | Float[Array, "B H W 3"], changes: Changes
) -> Float[Array, "B H W 3"]:
    """uint8 images, or float ones in [0, 1], each with its own changes."""

    def augment_image(image: Array, which: Array, amounts: Array) -> Array:
        if image.dtype == jnp.uint8:
            image = image.astype(jnp.float32) / 255.0
        return jax.lax.scan(lambda image, i: (_transform(image, i, amounts), None), image.astype(jnp.float32), which)[0]

    # One image after the other: side by side, every image would go through all six and keep one.
    return jax.lax.map(lambda each: augment_image(*each), (images, *changes))


def _transform(image: Array, which: Array, amounts: Array) -> Array:
    functions = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue, adjust_sharpness)
    branches = [lambda image, x, f=f, i=i: f(image, x[i]) for i, f in enumerate(functions)]
    return jax.lax.switch(which, [*branches, lambda image, x: affine(image, x[5], x[6:])], image, amounts)


def adjust_brightness(image: Float[Array, "H W 3"], factor: Float[Array, ""]) -> Float[Array, "H W 3"]:
    """Scaled values."""
    return jnp.clip(image * factor, 0.0, 1.0)


def adjust_contrast(image: Float[Array, "H W 3"], factor: Float[Array, ""]) -> Float[Array, "H W 3"]:
    """Away from, or towards, the mean grey of the image."""
    # Of rows first: a float32 sum over all pixels of a large image would be off by more than the last digits.
    mean = jnp.mean(jnp.mean(_grey(image), axis=1))
    return _blend(image, mean, factor)


def adjust_saturation(image: Float[Array, "H W 3"], factor: Float[Array, ""]) -> Float[Array, "H W 3"]:
    """Away from, or towards, the grey of every pixel."""
    return _blend(image, _grey(image), factor)


def _grey(image: Array) -> Float[Array, "H W 1"]:
    return jnp.sum(image * LUMA, axis=-1, keepdims=True)


def _blend(image: Array, other: Array, factor: Array) -> Array:
    return jnp.clip(factor * image + (1.0 - factor) * other, 0.0, 1.0)


def adjust_hue(image: Float[Array, "H W 3"], turns: Float[Array, ""]) -> Float[Array, "H W 3"]:
    """Every colour turned on the colour wheel; its largest and smallest channel keep their values."""
    largest, smallest = jnp.max(image, axis=-1), jnp.min(image, axis=-1)
    chroma = largest - smallest
    red, green, blue = jnp.moveaxis(
        (largest[..., None] - image) / jnp.where(chroma == 0, 1.0, chroma)[..., None], -1, 0
    )
    # In sixths of a turn: 0 is red, 2 green, 4 blue.
    hue = jnp.where(green == 0, 2.0 + red - blue, 4.0 + green - red)
    hue = jnp.where(red == 0, blue - green, hue) + 6.0 * turns
    distance = (hue[..., None] + jnp.array([5.0, 3.0, 1.0])) % 6.0
    return largest[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(distance, 4.0 - distance), 0.0, 1.0)


def adjust_sharpness(image: Float[Array, "H W 3"], factor: Float[Array, ""]) -> Float[Array, "H W 3"]:
    """Away from, or towards, a 3 x 3 blur in which the pixel itself counts five times; the border stays."""
    if min(image.shape[:2]) <= 2:
        return image
    rows = image[:-2] + image[1:-1] + image[2:]
    inner = image[1:-1, 1:-1]
    blurred = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4.0 * inner) / 13.0
    return jnp.clip(image.at[1:-1, 1:-1].set(inner + (1.0 - factor) * (blurred - inner)), 0.0, 1.0)


def affine(
    image: Float[Array, "H W 3"], degrees: Float[Array, ""], shares: Float[Array, " 2"]
) -> Float[Array, "H W 3"]:
    """Turned clockwise about its centre, then shifted by whole pixels; black where nothing was, nearest pixels elsewhere."""
    height, width, _ = image.shape
    right, down = jnp.round(shares * np.array([width, height], np.float32))
    angle = jnp.deg2rad(degrees)
    x = jnp.arange(width) - (width - 1) / 2 - right
    y = (jnp.arange(height) - (height - 1) / 2 - down)[:, None]
    column = jnp.round(jnp.cos(angle) * x + jnp.sin(angle) * y + (width - 1) / 2).astype(jnp.int32)
    row = jnp.round(jnp.cos(angle) * y - jnp.sin(angle) * x + (height - 1) / 2).astype(jnp.int32)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return jnp.where(inside[..., None], image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)], 0.0)
