"""Each change of an image is torchvision's of the same name and amount, and what is drawn by default is what LeRobot draws from."""

import functools

import jax
import numpy as np
import pytest
from torchvision.transforms.v2 import functional as torchvision

from jaxreflow.data.lerobot import load_dataset
from jaxreflow.training import augmentation
from jaxreflow.training.augmentation import TRANSFORMS, ImageTransformsConfig
from tests.parity.lerobot_shim import ImageTransformsConfig as LeRobotConfig
from tests.parity.lerobot_shim import torch
from tests.tiny_policy import DATASET

AMOUNTS = {
    "brightness": [0.8, 1.2],
    "contrast": [0.5, 0.8, 1.2],
    "saturation": [0.0, 0.5, 1.5],
    "hue": [-0.05, 0.05, 0.5],
    "sharpness": [0.0, 0.5, 1.5],
}
# float32 values of at most 1; the hue goes through a quotient of differences and back.
BOUNDS = {"hue": 3e-6}
TURNS = [(0.0, (0.05, -0.05)), (3.3, (0.02, 0.04)), (-5.0, (0.0, 0.0)), (90.0, (0.0, -0.05))]


@functools.cache
def images() -> dict[str, np.ndarray]:
    """A frame of a dataset, and noise at a camera's usual size, not square, with black, grey and white pixels."""
    noise = np.random.default_rng(0).random((480, 640, 3), np.float32)
    noise[0, :3] = np.array([0, 0.5, 1])[:, None]
    frame = load_dataset(DATASET).image(0, "observation.image") / np.float32(255)
    return {"frame": frame, "noise": noise}


def to_torch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


@pytest.mark.parametrize("image", ["frame", "noise"])
@pytest.mark.parametrize(("name", "amount"), [(name, amount) for name in AMOUNTS for amount in AMOUNTS[name]])
def test_colours_and_sharpness_are_torchvisions(name: str, amount: float, image: str) -> None:
    before = images()[image]
    expected = getattr(torchvision, f"adjust_{name}")(to_torch(before), amount).permute(1, 2, 0).numpy()
    found = jax.jit(getattr(augmentation, f"adjust_{name}"))(before, np.float32(amount))
    assert abs(expected - before).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=BOUNDS.get(name, 3e-7))


@pytest.mark.parametrize("image", ["frame", "noise"])
@pytest.mark.parametrize(("degrees", "shares"), TURNS)
def test_affine_is_torchvisions(degrees: float, shares: tuple[float, float], image: str) -> None:
    before = images()[image]
    height, width, _ = before.shape
    shift = [round(shares[0] * width), round(shares[1] * height)]
    options = {"scale": 1.0, "shear": [0.0, 0.0], "fill": 0}
    expected = torchvision.affine(to_torch(before), degrees, shift, **options).permute(1, 2, 0).numpy()
    found = np.asarray(jax.jit(augmentation.affine)(before, np.float32(degrees), np.float32(shares)))
    # Both round the place where a pixel comes from in float32: nearly half way between two pixels either may be nearest.
    angle = np.deg2rad(degrees)
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2 - shift[0], np.arange(height) - (height - 1) / 2 - shift[1])
    column = np.cos(angle) * x + np.sin(angle) * y + (width - 1) / 2
    row = np.cos(angle) * y - np.sin(angle) * x + (height - 1) / 2
    tie = (np.abs([column % 1 - 0.5, row % 1 - 0.5]) < 1e-4).any(axis=0)
    assert tie.mean() < 1e-3
    np.testing.assert_array_equal(found[~tie], expected[~tie])


def test_defaults_are_lerobots() -> None:
    own, lerobot = ImageTransformsConfig(), LeRobotConfig()
    assert (own.enable, own.max_num_transforms, own.random_order) == (
        lerobot.enable,
        lerobot.max_num_transforms,
        lerobot.random_order,
    )
    assert tuple(lerobot.tfs) == TRANSFORMS
    assert own.weights == tuple(transform.weight for transform in lerobot.tfs.values())
    for name in TRANSFORMS[:-1]:
        assert getattr(own, name) == lerobot.tfs[name].kwargs[name]
    assert lerobot.tfs["affine"].kwargs == {"degrees": own.affine_degrees, "translate": own.affine_translate}
