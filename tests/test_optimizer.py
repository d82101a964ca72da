"""The optimizer against LeRobot's numbers: literal learning rates, and one AdamW update worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxreflow.errors import ConfigError
from jaxreflow.training.optimizer import OptimizerConfig, make_optimizer, make_schedule

# LeRobot 0.4.4's `CosineDecayWithWarmupSchedulerConfig(1000, 30000, 1e-4, 2.5e-6)`: 30,000 updates, then 3,000.
LONG = {
    0: 9.990009990009991e-08,
    1: 1.998001998001998e-07,
    500: 5.0049950049950055e-05,
    999: 9.990009990009991e-05,
    1000: 9.973294239920334e-05,
    15000: 5.125e-05,
    30000: 2.5e-06,
    40000: 2.5e-06,
}
SHORT = {
    0: 9.900990099009902e-07,
    50: 5.0495049504950497e-05,
    100: 9.973294239920334e-05,
    1500: 5.125e-05,
    3000: 2.5e-06,
}


@pytest.mark.parametrize(("steps", "expected"), [(30_000, LONG), (200_000, LONG), (3_000, SHORT)])
def test_schedule_equals_lerobots(steps: int, expected: dict[int, float]) -> None:
    schedule = make_schedule(OptimizerConfig(), steps)
    for step, lr in expected.items():
        # float32: the cosine of an angle near pi loses about 1e-7 of the peak
        np.testing.assert_allclose(schedule(step), lr, rtol=1e-6, atol=2e-11)


def test_schedule_without_warmup_starts_at_its_peak() -> None:
    assert make_schedule(OptimizerConfig(warmup_steps=0), 100)(0) == pytest.approx(1e-4)
    # Scaled down to less than one update of warm-up.
    assert make_schedule(OptimizerConfig(), 20)(0) == pytest.approx(1e-4)


def test_update_is_clipped_adamw() -> None:
    config = OptimizerConfig(warmup_steps=0, weight_decay=0.1, eps=1e-2)
    optimizer = make_optimizer(config, 30_000)
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
    gradient = np.array([30.0, -40.0, 120.0])  # norm 130, clipped to 10
    updates, _ = optimizer.update(
        {"a": jnp.array([30.0, -40.0]), "b": jnp.array([120.0])}, optimizer.init(params), params
    )
    clipped = gradient * 10 / 130
    # First step: bias correction makes the moments the gradient itself.
    expected = -1e-4 * (clipped / (np.abs(clipped) + 1e-2) + 0.1 * np.array([1.0, -2.0, 3.0]))
    np.testing.assert_allclose(np.concatenate([updates["a"], updates["b"]]), expected, rtol=1e-6)


def test_muon_makes_the_singular_values_of_matrices_alike_and_leaves_the_rest_to_adamw() -> None:
    config = OptimizerConfig(name="muon", lr=1e-3, warmup_steps=0, weight_decay=0.0)
    optimizer = make_optimizer(config, 30_000)
    left, right = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 16)))[0], np.eye(16)
    gradient = {"kernel": left @ np.diag(np.geomspace(1.0, 0.05, 16)) @ right, "scale": np.array([0.3, -0.5])}
    gradient = {name: jnp.asarray(value, jnp.float32) for name, value in gradient.items()}
    params = {name: jnp.zeros_like(value) for name, value in gradient.items()}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    # Newton and Schulz's iteration leaves values between 0.7 and 1.2; times the root of the larger side, times 0.2.
    values = np.linalg.svd(-updates["kernel"] / (1e-3 * 0.2 * np.sqrt(64)), compute_uv=False)
    assert 0.65 < values.min() < values.max() < 1.25
    assert np.sum(np.asarray(updates["kernel"]) * np.asarray(gradient["kernel"])) < 0
    adamw = optax.adamw(1e-3, 0.9, 0.95, weight_decay=0.0, nesterov=True)
    expected, _ = adamw.update({"scale": gradient["scale"]}, adamw.init({"scale": params["scale"]}), params)
    np.testing.assert_allclose(updates["scale"], expected["scale"], rtol=1e-6)


def test_muon_is_optaxs_and_reads_its_state() -> None:
    """Matrices of one shape in several layers, another shape, and a vector, over three updates."""
    rng = np.random.default_rng(0)

    def tree() -> dict[str, dict[str, jnp.ndarray]]:
        shapes = {"in": (8, 20), "out": (20, 8), "scale": (8,)}
        return {
            f"layer_{i}": {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()} for i in range(3)
        }

    config = OptimizerConfig(name="muon", lr=1e-3, warmup_steps=0, weight_decay=0.1, clip_norm=1e9)
    schedule = make_schedule(config, 30_000)
    reference = optax.chain(
        optax.clip_by_global_norm(1e9),
        optax.contrib.muon(
            schedule, weight_decay=0.1, adam_b1=0.9, adam_b2=0.95, adam_weight_decay=0.1, consistent_rms=0.2
        ),
    )
    ours, params = make_optimizer(config, 30_000), tree()
    state, expected_state = ours.init(params), reference.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(expected_state)
    for _ in range(3):
        gradient = tree()
        updates, state = ours.update(gradient, state, params)
        expected, expected_state = reference.update(gradient, expected_state, params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-8), updates, expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), state, expected_state)


def test_muons_program_does_not_grow_with_layers() -> None:
    optimizer = make_optimizer(OptimizerConfig(name="muon"), 30_000)

    def products(layers: int) -> int:
        params = {f"layer_{i}": jnp.ones((4, 8)) for i in range(layers)}
        return str(jax.make_jaxpr(optimizer.update)(params, optimizer.init(params), params)).count("dot_general")

    assert products(1) == products(5) > 0


@pytest.mark.parametrize(
    "wrong", [{"name": "sgd"}, {"lr": 0.0}, {"warmup_steps": -1}, {"betas": (0.9, 1.0)}, {"clip_norm": float("nan")}]
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)  # type: ignore[arg-type]
