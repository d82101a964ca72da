"""Random changes of training images: each operation by hand, what is drawn, and that teacher and student see the same."""

import dataclasses
import functools
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from jaxreflow.errors import ConfigError
from jaxreflow.model import init_params
from jaxreflow.model.params import split_params
from jaxreflow.model.types import Batch
from jaxreflow.policy.normalization import Normalizer
from jaxreflow.run import programs
from jaxreflow.run.config import DatasetConfig, ReflowConfig
from jaxreflow.run.flags import read_settings
from jaxreflow.run.programs import Weights, make_update
from jaxreflow.support.mesh import make_mesh
from jaxreflow.training import augmentation
from jaxreflow.training.augmentation import TRANSFORMS, ImageTransformsConfig, augment_images, draw_changes
from tests.test_update import CONFIG, checkpoint
from tests.tiny import CAMERA, WRIST
from tests.tiny_policy import make_batch, perturb

ON = ImageTransformsConfig(enable=True)
changed_images = jax.jit(augment_images)
IMAGE = np.random.default_rng(0).random((6, 8, 3), np.float32)


def grey_image(*rows: list[float]) -> np.ndarray:
    return np.repeat(np.array(rows, np.float32)[..., None], 3, axis=-1)


def run(name: str, image: np.ndarray, *amounts: Any) -> np.ndarray:
    function = getattr(augmentation, name if name == "affine" else f"adjust_{name}")
    return np.asarray(function(jnp.asarray(image), *(jnp.asarray(x, jnp.float32) for x in amounts)))


@pytest.mark.parametrize(
    ("name", "amount", "before", "after"),
    [
        ("brightness", 1.5, [0.2, 0.4, 0.8], [0.3, 0.6, 1.0]),
        ("saturation", 0.0, [1.0, 0.0, 0.0], [0.2989, 0.2989, 0.2989]),
        ("saturation", 1.5, [0.4, 0.5, 0.6], [0.35927, 0.50927, 0.65927]),  # the grey is 0.48146
        ("hue", 1 / 3, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
        ("hue", 1 / 12, [1.0, 0.0, 0.0], [1.0, 0.5, 0.0]),
        ("hue", -1 / 12, [1.0, 0.0, 0.0], [1.0, 0.0, 0.5]),
        ("hue", 0.5, [0.2, 0.8, 0.5], [0.8, 0.2, 0.5]),
        ("hue", 0.3, [0.7, 0.7, 0.7], [0.7, 0.7, 0.7]),
    ],
)
def test_one_pixel(name: str, amount: float, before: list[float], after: list[float]) -> None:
    np.testing.assert_allclose(run(name, np.array([[before]], np.float32), amount)[0, 0], after, atol=1e-6)


def test_contrast_is_about_the_mean_grey_of_the_image() -> None:
    found = run("contrast", grey_image([0.2, 0.4], [0.6, 0.4]), 0.5)
    luma = 0.9999  # the weights of red, green and blue sum to this
    np.testing.assert_allclose(found[..., 0], np.array([[0.1, 0.2], [0.3, 0.2]]) + 0.2 * luma, atol=1e-6)


@pytest.mark.parametrize(("factor", "middle"), [(0.0, 0.5 * 5 / 13), (1.0, 0.5), (2.0, 0.5 + 0.5 * 8 / 13)])
def test_sharpness_leaves_the_border(factor: float, middle: float) -> None:
    image = grey_image([0, 0, 0], [0, 0.5, 0], [0, 0, 0])
    np.testing.assert_allclose(
        run("sharpness", image, factor), grey_image([0, 0, 0], [0, middle, 0], [0, 0, 0]), atol=1e-6
    )
    corner = grey_image([1, 0, 0], [0, 0, 0], [0, 0, 0])
    expected = grey_image([1, 0, 0], [0, (1 - factor) / 13 if factor < 1 else 0, 0], [0, 0, 0])
    np.testing.assert_allclose(run("sharpness", corner, factor), expected, atol=1e-6)
    np.testing.assert_array_equal(run("sharpness", IMAGE[:2], factor), IMAGE[:2])


def test_affine_turns_clockwise_and_shifts_by_whole_pixels() -> None:
    square = IMAGE[:, :6]
    np.testing.assert_array_equal(run("affine", square, 90.0, (0, 0)), np.rot90(square, -1))
    shifted = run("affine", IMAGE, 0.0, (3 / 8, -1 / 3))  # of 8 x 6 pixels: three to the right, two up
    np.testing.assert_array_equal(shifted[:-2, 3:], IMAGE[2:, :-3])
    assert not shifted[-2:].any()
    assert not shifted[:, :3].any()
    # Turned first, then shifted.
    both = run("affine", square, 90.0, (0.5, 0))
    np.testing.assert_array_equal(both[:, 3:], np.rot90(square, -1)[:, :3])


def apply_in_turn(image: np.ndarray, which: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    for name in (TRANSFORMS[i] for i in which):
        mine = amounts[5:] if name == "affine" else amounts[TRANSFORMS.index(name) :][:1]
        image = run(name, image, *((mine[0], mine[1:]) if name == "affine" else mine))
    return image


@pytest.mark.parametrize("random_order", [False, True])
def test_every_image_goes_through_its_own_changes(random_order: bool) -> None:
    config = dataclasses.replace(ON, random_order=random_order, max_num_transforms=4)
    images = np.random.default_rng(1).integers(0, 256, (5, 6, 8, 3), np.uint8)
    changes = draw_changes(jax.random.key(0), 5, [CAMERA], config)[CAMERA]
    found = changed_images(images, changes)
    for image, result, which, amounts in zip(images, found, *map(np.asarray, changes), strict=True):
        np.testing.assert_allclose(result, apply_in_turn(image / np.float32(255), which, amounts), atol=2e-6)
    np.testing.assert_allclose(changed_images(images / np.float32(255), changes), found, atol=1e-6)


def test_what_is_drawn() -> None:
    config = dataclasses.replace(ON, weights=(1.0, 3.0, 0.0, 0.0, 1.0, 1.0), max_num_transforms=2)
    drawn = draw_changes(jax.random.key(0), 4000, [CAMERA, WRIST], config)
    which, amounts = map(np.asarray, drawn[CAMERA])
    assert which.shape == (4000, 2)
    assert (which[:, 0] < which[:, 1]).all()
    # P(contrast among two) = 1 - P(first another) P(second another | first another) = 1 - 1/2 * 2/5
    shares = [(which == i).any(axis=1).mean() for i in range(6)]
    np.testing.assert_allclose(shares, [0.4, 0.8, 0, 0, 0.4, 0.4], atol=0.03)
    ranges = np.array([*(getattr(config, n) for n in TRANSFORMS[:-1]), (-5, 5), (-0.05, 0.05), (-0.05, 0.05)])
    np.testing.assert_allclose([amounts.min(axis=0), amounts.max(axis=0)], ranges.T, atol=0.01)
    assert abs(np.corrcoef(amounts, rowvar=False) - np.eye(8)).max() < 0.1
    other = np.asarray(drawn[WRIST].amounts)
    assert abs(np.corrcoef(amounts[:, 0], other[:, 0])[0, 1]) < 0.1
    ordered = draw_changes(jax.random.key(0), 4000, [CAMERA], dataclasses.replace(config, random_order=True))[CAMERA]
    first = np.asarray(ordered.which)[:, 0]
    np.testing.assert_allclose((first == 1).mean(), 0.5, atol=0.03)
    np.testing.assert_array_equal(np.sort(ordered.which, axis=1), which)
    assert dataclasses.replace(config, max_num_transforms=6).num_transforms == 4


@functools.cache
def weights() -> Weights:
    """The vision tower is trained, so that teacher and student look at the images each by themselves."""
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), CONFIG)
    teacher, frozen = split_params(perturb(params), lambda path: path[0] in ("vision_model", "connector", "expert"))
    return Weights(perturb(teacher), frozen, teacher)


def config(enable: bool) -> ReflowConfig:
    transforms = ImageTransformsConfig(enable=enable)
    return ReflowConfig(noises=1, teacher_steps=1, dataset=DatasetConfig(image_transforms=transforms))


def with_images(batch: Batch, images: Any) -> Batch:
    return dataclasses.replace(batch, observation=dataclasses.replace(batch.observation, images=images))


def parts(monkeypatch: pytest.MonkeyPatch, enable: bool) -> dict[str, Any]:
    """The losses and draws of which `make_update` makes the update and the evaluation."""
    with monkeypatch.context() as patch:
        made = {name: Mock() for name in ("make_train_step", "make_eval_step")}
        for name, mock in made.items():
            patch.setattr(programs, name, mock)
        make_update(config(enable), checkpoint(), weights(), make_mesh())
    (loss, _, _, draw, _), (eval_loss, eval_draw, _) = (mock.call_args.args for mock in made.values())
    return {"loss": loss, "draw": draw, "eval_loss": eval_loss, "eval_draw": eval_draw}


@pytest.mark.slow
def test_teacher_and_student_see_the_same_changed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is that on images which were changed beforehand, and is not where only one of the two sees them so."""
    found, batch = parts(monkeypatch, enable=True), make_batch(2, CONFIG)
    draws = found["draw"](jax.random.key(1), 2)
    start, frozen, teacher = weights()[:3]
    total, _ = jax.jit(found["loss"])(start, frozen, teacher, batch, draws)
    plain = jax.jit(found["eval_loss"])
    images = {key: changed_images(x, draws.changes[key]) for key, x in batch.observation.images.items()}
    expected, _ = plain(start, frozen, teacher, with_images(batch, images), draws)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    unchanged = {key: x / np.float32(255) for key, x in batch.observation.images.items()}
    other, _ = plain(start, frozen, teacher, with_images(batch, unchanged), draws)
    assert abs(float(other) - float(expected)) > 1e-3 * float(expected)


def test_noise_is_what_it_was_and_evaluations_are_not_augmented(monkeypatch: pytest.MonkeyPatch) -> None:
    off, on = (parts(monkeypatch, enable) for enable in (False, True))
    assert off["loss"] is off["eval_loss"]
    assert off["draw"] is off["eval_draw"]
    key = jax.random.key(3)
    draws = on["draw"](key, 4)
    assert set(draws.changes) == set(CONFIG.visual_keys)
    for same in (off["draw"](key, 4), on["eval_draw"](key, 4)):
        assert same.changes is None
        np.testing.assert_array_equal(draws.noise, same.noise)
        np.testing.assert_array_equal(draws.t, same.t)


def test_images_that_the_policy_normalises_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Normalizer, "mode", lambda self, key: "MEAN_STD")
    with pytest.raises(
        ConfigError, match=rf"expected images in \[0, 1\], but the policy normalises {CAMERA} \(MEAN_STD\)"
    ):
        make_update(config(True), checkpoint(), weights(), make_mesh())


def test_flags_may_be_spelled_as_lerobots() -> None:
    args = [
        "--output_dir",
        "run",
        "--policy.path",
        "P",
        "--dataset.root",
        "D",
        "--dataset.image_transforms.enable=true",
    ]
    config = read_settings(train.CONFIGS / "finetune.py", [*args, "--dataset.image_transforms.hue", "-0.1", "0.2"])
    found = config.dataset.image_transforms
    assert found == ImageTransformsConfig(enable=True, hue=(-0.1, 0.2))


def test_cached_image_tokens_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--dataset.image-transforms.enable changes images, of which --dataset.features"
    ):
        DatasetConfig(features="cache", image_transforms=ON)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_num_transforms": 0}, "image-transforms.max-num-transforms must be at least 1, found 0"),
        ({"weights": (0.0,) * 6}, "image-transforms.weights .* at least one must be positive"),
        ({"weights": (-1.0,) * 6}, "image-transforms.weights must not be negative"),
        ({"hue": (-0.6, 0.1)}, "image-transforms.hue must be .* from -0.5 to 0.5, found -0.6 0.1"),
        ({"brightness": (1.2, 0.8)}, "image-transforms.brightness must be .* found 1.2 0.8"),
        ({"sharpness": (0.0, float("inf"))}, "image-transforms.sharpness must be"),
        (
            {"affine_translate": (0.1, 1.5)},
            "image-transforms.affine-translate must be two shares from 0 to 1, found 0.1 1.5",
        ),
        ({"affine_degrees": (float("nan"), 1.0)}, "image-transforms.affine-degrees must be"),
    ],
)
def test_wrong_settings_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageTransformsConfig(**fields)
