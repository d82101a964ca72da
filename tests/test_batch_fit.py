"""The largest batch size is found with few compilations, fits, and lies near the limit; and how much room a device has."""

import math

import pytest

from jaxreflow.errors import ConfigError
from jaxreflow.run.batch_fit import largest_fit, room
from jaxreflow.run.config import ReflowConfig

# GiB of a full-size reflow update with four noises in bfloat16, as the CPU's compiler counts them, by batch size.
FULL_SIZE = {1: 4.493, 4: 4.498, 8: 5.171, 16: 7.586, 32: 12.791, 64: 22.427, 40_000: 12_040.0}


def full_size(size: int) -> float:
    """Between the sizes that were compiled, along the line."""
    sizes = sorted(FULL_SIZE)
    above = next(known for known in sizes if known >= size)
    below = max((known for known in sizes if known < size), default=above)
    if below == above:
        return FULL_SIZE[above]
    return FULL_SIZE[below] + (size - below) * (FULL_SIZE[above] - FULL_SIZE[below]) / (above - below)


@pytest.mark.parametrize("first", [1, 2, 4, 8, 32, 128])
@pytest.mark.parametrize("limit", [6.0, 12.0, 18.0, 60.0])
def test_few_compilations_lead_to_a_size_near_the_limit(first: int, limit: float) -> None:
    asked: list[int] = []
    known = largest_fit(lambda size: asked.append(size) or full_size(size), first, 10_000, limit)
    assert len(asked) == len(set(asked)) <= 5
    found = max(size for size, needed in known.items() if needed <= limit)
    assert full_size(found) > 0.93 * limit


def test_more_than_the_data_is_not_asked_for() -> None:
    assert max(largest_fit(lambda size: 66.0 + 4.3 * size, 16, 100, 23_000.0)) == 100


def test_the_smallest_that_does_not_fit_ends_the_search() -> None:
    assert list(largest_fit(lambda _: 10.0, 8, 1_000, 9.0)) == [8, 2, 1]


def test_a_compiler_that_refuses_what_does_not_fit_is_asked_for_halves() -> None:
    known = largest_fit(lambda size: 5.0 if size <= 90 else math.inf, 8, 1_000, 18.0)
    assert len(known) == 6
    assert 45 < max(size for size, needed in known.items() if needed < 18) <= 90


def test_room_of_other_devices_and_of_these(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert room(24.0, 17 * 2**30, 1)[0] == 18 * 2**30
    assert room(None, 17 * 2**30, 1)[0] == 17 * 2**30
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}.__getitem__)
    assert room(None, None, 2)[0] == 2 * 2**30
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    found, source = room(10.0, None, 1)
    assert found == pytest.approx(9 * 2**30)
    assert source.startswith("the 0.9 of 10 GiB")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(ConfigError, match=r"XLA_PYTHON_CLIENT_MEM_FRACTION: expected a number above 0 .*'most'"):
        room(10.0, None, 1)


@pytest.mark.parametrize("wrong", [0.0, -24.0, math.inf, math.nan])
def test_memory_is_a_positive_number(wrong: float) -> None:
    with pytest.raises(ConfigError, match=rf"--for-memory must be a positive number of GiB, found {wrong:g}"):
        ReflowConfig(dry_run=True, for_memory=wrong)


def test_memory_without_a_dry_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="--for-memory is about --dry-run, which is missing"):
        ReflowConfig(for_memory=24.0)
    assert ReflowConfig(dry_run=True, for_memory=24.0).for_memory == 24
