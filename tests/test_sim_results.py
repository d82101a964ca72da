"""The table of a closed loop: which results are compared with which, and in which column they stand."""

import dataclasses

from jaxreflow.sim.results import Result, comparison_table
from jaxreflow.sim.timing import Timing


def result(
    policy: str, steps: int, success: str, task: str = "reach", *, measured: bool = False, **timing: int
) -> Result:
    """An episode for each digit of `success`."""
    outcomes = tuple(map(int, success))
    return Result(
        policy=policy, sha256=policy, num_steps=steps, env="metaworld", task=task, options={}, seed=0, episodes=len(outcomes),
        success=outcomes, measured=measured, **dataclasses.asdict(Timing(20, "asynchronous", **timing)),
    )  # fmt: skip


def rows(*results: Result) -> list[list[str]]:
    """The cells of each policy's line, without the columns of motion."""
    lines = comparison_table(results).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")][:-3] for line in lines]


def test_a_policy_is_compared_at_the_same_timing_on_the_same_episodes() -> None:
    teacher, student, later = result("t", 10, "1111"), result("s", 1, "1101"), result("s", 1, "0000", delay=5)
    _, same, other = rows(teacher, student, later)
    assert same[4].startswith("-0.250 [")
    assert other[4:] == ["", "", ""], "the reference has no such timing"
    (_, fewer) = rows(teacher, result("s", 1, "110"))
    assert fewer[4:] == ["", "", ""], "nor so few episodes"


def test_measured_delays_are_compared_each_at_its_own() -> None:
    teacher, student = result("t", 10, "1000", measured=True, delay=18), result("s", 1, "1110", measured=True, delay=6)
    (first, second) = rows(teacher, student)
    assert (first[2], second[2]) == ("asynchronous, delay 18", "asynchronous, delay 6")
    assert second[4].startswith("+0.500 [")
    (_, second) = rows(teacher, dataclasses.replace(student, measured=False))
    assert second[4] == ""


def test_a_task_without_a_result_is_an_empty_cell() -> None:
    both = [result("t", 10, "11", task) for task in ("reach", "push")]
    (_, second) = rows(*both, result("s", 1, "10", "push"))
    assert second[3:6] == ["", "0.500 [0.095, 0.905]", "0.500 [0.095, 0.905]"]
    assert second[6].startswith("-0.500 ["), "over the task that both have"


def test_results_of_a_time_when_an_environment_said_less_have_an_empty_cell() -> None:
    old, new = result("t", 10, "11"), dataclasses.replace(result("s", 1, "10"), also={"handover": [1, 0]})
    first, second = rows(old, new)
    assert first[4] == ""
    assert second[4].startswith("0.500 [")
