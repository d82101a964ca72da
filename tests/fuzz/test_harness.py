"""What counts as a defect, and that the harness sees it."""

import pytest

from jaxreflow.errors import DatasetError
from tests.fuzz.harness import SECONDS, Outcome, Tally
from tests.fuzz.mutations import Mutant
from tests.fuzz.worker import LIMIT, outcome

NAMES = ("info.json",)
TRACE = 'Traceback:\n  File "/x/jaxreflow/data/video.py", line 1, in f\n  File "/y/av.py", line 2, in g\nValueError'


@pytest.mark.parametrize(
    ("found", "defect"),
    [
        (Outcome(None, True, "", 0, 0.1), None),
        (Outcome("DatasetError", True, "meta/info.json: damaged", 0, 0.1), None),
        (Outcome("DatasetError", True, "damaged", 0, 0.1), "DatasetError names none of info.json: damaged"),
        (Outcome("ValueError", False, TRACE, 0, 0.1), 'ValueError at File "/x/jaxreflow/data/video.py", line 1, in f'),
        (Outcome("Exit-11", False, "info.json", 0, 0.1), "Exit-11: info.json"),
        (Outcome(None, True, "", 0, SECONDS + 1), "took 11 s"),
        (Outcome("DatasetError", True, "info.json", LIMIT + 1, 0.1), "took 1024 MiB"),
    ],
    ids=["success", "refused", "not named", "foreign", "crash", "slow", "large"],
)
def test_defects(found, defect):
    assert found.defect(NAMES) == defect


def test_a_defect_is_kept_with_its_shortest_recipe():
    tally, found = Tally(), Outcome("ValueError", False, TRACE, 3 << 20, 0.5)
    for recipe in ("two changes", "one", "another"):
        tally.count(found, Mutant(b"", recipe), NAMES)
    assert list(tally.defects.values()) == ["one"]
    assert tally.line("kind").split() == ["kind", "3", "0.50", "s", "3", "MiB", "3", "ValueError"]


def test_foreign_errors_come_before_the_packages_own():
    def raises(error: BaseException):
        def step():
            raise error

        return step

    own = raises(DatasetError("info.json"))
    assert outcome([own, raises(DatasetError("other"))]) == {
        "error": "DatasetError",
        "own": True,
        "message": "info.json",
    }
    for error in (ValueError(), MemoryError(), SystemExit(), BaseException()):
        assert not outcome([own, raises(error)])["own"]
    assert outcome([lambda: None])["error"] is None
