"""What is changed in installed packages: statements that only Python 3.12 parses, and operators that torchvision lacks."""

import importlib
from pathlib import Path

import pytest

from tests.parity.adapt_packages import OPERATORS, adapt_torchvision, in_older_syntax

SOURCE = '''"""A module."""

from __future__ import annotations

from dataclasses import dataclass
from abc import ABC

type Name = str | int


@dataclass
class Pipe[TIn, TOut](ABC):
    first: TIn


class Box[T]:
    pass


def same[S: str](x: S) -> S:
    return x
'''


def test_the_three_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "written_for_312.py").write_text(in_older_syntax(SOURCE))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("written_for_312")
    assert module.Name == str | int
    assert module.Pipe[int, str](3).first == 3
    assert [parameter.__name__ for parameter in module.Pipe.__parameters__] == ["TIn", "TOut"]
    assert module.Pipe.__mro__[1].__name__ == "ABC"
    assert module.Box[int].__args__ == (int,)
    assert module.same("x") == "x"


@pytest.mark.parametrize(
    "line", ["type(x)", "x: list[int] = []", "class A(B[int]):\n    pass", "def f(x: list[int]): ..."]
)
def test_other_statements_stay(line: str) -> None:
    assert in_older_syntax(f"import a\n{line}\n") == f"import a\n{line}\n"


def test_operators_are_declared_once(tmp_path: Path) -> None:
    (tmp_path / "extension.py").write_text("def _has_ops():\n    return False\n")
    for _ in range(2):
        adapt_torchvision(tmp_path)
    assert (tmp_path / "extension.py").read_text() == "def _has_ops():\n    return False\n" + OPERATORS
