"""What a run says of its policy's actions while it trains, against chunks that are sampled and unnormalised one by one."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreflow import flow
from jaxreflow.data.matching import pad_last
from jaxreflow.data.metadata import FeatureSpec
from jaxreflow.model import memorise, observe, velocity
from jaxreflow.model.params import merge_params, split_params, trainable_in_reflow
from jaxreflow.model.types import Batch, Params
from jaxreflow.policy.observation import Transforms
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy
from jaxreflow.run.config import FinetuneConfig, ReflowConfig
from jaxreflow.run.loop import mean_scores
from jaxreflow.run.monitor import action_units, make_error_step, root_errors
from jaxreflow.run.programs import Weights
from jaxreflow.support.mesh import make_mesh
from tests.tiny_policy import perturb

GOLDENS = Path(__file__).parent / "goldens"
NAMES = tuple(f"joint {i}" for i in range(14))
# Golden checkpoints are of fixed size; two steps compile and run sooner than ten.
TEACHER_STEPS = 2
PADDED = np.array([[False, False, True], [False, False, False]])


@functools.cache
def aloha() -> tuple[SavedPolicy, Transforms]:
    """A policy whose actions are Aloha's: flipped joints and rescaled grippers besides mean and standard deviation."""
    checkpoint = load_saved_policy(GOLDENS / "aloha")
    return checkpoint, checkpoint.load_transforms()


def batch(number: int) -> Batch:
    """The golden's observations; recorded actions that differ from batch to batch."""
    checkpoint, transforms = aloha()
    with np.load(GOLDENS / "aloha" / "golden.npz") as golden:
        values = {key: golden[f"inputs/{key}"] for key in ("state", "actions", "tasks")}
        images = {key: golden[f"inputs/images/{key}"] for key in checkpoint.policy.camera_keys}
    observation = {**images, "observation.state": values["state"], "task": values["tasks"].tolist()}
    actions = transforms.normalize_action(values["actions"] * np.float32(1 + number))
    return Batch(
        observation=transforms.prepare(observation),
        actions=pad_last(actions, checkpoint.config.max_action_dim),
        action_is_pad=PADDED if number else np.zeros_like(PADDED),
        index=np.arange(2, dtype=np.int32),
    )


@functools.cache
def weights() -> tuple[Weights, Params]:
    """The policy's own as start and teacher; and a student that has left it."""
    start, frozen = split_params(aloha()[0].load_params(), trainable_in_reflow)
    return Weights(start, frozen, start), perturb(start, 0.02)


@functools.partial(jax.jit, static_argnums=(3,))
def _chunks(params: Params, batch: Batch, noise: jax.Array, steps: int) -> jax.Array:
    config = aloha()[0].config
    context = observe(params, batch.observation, config=config)
    memory = memorise(params, context, jnp.asarray(batch.observation.state), config=config)
    return flow.euler(lambda x, t: velocity(params, memory, x, t, config=config), noise, steps)


def chunks(trained: Params, number: int, steps: int, seed: int) -> np.ndarray:
    """Padded actions from the noise that evaluations of a run of this seed draw for the batch."""
    config = aloha()[0].config
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), number)
    noise = flow.sample_noise(key, (2, 1, config.chunk_size, config.max_action_dim))
    return np.asarray(_chunks(merge_params(trained, weights()[0].frozen), batch(number), noise, steps))[:, 0]


def measured(config: ReflowConfig | FinetuneConfig, trained: Params) -> dict[str, float]:
    mesh = make_mesh(devices=jax.devices()[:1])
    checkpoint, transforms = aloha()
    step = make_error_step(config, checkpoint, weights()[0], mesh, action_units(transforms, NAMES))
    batches = iter([batch(0), batch(1)])
    return root_errors(mean_scores(lambda batch, index: step(trained, batch, index), batches, mesh))


def rms(errors: list[np.ndarray]) -> np.ndarray:
    """Per dim."""
    return np.sqrt(np.mean(np.square(np.concatenate([e.reshape(-1, e.shape[-1]) for e in errors])), axis=0))


def test_a_student_is_compared_with_its_teacher_in_the_datasets_units() -> None:
    config = ReflowConfig(teacher_steps=TEACHER_STEPS, seed=3)
    parts, student = weights()
    scores = measured(config, student)
    unnormalize, dims = aloha()[1].unnormalize_action, len(NAMES)
    for steps in (1, 2):
        pairs = [
            (chunks(student, number, steps, seed=3), chunks(parts.teacher, number, TEACHER_STEPS, seed=3))
            for number in (0, 1)
        ]
        expected = rms([unnormalize(own) - unnormalize(goal) for own, goal in pairs])
        found = [scores[f"student@{steps}_error/{name}"] for name in NAMES]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        own, goal = (np.stack(side)[..., :dims] for side in zip(*pairs, strict=True))
        relative = np.linalg.norm(own - goal) / np.linalg.norm(goal)
        np.testing.assert_allclose(scores[f"student@{steps}_error"], relative, rtol=1e-4)
    assert len(scores) == 2 * (1 + dims)


def test_a_finetuned_policy_is_compared_with_the_recorded_actions_inside_the_episode() -> None:
    """In the steps that it will take, and every unpadded action counts once, however many its batch has."""
    _, trained = weights()
    scores = measured(FinetuneConfig(num_steps=1, seed=5), trained)
    unnormalize = aloha()[1].unnormalize_action
    errors = []
    for number in (0, 1):
        part = batch(number)
        error = unnormalize(chunks(trained, number, 1, seed=5)) - unnormalize(np.asarray(part.actions))
        errors.append(error[~np.asarray(part.action_is_pad)])
    assert sum(len(error) for error in errors) == 11
    np.testing.assert_allclose([scores[f"policy@1_error/{name}"] for name in NAMES], rms(errors), rtol=1e-4)
    assert set(scores) == {"policy@1_error", *(f"policy@1_error/{name}" for name in NAMES)}


def test_units_are_those_of_the_policys_own_way_back() -> None:
    """Of two chunks that differ in one dim only, that dim's difference, sign aside."""
    _, transforms = aloha()
    units = action_units(transforms, NAMES)
    first = np.random.default_rng(0).normal(size=14).astype(np.float32)
    for dim in range(14):
        second = first.copy()
        second[dim] += 3
        moved = transforms.unnormalize_action(second) - transforms.unnormalize_action(first)
        np.testing.assert_allclose(moved, np.where(np.arange(14) == dim, 3 * units.scale, 0), rtol=1e-4, atol=1e-6)
    assert np.any(units.scale < 0), "flipped joints"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x", "y"], ("x", "y")),
        ({"motors": ["hip", "knee"]}, ("hip", "knee")),
        ({"left": ["hip"], "right": ["knee"]}, ("hip", "knee")),
        ({"hip": 0, "knee": 1}, ("hip", "knee")),
        (None, ("0", "1")),
        (["x"], ("0", "1")),
        (["x", "x"], ("0", "1")),
        (["x", 3], ("0", "1")),
        (["x", ""], ("0", "1")),
        ({"motors": [["hip"], "knee"]}, ("0", "1")),
        ("xy", ("0", "1")),
    ],
)
def test_names_of_action_dims(names: object, expected: tuple[str, ...]) -> None:
    assert FeatureSpec("float32", (2,), names).dim_names == expected


def test_root_errors_leaves_other_scores() -> None:
    means = {"held_out_loss": 4.0, "student@1_error": 4.0, "student@1_error/x": 9.0, "loss/x_error": 4.0}
    assert root_errors(means) == {"held_out_loss": 4, "student@1_error": 2, "student@1_error/x": 3, "loss/x_error": 4}
