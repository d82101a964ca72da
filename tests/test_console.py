"""Progress of long tasks: a bar on a terminal, lines now and then elsewhere, nothing where nobody listens."""

import logging
import sys

import pytest

from jaxreflow.support import console
from jaxreflow.support.console import console_log, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, to be set by the test."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def test_a_task_of_some_minutes_says_every_tenth(clock, capsys):
    with console_log(), progress("packing", 1000, unit="frame") as advance:
        for _ in range(1000):
            clock[0] += 0.3
            advance(1)
    shown = lines(capsys.readouterr().err)
    assert shown == [f"packing: {n} of 1000 ({n // 10} %)" for n in range(100, 1001, 100)]


def test_a_task_of_an_hour_says_something_every_minute(clock, capsys):
    with console_log(), progress("packing", 60_000, unit="frame") as advance:
        for _ in range(3_000):
            clock[0] += 1.2
            advance(20)
    shown = lines(capsys.readouterr().err)
    assert len(shown) == 60
    assert shown[-1] == "packing: 60000 of 60000 (100 %)"


def test_a_task_that_goes_on_counts_what_was_done(clock, capsys):
    with console_log(), progress("packing", 100, unit="frame", done=90) as advance:
        clock[0] += 11
        advance(10)
    assert lines(capsys.readouterr().err) == ["packing: 100 of 100 (100 %)"]


def test_a_short_task_says_nothing(clock, capsys):
    with console_log(), progress("packing", 100, unit="frame") as advance:
        clock[0] += 9
        advance(100)
    with console_log(), progress("nothing to do", 0, unit="frame"):
        pass
    assert capsys.readouterr().err == ""


def test_on_a_terminal_it_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with console_log(), progress("packing", 4, unit="frame", done=1) as advance:
        advance(1)
    assert "packing:" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_other_processes_and_programs_that_use_the_package_show_nothing(terminal, clock, capsys, monkeypatch):
    """The first process's log is at INFO; `distributed.connect` sets the others' to WARNING, and so is a program's of its own."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress("a program's own", 2, unit="frame") as advance:
        clock[0] += 100
        advance(1)
    with console_log():
        logging.getLogger("jaxreflow").setLevel(logging.WARNING)
        with progress("another process's", 2, unit="frame") as advance:
            clock[0] += 100
            advance(1)
    assert capsys.readouterr().err == ""


def test_the_log_is_as_it_was_when_a_command_is_over(capsys):
    logger = logging.getLogger("jaxreflow")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with console_log():
        logger.info("a line")
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
    assert capsys.readouterr().err == "a line\n"
