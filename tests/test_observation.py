"""Observations on their way into the network: tasks, cameras, states; and what is wrong with them."""

import numpy as np
import pytest

from jaxreflow.errors import ProcessorError
from jaxreflow.policy.fitting import surprises
from jaxreflow.policy.observation import Transforms
from jaxreflow.policy.processors import (
    create_processors,
    parse_processors,
    read_processor_files,
)
from jaxreflow.policy.saved import read_policy_config
from jaxreflow.policy.vlm import load_tokenizer
from tests.test_processors import GOLDENS, small_observation, small_policy, small_stats, small_transforms


def test_tokens_end_in_one_newline_and_are_padded_to_the_full_length():
    transforms = small_transforms()
    tokens, mask = transforms.tokenize(["open the drawer", "open the drawer\n"])
    assert tokens.shape == mask.shape == (2, 48)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens[0], tokens[1])
    count = int(mask[0].sum())
    assert transforms.tokenizer.decode(tokens[0, :count]) == "open the drawer\n"
    assert mask[0, :count].all()
    assert set(tokens[0, count:]) == {transforms.tokenizer.pad_token_id}
    long, mask = transforms.tokenize(["push " * 200])
    assert long.shape == (1, 48)
    assert mask.all()


def test_observation_forms_agree():
    transforms = small_transforms()
    plain = transforms.prepare(small_observation())
    assert plain.images["observation.images.top"].dtype == np.uint8
    assert plain.state.shape == (1, 32)
    np.testing.assert_allclose(plain.state[0, :3], [2, 0, 0], rtol=1e-6)
    batched = transforms.prepare(
        small_observation(
            **{
                "observation.state": [[2, 2]],
                "observation.images.top": np.full((1, 3, 4, 6), 0.2),
                "task": ["open the drawer\n"],
            }
        )
    )
    np.testing.assert_array_equal(batched.tokens, plain.tokens)
    np.testing.assert_array_equal(batched.state, plain.state)
    np.testing.assert_allclose(
        batched.images["observation.images.top"] * 255, plain.images["observation.images.top"], 1e-6
    )
    assert batched.images["observation.images.top"].shape == (1, 4, 6, 3)
    in_time = transforms.prepare(small_observation(**{"observation.state": np.float32([[[9, 9], [2, 2]]])}))
    np.testing.assert_array_equal(in_time.state, plain.state)


def test_cameras_keep_the_configs_order_masks_and_names():
    transforms = small_transforms()
    renaming = Transforms(
        transforms.policy,
        transforms.processors.with_rename_map({"cam": "observation.images.top"}),
        transforms.tokenizer,
    )
    image = np.zeros((4, 6, 3), np.uint8)
    observation = {"observation.images.wrist": image, "cam": image, "observation.state": [0, 0], "task": "x"}
    observation["observation.images.wrist_padding_mask"] = np.array([False])
    prepared = renaming.prepare(observation)
    assert list(prepared.images) == ["observation.images.top", "observation.images.wrist"]
    assert not prepared.image_mask["observation.images.wrist"][0]
    assert prepared.image_mask["observation.images.top"][0]
    del observation["cam"]
    assert list(renaming.prepare(observation).images) == ["observation.images.wrist"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"observation.state": None}, "`observation.state` is missing"),
        ({"observation.state": [1, 2, 3]}, r"`observation.state`: expected \[2\].*\[3\]"),
        ({"observation.state": [np.nan, 2]}, r"not finite in dimension\(s\) \[0\]"),
        ({"observation.state": np.zeros((1, 0, 2))}, r"`observation.state`: expected \[2\].*\[1, 0, 2\]"),
        ({"observation.state": ["a", "b"]}, "expected numbers"),
        ({"task": None}, "`task` is missing"),
        ({"task": ["a", "b"]}, "list of 1 strings"),
        ({"observation.images.top": np.zeros((4, 6, 2), np.uint8)}, r"\[height, width, 3\] or \[3, height, width\]"),
        ({"observation.images.top": np.zeros((1, 4, 6))}, r"\[height, width, 3\] or \[3, height, width\]"),
        ({"observation.state": np.zeros(33)}, r"`observation.state`: expected \[2\].*\[33\]"),
        ({"observation.images.top": np.full((3, 4, 6), 255.0)}, r"\[0, 1\]"),
        ({"observation.images.top": np.full((3, 4, 6), np.nan)}, r"\[0, 1\]"),
        ({"observation.images.top": np.full((3, 4, 6), -1.0)}, r"\[0, 1\]"),
        ({"observation.images.top": np.zeros((4, 6, 3), np.int64)}, "uint8 or float"),
        ({"observation.images.top": np.zeros((4, 6), np.uint8)}, "found shape"),
        ({"observation.images.top": np.zeros((0, 6, 3), np.uint8)}, r"found shape \[0, 6, 3\]"),
        ({"observation.images.top": np.zeros((2, 4, 6, 3), np.uint8)}, "expected a batch of 1"),
        ({"observation.images.top": None, "observation.images.wrist": None}, "at least one"),
        (
            {
                "observation.images.top": None,
                "observation.images.wrist": None,
                "observation.images.cam1": np.zeros((4, 6, 3), np.uint8),
            },
            '"observation.images.cam1": "observation.images.top"',
        ),
        ({"observation.images.top_padding_mask": np.ones(2, bool)}, "expected 1 value"),
    ],
)
def test_wrong_observations_are_named(entries, message):
    with pytest.raises(ProcessorError, match=message):
        small_transforms().prepare(small_observation(**entries))


def test_a_scaled_image_may_overshoot():
    """As a bicubic filter leaves it; LeRobot's policy takes it as it is."""
    image = np.linspace(-0.125, 1.125, 72, dtype=np.float32).reshape(3, 4, 6)
    found = small_transforms().prepare(small_observation(**{"observation.images.top": image})).images
    np.testing.assert_array_equal(found["observation.images.top"][0], image.transpose(1, 2, 0))


def test_a_foreign_camera_is_left_out_with_a_warning():
    transforms = small_transforms()
    picture = np.full((4, 6, 3), 9, np.uint8)
    with pytest.warns(
        UserWarning, match="no camera observation.images.side, which is left out as in LeRobot; it has"
    ) as told:
        prepared = transforms.prepare(small_observation(**{"observation.images.side": picture}))
    assert list(prepared.images) == ["observation.images.top", "observation.images.wrist"]
    assert "same views" not in str(told[0].message)
    transforms.prepare(small_observation(**{"observation.images.top_is_pad": np.zeros(1, bool)}))
    absent = small_observation(**{"observation.images.wrist": None, "observation.images.side": picture})
    with pytest.warns(UserWarning, match='"observation.images.side": "observation.images.wrist"'):
        assert list(transforms.prepare(absent).images) == ["observation.images.top"]
    named = transforms.processors.with_rename_map({"cam": "observation.images.top"})
    absent["cam"] = absent.pop("observation.images.top")
    with pytest.warns(UserWarning, match="left out") as told:
        Transforms(transforms.policy, named, transforms.tokenizer).prepare(absent)
    assert "same views" not in str(told[0].message)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_images_channels_may_come_first_or_last(dtype):
    random = np.random.default_rng(0).integers(0, 256, (5, 3, 3), np.uint8)
    last = random if dtype == np.uint8 else (random / np.float32(255)).astype(np.float32)
    wide = np.repeat(last, 2, axis=1)
    transforms = small_transforms()
    for image in (wide, np.moveaxis(wide, -1, 0)):
        prepared = transforms.prepare(small_observation(**{"observation.images.top": image}))
        np.testing.assert_array_equal(prepared.images["observation.images.top"][0], wide)
    # Both could be the channels: LeRobot's order of the dtype counts.
    own = last[:3] if dtype == np.uint8 else np.moveaxis(last[:3], -1, 0)
    prepared = transforms.prepare(small_observation(**{"observation.images.top": own}))
    np.testing.assert_array_equal(prepared.images["observation.images.top"][0], last[:3])


def test_a_state_that_nobody_normalises_may_have_any_width():
    policy = small_policy(normalization_mapping={"STATE": "IDENTITY", "ACTION": "MEAN_STD"})
    transforms = small_transforms(policy)
    prepared = transforms.prepare(small_observation(**{"observation.state": np.arange(1, 8)}))
    np.testing.assert_array_equal(prepared.state[0, :8], [1, 2, 3, 4, 5, 6, 7, 0])
    with pytest.raises(ProcessorError, match=r"expected \[1 to 32\] or .*found \[33\]"):
        transforms.prepare(small_observation(**{"observation.state": np.zeros(33)}))


def test_images_without_statistics_stay_as_they_are_with_a_warning():
    policy = small_policy(normalization_mapping={"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"})
    processors = create_processors(policy, small_stats())
    processors.check(policy)
    assert "no statistics of observation.images.top, observation.images.wrist" in surprises(policy, processors)[0]
    transforms = Transforms(policy, processors, load_tokenizer(policy, GOLDENS / "cross"))
    image = transforms.prepare(small_observation()).images["observation.images.top"]
    np.testing.assert_array_equal(image, np.full((1, 4, 6, 3), 51, np.uint8))


def test_images_are_normalised_where_the_policy_asks_for_it():
    policy = small_policy(normalization_mapping={"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"})
    image_stats = {"mean": np.float32([0.1, 0.2, 0.3]).reshape(3, 1, 1), "std": np.full((3, 1, 1), 0.5, np.float32)}
    stats = small_stats() | dict.fromkeys(policy.camera_keys, image_stats)
    processors = create_processors(policy, stats)
    processors.check(policy)
    transforms = Transforms(policy, processors, load_tokenizer(policy, GOLDENS / "cross"))
    image = transforms.prepare(small_observation()).images["observation.images.top"]
    assert image.dtype == np.float32
    np.testing.assert_allclose(image[0, 0, 0], [0.2, 0, -0.2], atol=1e-6)


def test_training_transforms_invert_the_postprocessor():
    transforms = small_transforms(small_policy(normalization_mapping={"STATE": "MEAN_STD", "ACTION": "MEAN_STD"}))
    action = np.float32([[1, 2], [3, -4]])
    padded = np.pad(transforms.normalize_action(action), ((0, 0), (0, 30)))
    np.testing.assert_allclose(transforms.unnormalize_action(padded), action, rtol=1e-6)


@pytest.mark.parametrize("name", ["cross", "mixed", "aloha"])
def test_inputs_equal_lerobots(name):
    policy = read_policy_config(GOLDENS / name)
    processors = parse_processors(read_processor_files(GOLDENS / name))
    processors.check(policy)
    transforms = Transforms(policy, processors, load_tokenizer(policy, GOLDENS / name))
    golden = np.load(GOLDENS / name / "golden.npz")
    tokens, mask = transforms.tokenize(golden["inputs/tasks"].tolist())
    np.testing.assert_array_equal(tokens, golden["tokens"])
    np.testing.assert_array_equal(mask, golden["token_mask"])
    state = transforms.normalize_state(golden["inputs/state"])
    np.testing.assert_allclose(state, golden["state"][:, : policy.state_dim], rtol=0, atol=1e-6)
    actions = transforms.normalize_action(golden["inputs/actions"])
    np.testing.assert_allclose(actions, golden["actions"][..., : policy.action_dim], rtol=0, atol=1e-6)
    chunk = transforms.unnormalize_action(golden["sample/10"])
    np.testing.assert_allclose(chunk, golden["chunk_raw"], rtol=1e-6, atol=1e-6)
