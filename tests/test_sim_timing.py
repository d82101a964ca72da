"""Robots that do not wait for their policy: what is executed when, and what the policy is told of it."""

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from jaxreflow.errors import ConfigError
from jaxreflow.policy.seen import SeenContext
from jaxreflow.policy.smolvla_policy import SmolVLAPolicy
from jaxreflow.sim import closed_loop
from jaxreflow.sim.acting import Looks, delays_in_steps, make_act, noise_shape
from jaxreflow.sim.closed_loop import SimConfig
from jaxreflow.sim.rollout import Query
from jaxreflow.sim.timing import HOLD, NEW, OLD, STILL, Execution, Timing, plan
from tests.point_env import PointEnv
from tests.test_sim_rollout import run

TEACHER = Path(__file__).parent / "assets" / "teacher"
NONE = np.zeros((0, 1))
H = HOLD


def column(*values: float) -> np.ndarray:
    return np.array(values, float)[:, None]


# A chunk of five, of which a robot asks for the next after three; what is left of the last one is 8, 9.
CHUNK, LEFT = column(0, 1, 2, 3, 4), column(8, 9)


@pytest.mark.parametrize(
    ("execution", "delay", "left", "actions", "left_over"),
    [
        ("blocking", 0, LEFT, [0, 1, 2], [3, 4]),
        ("blocking", 2, LEFT, [H, H, 0, 1, 2], [3, 4]),
        ("asynchronous", 0, LEFT, [0, 1, 2], [3, 4]),
        ("asynchronous", 1, LEFT, [8, 1, 2], [3, 4]),
        # What is left is not enough: the robot stands still, and leaves out what it has executed, not what it has waited.
        ("asynchronous", 4, LEFT, [8, 9, H, H, 2], [3, 4]),
        ("asynchronous", 2, NONE, [H, H, 0, 1, 2], [3, 4]),
        ("candidates", 1, LEFT, [8, 1, 2], [3, 4]),
        # LeRobot's engine leaves out the delay, also where the robot has waited.
        ("rtc", 1, LEFT, [8, 1, 2], [3, 4]),
        ("rtc", 2, NONE, [H, H, 2], [3, 4]),
        ("rtc", 4, LEFT, [8, 9, H, H], [4]),
        ("rtc-counted", 2, NONE, [H, H, 0, 1, 2], [3, 4]),
        ("rtc", 7, LEFT, [8, 9, H, H, H, H, H], []),
    ],
)
def test_what_is_executed_up_to_the_next_observation(execution, delay, left, actions, left_over) -> None:
    timing = Timing(3, execution, delay, candidates=4 if execution == "candidates" else 1)
    found = plan(timing, CHUNK, left)
    np.testing.assert_array_equal(found.actions[:, 0], actions)
    named = {OLD: {8.0, 9.0}, NEW: {0.0, 1.0, 2.0, 3.0, 4.0}}
    for action, chunk in zip(found.actions[:, 0], found.chunks, strict=True):
        assert np.isnan(action) if chunk == STILL else action in named[chunk]
    np.testing.assert_array_equal(found.left_over[:, 0], left_over)


def test_the_first_look_of_an_episode_is_waited_for() -> None:
    timing = Timing(2, "asynchronous", delay=1, look_every=4, look_delay=3)
    np.testing.assert_array_equal(plan(timing, CHUNK, NONE, 4).actions[:, 0], [H, H, H, H, 0, 1])


def test_asynchronous_chunks_without_delay_are_those_of_a_world_that_waits() -> None:
    waits, goes_on = (run(4, range(50, 60), execution=execution) for execution in ("blocking", "asynchronous"))
    for field in dataclasses.fields(waits):
        if field.name == "also":
            continue
        np.testing.assert_array_equal(getattr(waits, field.name), getattr(goes_on, field.name))


def test_a_robot_that_waits_loses_the_steps_in_which_it_stands_still() -> None:
    free, late = run(4, range(50, 80)), run(4, range(50, 80), delay=2)
    both = free.success & late.success
    assert both.sum() > 3
    np.testing.assert_array_equal(late.steps[both], free.steps[both] + 2 * free.queries[both])
    np.testing.assert_array_equal(late.held[both], 2 * free.queries[both])
    assert (free.held == 0).all()


def test_what_is_left_reaches_the_policy_and_none_does_at_the_start() -> None:
    asked: list[Query] = []

    def act(query: Query) -> np.ndarray:
        asked.append(query)
        return np.tile(0.01 * np.arange(5)[:, None], (len(query.clock), 1, 1))

    outcome = run(2, range(2), act=act, execution="asynchronous", delay=1)
    assert [len(rest) for rest in asked[0].left_over] == [0, 0]
    np.testing.assert_allclose(asked[1].left_over[0][:, 0], [0.03, 0.04])
    assert [query.clock[0] for query in asked[:3]] == [0, 4, 7]
    # From 0.03, the action before the switch, to 0.01, the first of the new chunk that is in time.
    np.testing.assert_allclose(outcome.jump[:1], 0.02)


@pytest.mark.parametrize("execution", ["blocking", "asynchronous", "rtc"])
@pytest.mark.parametrize("delay", [0, 1, 2, 3, 4, 5])
def test_jumps_are_those_between_chunks_that_follow_each_other(
    execution: Execution, delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the delay, also where a chunk begins when the next observation is taken, and later. To stand still is no jump."""

    unit, executed = 2.0**-20, []
    step = PointEnv.step

    def recorded(env: PointEnv, action: np.ndarray) -> Any:
        executed.append(action[0] / unit)
        return step(env, action)

    def act(query: Query) -> np.ndarray:
        """Actions that say when their chunk was asked for, and which of its twelve they are; none solves the task."""
        return unit * (1 + np.arange(12)[:, None] + 20 * query.clock[:, None, None])

    monkeypatch.setattr(PointEnv, "step", recorded)
    outcome = run(1, range(1), act=act, execution=execution, delay=delay)
    jumps = [
        abs(new - old) for old, new in itertools.pairwise(executed) if 0 not in (old, new) and old // 20 != new // 20
    ]
    assert len(executed) == outcome.steps[0] == 20
    assert bool(jumps) is (execution != "blocking" or delay == 0)
    np.testing.assert_allclose(outcome.jump[0], unit * np.mean(jumps) if jumps else np.nan)


def test_jerk_is_the_third_difference_of_positions() -> None:
    def act(query: Query) -> np.ndarray:
        return np.full((len(query.clock), 5, 1), 0.01) * np.array([1, -1, 1, -1, 1])[:, None]

    # Steps of +-0.01: third differences of +-0.04.
    outcome = run(1, range(1), n_action_steps=4, act=act)
    assert outcome.jerk[0] == pytest.approx(0.04)
    still = run(1, range(1), act=lambda query: np.zeros((len(query.clock), 5, 1)))
    assert still.jerk[0] == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delay": -1}, "--delay: expected a whole number of at least 0, found -1"),
        ({"candidates": 4}, "--execution blocking --candidates 4"),
        ({"execution": "candidates"}, "--execution candidates --candidates 1"),
        ({"look_every": 4}, "--look-every 4: expected a multiple of the 3 steps.*such as 3"),
        ({"look_delay": 1}, "--look-delay 1: expected a --look-every, found none"),
        ({"look_every": 6, "look_delay": 7}, "--look-delay 7: expected at most the 6 steps"),
    ],
)
def test_wrong_timings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Timing(3, **settings)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"delay": ("-1",)}, "--delay: expected whole numbers of control steps, or measured, found '-1'"),
        ({"delay": ("2.5",)}, "found '2.5'"),
        ({"execution": ("rtc",), "queue_threshold": 3, "n_action_steps": (5,)}, "say the same thing"),
        ({"queue_threshold": 3}, "no blocking --execution"),
        ({"execution": ("candidates",), "candidates": 1}, "at least 2"),
        ({"execution": ("rtc",), "execution_horizon": 0}, "--execution-horizon: expected at least 1 action, found 0"),
        ({"slower": 0.0}, "--slower: expected a positive number, found 0.0"),
        ({"act_every": (0,)}, "--act-every must be at least 1"),
        ({"delay": ()}, "--delay: expected at least one value, found none"),
        ({"execution": ()}, "--execution: expected at least one value, found none"),
        ({"slower": 2.0}, "--slower: expected --delay measured beside it"),
        ({"candidates": 4}, "--candidates: expected --execution candidates beside it"),
        ({"execution_horizon": 4}, "--execution-horizon: expected --execution rtc or rtc-counted beside it"),
    ],
)
def test_wrong_flags_are_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimConfig(("policy",), "metaworld:reach-v3", **flags)


def timings(**flags: Any) -> list[Timing]:
    config = SimConfig((str(TEACHER),), "metaworld:reach-v3", num_steps=(1,), **flags)
    return [result.timing for result in closed_loop._plan(config, closed_loop._load(config))]


def test_every_execution_runs_with_every_delay() -> None:
    found = timings(execution=("blocking", "rtc", "candidates", "rtc"), delay=("0", "5", "05"), candidates=4)
    assert [(t.execution, t.delay, t.n_action_steps, t.candidates) for t in found] == [
        ("blocking", 0, 50, 1), ("blocking", 5, 50, 1), ("rtc", 0, 20, 1), ("rtc", 5, 20, 1),
        ("candidates", 0, 20, 4), ("candidates", 5, 20, 4),
    ]  # fmt: skip
    (found,) = timings(execution=("asynchronous",), queue_threshold=45)
    assert found.n_action_steps == 5
    (found,) = timings(act_every=(5,), look_every=20)
    assert (found.n_action_steps, found.look_every) == (5, 20)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"execution": ("rtc",), "execution_horizon": 60},
            "--execution-horizon 60: .*teacher predicts 50 actions at once",
        ),
        ({"delay": ("200",)}, "--delay 200: expected fewer than the 200 steps of an episode"),
        (
            {"look_every": 500, "act_every": (5,), "look_delay": 300},
            "--look-delay 300: expected fewer than the 200 steps",
        ),
    ],
)
def test_what_a_policy_or_an_episode_is_too_short_for_is_named(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        timings(**flags)


def test_a_policy_is_measured_once_for_all_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    delays = iter([(6, 0), (9, 0)])
    monkeypatch.setattr(closed_loop, "delays_in_steps", lambda *args: next(delays))
    settings = {"num_steps": (10, 1), "execution": ("asynchronous",), "delay": ("measured", "6", "measured")}
    config = SimConfig((str(TEACHER), str(TEACHER)), "metaworld:reach-v3,push-v3", **settings)
    plan = closed_loop._plan(config, closed_loop._load(config))
    assert [(cell.task, cell.num_steps, cell.delay, cell.measured) for cell in plan] == [
        (task, *how)
        for task in ("reach-v3", "push-v3")
        for how in ((10, 6, True), (10, 6, False), (1, 9, True), (1, 6, False))
    ]
    assert len({cell.identity for cell in plan}) == 6, "measured or not, ten steps at a delay of 6 run once"


def test_a_measured_delay_is_the_latency_in_control_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "jaxreflow.sim.acting.time_in_turn", lambda calls, _: [np.array([20.0, 21.0, 90.0])] * len(calls)
    )
    policy = Mock(SmolVLAPolicy, transforms=SmolVLAPolicy.from_pretrained(TEACHER).transforms)
    # 21 ms on a computer twice as slow are 3.36 steps of 1/80 s.
    assert delays_in_steps(policy, 1, Timing(10), rate=80.0, slower=2.0) == (4, 0)
    assert delays_in_steps(policy, 1, Timing(10, look_every=20), rate=80.0, slower=1.0) == (2, 2)
    assert timings(delay=("measured",))[0].delay == 2
    # A chunk from what was seen is measured as such, also where it is guided.
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "jaxreflow.sim.acting.time_in_turn",
        lambda calls, _: asked.append(calls[0].keywords) or [np.array([1.0])] * len(calls),
    )
    policy.config = SimpleNamespace(action_dim=4)
    delays_in_steps(policy, 1, Timing(10, "rtc", look_every=20), rate=80.0, slower=1.0)
    assert {"context", "prev_chunk_left_over"} <= set(asked[0])


def test_a_policy_is_asked_as_the_execution_says() -> None:
    policy = Mock(SmolVLAPolicy, transforms=SmolVLAPolicy.from_pretrained(TEACHER).transforms)
    policy.config = SimpleNamespace(chunk_size=50, max_action_dim=32)
    policy.predict_action_chunk.return_value = np.zeros((2, 50, 4))
    rest, nothing = np.ones((3, 4), np.float32), np.zeros((0, 4), np.float32)
    query = Query({}, "noise", [rest, nothing], np.array([20, 0]))

    make_act(policy, 2, Timing(10, "asynchronous"))(query)
    policy.predict_action_chunk.assert_called_with({}, "noise", 2)
    make_act(policy, 2, Timing(10, "candidates", candidates=4))(query)
    asked = policy.predict_action_chunk.call_args.kwargs
    assert (asked["candidates"], asked["prev_chunk_left_over"]) == (4, [rest, nothing])
    assert noise_shape(policy, Timing(10, "candidates", candidates=4)) == (4, 50, 32)
    with pytest.raises(ConfigError, match=r"--candidates 10000000: their noise for 8 environments .* GiB"):
        noise_shape(policy, Timing(10, "candidates", candidates=10_000_000), 8)

    # LeRobot's engine fills up with normalised zeros, and guides a robot that has begun; one that begins is free.
    make_act(policy, 2, Timing(10, "rtc", delay=12, execution_horizon=5))(query)
    asked = policy.predict_action_chunk.call_args.kwargs
    assert (asked["inference_delay"], asked["execution_horizon"]) == (5, 5)
    began, begins = asked["prev_chunk_left_over"]
    np.testing.assert_array_equal(began[:3], rest)
    np.testing.assert_allclose(policy.transforms.normalize_action(began[3:]), np.zeros((2, 4)), atol=1e-6)
    assert began.shape == (5, 4)
    assert len(begins) == 0
    make_act(policy, 2, Timing(10, "rtc-counted"))(query)
    assert policy.predict_action_chunk.call_args.kwargs["execution_horizon"] == 10
    make_act(policy, 2, Timing(10, "rtc"))(query._replace(clock=np.array([0, 0])))
    assert policy.predict_action_chunk.call_args.kwargs == {}


class Seen(SeenContext):
    """When each robot looked, in place of what it saw."""

    def __init__(self, times: np.ndarray) -> None:
        object.__setattr__(self, "times", times)

    def with_rows(self, rows: np.ndarray, other: "Seen") -> "Seen":
        return Seen(np.where(rows, other.times, self.times))


def test_robots_go_by_the_newest_look_that_has_arrived() -> None:
    policy = Mock(SmolVLAPolicy, observe=lambda observation: Seen(observation["time"]))

    def ages(timing: Timing, clocks: list[list[int]]) -> list[list[int]]:
        looks = Looks(policy, timing)
        return [looks(Query({"time": np.array(c)}, None, [], np.array(c))).times.tolist() for c in clocks]

    # The second robot begins anew at the third query.
    clocks = [[0, 0], [5, 5], [10, 0], [15, 5], [20, 10], [25, 15]]
    assert ages(Timing(5, look_every=10), clocks) == [[0, 0], [0, 0], [10, 0], [10, 0], [20, 10], [20, 10]]
    late = Timing(5, look_every=10, look_delay=5)
    assert ages(late, clocks) == [[0, 0], [0, 0], [0, 0], [10, 0], [10, 0], [20, 10]]
    later = Timing(5, look_every=10, look_delay=10)
    assert ages(later, clocks) == [[0, 0], [0, 0], [0, 0], [0, 0], [10, 0], [10, 0]]
