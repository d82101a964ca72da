"""The measures on numbers that can be checked by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreflow.data.frames import spread as spread_out
from jaxreflow.errors import ConfigError
from jaxreflow.evaluate.checks import Thresholds
from jaxreflow.evaluate.measure import Measures
from jaxreflow.evaluate.measures.consistency import (
    Consistency,
    against_training,
    final_train_loss,
    find_run,
    last_update,
)
from jaxreflow.evaluate.measures.distribution import Distribution, energy_distance, own_distance, spread
from jaxreflow.evaluate.measures.estimate import Estimate, relative_error, relative_error_difference, root_quotient
from jaxreflow.evaluate.measures.fidelity import Fidelity
from jaxreflow.evaluate.measures.smoothness import third_difference
from jaxreflow.evaluate.measures.velocity_field import Field, path_deviation
from jaxreflow.evaluate.paths import plane_of
from jaxreflow.evaluate.report.table import error_table, markdown
from jaxreflow.evaluate.settings import Settings
from jaxreflow.evaluate.verdict import judge
from jaxreflow.policy.latency import Latency


def test_relative_error_is_one_quotient_over_the_whole_set() -> None:
    """Squared norms 1 + 0 of the errors, 9 + 16 of the reference, by episode."""
    found = relative_error(np.array([1.0, 0.0]), np.array([9.0, 16.0]))
    assert found.value == pytest.approx(1 / 5)
    assert found.low is not None
    assert found.high is not None
    # Both episodes alike give the only other two values: 1/3 and 0.
    assert (found.low, found.high) == (0.0, pytest.approx(1 / 3))
    assert relative_error(np.array([4.0]), np.array([1.0])) == Estimate(2.0)
    np.testing.assert_array_equal(root_quotient(np.array([0.0, 1.0]), np.zeros(2)), [0.0, np.inf])


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 data sets of 40 episodes, each with an error of chi-squared size around 0.25 of its reference."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        reference = rng.gamma(5.0, size=40)
        found = relative_error(reference * 0.25 * rng.gamma(2.0, 0.5, size=40), reference, resamples=400)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.5 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_differences_are_of_the_same_episodes() -> None:
    """Errors that differ by a tenth in every episode differ for certain, though each is known to a fifth only."""
    rng = np.random.default_rng(0)
    reference = rng.gamma(5.0, size=40)
    first = reference * 0.25 * rng.gamma(1.0, size=40)
    alone, second = relative_error(first, reference), relative_error(1.1**2 * first, reference)
    assert alone.high is not None
    assert second.low is not None
    assert second.low < alone.high
    found = relative_error_difference(first, 1.1**2 * first, reference)
    assert found.value == pytest.approx(second.value - alone.value)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.value < found.high < 0.1
    assert relative_error_difference(first[:1], first[:1] * 4, first[:1]) == Estimate(1.0)


def test_energy_distance_of_gaussians_in_closed_form() -> None:
    """E|X - Y| of normal scalars is a folded normal's mean; equal ones have distance 0 without bias."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3000, 1)), rng.normal(3.0, size=(3000, 1))
    within = 2 / np.sqrt(np.pi)
    # |N(3, 2)|: sigma sqrt(2 / pi) e^{-mu^2 / 2 sigma^2} + mu (1 - 2 Phi(-mu / sigma))
    across = 2 / np.sqrt(np.pi) * np.exp(-9 / 4) + 3 * (1 - 2 * 0.016947427)
    assert own_distance(x) == pytest.approx(within, rel=0.03)
    assert energy_distance(x, y) == pytest.approx(2 * across - 2 * within, rel=0.05)
    same = [energy_distance(rng.normal(size=(32, 8)), rng.normal(size=(32, 8))) for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(200)
    assert spread(2 * x) == pytest.approx(2 * spread(x))


def test_a_straight_field_is_straight_and_a_bent_one_is_not() -> None:
    noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    goal = jnp.ones_like(noise)
    deviation, chord = path_deviation(lambda x, t: (x - goal) / t[..., None, None], noise, 10)
    assert float(jnp.max(deviation)) < 1e-8 * float(jnp.sum(chord))
    # v = 2 t: the chord is its mean over the steps, 1.1, so the deviation is known at every step.
    deviation, chord = path_deviation(lambda x, t: 2 * jnp.broadcast_to(t[..., None, None], x.shape), noise, 10)
    times = 1 - np.arange(10) / 10
    np.testing.assert_allclose(deviation[:, 0, 0], 3 * 4 * (2 * times - 1.1) ** 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(chord, 3 * 4 * 1.1**2, rtol=1e-5)


def test_jerk_of_a_cubic_is_six() -> None:
    actions = np.arange(8.0)[:, None] ** 3
    np.testing.assert_allclose(third_difference(actions), 6.0)


def test_plane_is_that_of_the_largest_spread() -> None:
    points = np.random.default_rng(0).normal(size=(50, 4)) * np.array([1.0, 9.0, 0.1, 4.0]) + 5
    centre, plane = plane_of(points)
    np.testing.assert_allclose(np.abs(plane[1, 0]), 1, atol=0.05)
    np.testing.assert_allclose(np.abs(plane[3, 1]), 1, atol=0.05)
    np.testing.assert_allclose(centre, points.mean(0))
    assert plane_of(points[:1])[1].shape == (4, 2)


def test_frames_are_spread_evenly_ends_included() -> None:
    assert spread_out(10, 4) == [0, 3, 6, 9]
    assert spread_out(3, 10) == [0, 1, 2]


def test_training_loss_is_that_of_the_last_tenth(tmp_path) -> None:
    records = [{"step": step, "loss": float(step)} for step in range(10, 201, 10)] + [
        {"step": 200, "held_out_loss": 9.0}
    ]
    assert final_train_loss(records) == (195.0, 190, 200)
    assert final_train_loss(records, last=100) == (100.0, 100, 100)
    assert final_train_loss([]) is None
    # Of a short run a single line may lie in the last tenth; it has the mean since the line before.
    short = [{"step": step, "loss": 9.0, "loss_mean": float(step)} for step in (50, 100, 150, 200)]
    assert final_train_loss(short) == (200.0, 151, 200)
    student = tmp_path / "run" / "checkpoints" / "000100" / "pretrained_model"
    student.mkdir(parents=True)
    assert find_run(student) is None
    (tmp_path / "run" / "metrics.jsonl").touch()
    (tmp_path / "run" / "checkpoints" / "last").symlink_to("000100")
    assert find_run(tmp_path / "run" / "checkpoints" / "last" / "pretrained_model") == tmp_path / "run"
    assert last_update(tmp_path / "run" / "checkpoints" / "last" / "pretrained_model") == 100


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_steps": (0,)}, "--num-steps"),
        ({"draws": 1}, "--draws"),
        ({"frames": 0}, "--frames"),
        ({"seed": -1}, "-1"),
    ],
)
def test_settings_are_checked(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**fields)


def fidelity(name: str, steps: int, frames: str, error: float, **changes: float) -> Fidelity:
    row = Fidelity(
        name=name,
        num_steps=steps,
        frames=frames,
        error=Estimate(error),
        executed={"10": Estimate(error)},
        per_dim=(error,),
        per_position=(error,),
        padded_error=error,
        padded_rms=0.01,
        physical_error=Estimate(error),
        rmse=(error,),
        recorded_error=Estimate(error),
        jerk=1.0,
    )
    return dataclasses.replace(row, **changes)


def measures(teacher: dict[int, tuple[float, float]], student: dict[int, tuple[float, float]]) -> Measures:
    """Errors on `all` and `early` frames by step count; the rest is as of a sound student."""
    rows = [fidelity("teacher", 10, frames, 0.0) for frames in ("all", "early")]
    for name, errors in (("teacher", teacher), ("student", student)):
        for steps, values in errors.items():
            pairs = zip(("all", "early"), values, strict=True)
            rows += [fidelity(name, steps, frames, error) for frames, error in pairs]
    field = Field("teacher", (1.0,), ((0.2,),), 0.2, 0.2, (1.0,), (0.0,), 0.0)
    fields = [field, dataclasses.replace(field, name="student", mean_error=0.1, mean_padded_error=0.1)]
    return Measures("teacher@10", {"all": 8, "early": 3}, rows, fields[: 1 + bool(student)], [], [], [], [], None)


# Errors on all and early frames as of the small policies of docs/results.md.
CALIBRATION = {2: (0.15, 0.427), 1: (0.341, 0.735)}
STUDENT = {10: (0.09, 0.28), 2: (0.099, 0.284), 1: (0.141, 0.353)}


def test_short_execution_may_need_no_distillation_and_whole_chunks_do() -> None:
    verdict = judge(measures(CALIBRATION, {}), 50, [10, 50], Thresholds())
    short, whole = verdict.advice
    assert (short.distil, short.deploy) == ("perhaps", "teacher@2")
    assert "Perhaps: teacher@2 is fit. Deploy teacher@2. Only a trial tells whether teacher@1 would do." in short.text
    assert (whole.distil, whole.deploy) == ("below 2 steps", "teacher@2")
    assert verdict.passed
    assert not verdict.checks


@pytest.mark.parametrize(
    ("error", "result"), [(0.12, "no"), (0.13, "perhaps"), (0.4, "perhaps"), (0.41, "below 2 steps")]
)
def test_where_no_short_trial_is_needed_and_where_none_helps(error: float, result: str) -> None:
    found = measures({2: (0.1, 0.2), 1: (error, 0.6)}, {})
    assert judge(found, 50, [10, 50], Thresholds()).advice[0].distil == result


def test_an_open_student_is_named_beside_what_to_deploy() -> None:
    found = measures({2: (0.5, 0.6)}, {1: (0.22, 0.3)})
    text = judge(found, 50, [10, 50], Thresholds()).advice[0].text
    assert "teacher is not fit. Deploy teacher@10. Only a trial tells whether student@1 would do." in text


def test_what_jerks_is_not_fit_whatever_its_error() -> None:
    found = measures({2: (0.05, 0.1), 1: (0.1, 0.2)}, {})
    rows = [dataclasses.replace(row, jerk=1.31 * row.jerk) if row.num_steps == 1 else row for row in found.fidelity]
    verdict = judge(dataclasses.replace(found, fidelity=rows), 50, [10, 50], Thresholds())
    assert [advice.distil for advice in verdict.advice] == ["below 2 steps", "below 2 steps"]
    assert "at most 1.3 times the" in verdict.suitability[-1].reasons[0]


def test_the_lines_of_short_execution_must_be_in_order() -> None:
    with pytest.raises(
        ConfigError, match=r"expected at most the 0\.4 of --thresholds\.short-error-open, found 0\.5; raise"
    ):
        Thresholds(short_error=0.5)
    assert Thresholds(short_error=0.5, short_error_open=0.6).short_error == 0.5


def test_a_sound_student_is_deployed_where_its_teacher_would_fail() -> None:
    verdict = judge(measures(CALIBRATION, STUDENT), 50, [10, 50], Thresholds())
    assert verdict.passed
    assert [advice.deploy for advice in verdict.advice] == ["student@1", "student@1"]
    assert "student@1 for 50 actions per chunk" in verdict.headline
    assert next(check for check in verdict.checks if check.name == "loss consistency").passed is None


def test_of_one_policy_fewer_steps_are_never_slower_whatever_was_timed() -> None:
    def timed(name: str, prefix: float, loops: dict[int | None, float]) -> list[Latency]:
        parts = [("prefix", None, prefix), *(("denoise", steps, loop) for steps, loop in loops.items())]
        return [Latency(part, steps, 3, ms, ms, ms, name) for part, steps, ms in parts]

    found = dataclasses.replace(
        measures(CALIBRATION, STUDENT),
        latency=[*timed("teacher", 5.0, {10: 9.0, 2: 1.0, 1: 4.0}), *timed("student", 9.0, {10: 9.0, 2: 5.0, 1: 6.0})],
    )
    assert [cost.call for cost in found.calls if cost.label in ("teacher@2", "teacher@1")] == [6.0, 9.0]
    verdict = judge(found, 50, [10], Thresholds(short_error=0.4))
    assert verdict.advice[0].deploy == "teacher@1"


def test_a_failed_check_forbids_the_student() -> None:
    """Several steps ruined, as by training at t = 1 only."""
    verdict = judge(measures(CALIBRATION, {10: (0.3, 0.4), 1: (0.12, 0.29)}), 50, [10, 50], Thresholds())
    assert [check.name for check in verdict.checks if check.passed is False] == ["more steps"]
    assert verdict.headline == "Do not deploy this student: more steps failed."
    assert [advice.deploy for advice in verdict.advice] == ["teacher@2", "teacher@2"]


def test_a_policy_that_averages_its_choices_is_not_fit_for_whole_chunks() -> None:
    found = dataclasses.replace(
        measures(CALIBRATION, STUDENT), distributions=[Distribution("student", 1, 16, 256, 3.7, 0.3, 0.28)]
    )
    verdict = judge(found, 50, [10, 50], Thresholds())
    rows = {(row.label, row.execution): row for row in verdict.suitability}
    assert rows["student@1", "short"].undecided
    assert len(rows["student@1", "whole chunk"].reasons) == 2
    assert verdict.advice[1].deploy == "teacher@2"


@pytest.mark.parametrize(("ratio", "passed"), [(0.3, False), (0.97, True), (1.2, True), (14.0, False)])
def test_a_loss_that_the_log_does_not_show_fails_either_way(ratio: float, passed: bool) -> None:
    """14 is what the student that moved at random had."""
    found = dataclasses.replace(
        measures(CALIBRATION, STUDENT), consistency=Consistency(0.002 * ratio, 0.002, ratio, "training loss")
    )
    checks = judge(found, 50, [10, 50], Thresholds()).checks
    assert next(check for check in checks if check.name == "loss consistency").passed is passed


def test_padded_endpoints_that_are_nearly_nothing_are_not_checked() -> None:
    found = measures(CALIBRATION, STUDENT)
    rows = [dataclasses.replace(row, padded_rms=1e-5, padded_error=3.0) for row in found.fidelity]
    checks = judge(dataclasses.replace(found, fidelity=rows), 50, [10, 50], Thresholds()).checks
    assert next(check for check in checks if check.name == "padded dims").passed is None


def test_table_has_a_line_per_policy_and_a_column_per_set() -> None:
    text = markdown(error_table(measures({1: (0.5, 1.0)}, {1: (2.0, 0.25)})))
    assert text.splitlines() == [
        "| relative error to teacher@10, same noise | all frames | early frames |",
        "| --- | --- | --- |",
        "| teacher@1 | 0.500 | 1.000 |",
        "| student@1 | 2.000 | 0.250 |",
    ]


def test_a_training_loss_of_zero_is_no_measure() -> None:
    """As of a teacher of one step, from which its student starts out equal."""
    log = [{"step": step, "loss": 0.0, "loss_mean": 0.0} for step in (90, 100)]
    assert against_training(0.5, log, None) == Consistency(
        0.5, 0.0, None, "not available: the training loss of updates 91 to 100 is 0"
    )


def test_the_runs_own_held_out_loss_comes_first() -> None:
    """A student that overfits is exported well: its training loss is low, and its held-out loss is the same here and there."""
    log = [{"step": step, "loss": 0.25, "loss_mean": 0.25} for step in (90, 100)]
    assert against_training(0.5, log, None) == Consistency(0.5, 0.25, 2.0, "training loss of updates 91 to 100")
    log += [{"step": 90, "held_out_loss": 0.8}, {"step": 100, "held_out_loss": 0.5}]
    assert against_training(0.5, log, None) == Consistency(0.5, 0.25, 1.0, "run's held-out loss of update 100", 0.5)
    assert against_training(0.4, log, 90).ratio == 0.5, "that of the checkpoint's own update"
