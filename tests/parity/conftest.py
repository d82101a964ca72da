"""Fixtures of the parity tests: a checkpoint with its oracle per variant, and the record of measured errors."""

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.parity.report import QUANTITIES, keep, number, relative_error, render
from tests.parity.variants import EVERY_CHANGE, VARIANTS

if TYPE_CHECKING:
    from tests.parity.case import Case

# Without LeRobot (the ordinary environment) there is nothing to compare with: `make parity` has one.
if importlib.util.find_spec("lerobot") is None:
    collect_ignore_glob = ["test_*.py"]
elif importlib.metadata.version("lerobot").startswith("0.4."):
    collect_ignore = ["test_plugin.py", "test_adapter.py"]  # LeRobot has plugins and adapters of PEFT since 0.6.

# Tests that take long and depend little on LeRobot's version: on every change they run with 0.4.4 only.
REPEATED = ("test_benchmarks.py", "[adapters]")

_MEASURED: dict[str, dict[str, float]] = {}


class Measure:
    """Compares arrays, remembers the largest error by variant and quantity, and notes which bounds are broken."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.failures: list[str] = []

    def __call__(self, quantity: str, found: np.ndarray, expected: np.ndarray, name: str = "") -> None:
        """Note the error of `found`; `name` says which of several tensors it is."""
        rule = QUANTITIES[quantity]
        error = relative_error(np.asarray(found), np.asarray(expected), rule.scale)
        row = _MEASURED.setdefault(self.variant, {})
        row[quantity] = max(row.get(quantity, 0.0), error)
        if not error <= rule.bound:
            self.failures.append(
                f"{self.variant}: {quantity} {name}: error {number(error)} exceeds {number(rule.bound)} "
                f"(shapes {np.shape(found)}, {np.shape(expected)})"
            )


@pytest.fixture
def measuring() -> Iterator[Callable[[str], Measure]]:
    """A factory of `Measure` by variant; broken bounds fail the test once all tensors are compared."""
    made: list[Measure] = []

    def factory(variant: str) -> Measure:
        made.append(Measure(variant))
        return made[-1]

    yield factory
    failures = [failure for measure in made for failure in measure.failures]
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], "Case"]:
    """A variant's checkpoint, inputs, oracle and jaxreflow side; made once."""
    from tests.parity.case import Case

    @functools.cache
    def make(name: str) -> "Case":
        return Case.make(VARIANTS[name], tmp_path_factory.mktemp(name) / "checkpoint", seed=list(VARIANTS).index(name))

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # LeRobot and its dependencies warn of their own deprecations; ours are caught by `make test`.
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))
            if _waits_for_the_night(item):
                item.add_marker(pytest.mark.nightly)


def _waits_for_the_night(item: pytest.Item) -> bool:
    version = importlib.metadata.version("lerobot")
    values = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    variants = {value for value in values if isinstance(value, str) and value in VARIANTS}
    repeated = version != "0.4.4" and any(part in item.nodeid for part in REPEATED)
    return repeated or not variants <= set(EVERY_CHANGE[version])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _MEASURED:
        return
    version = importlib.metadata.version("lerobot")
    keep(version, _MEASURED)
    terminalreporter.section(f"parity with LeRobot {version}")
    terminalreporter.write_line(render({version: _MEASURED}))
