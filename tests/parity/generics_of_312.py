"""Rewrites the statements of an installed LeRobot that Python 3.11 cannot parse; Python 3.12 and newer need no change.

    .venv-parity061/bin/python tests/parity/generics_of_312.py

LeRobot 0.6.1 asks for Python 3.12 because eight statements in five of its files declare type parameters in the syntax of
PEP 695. All else in it also runs on Python 3.11. So this script declares these parameters in the older syntax:

    type Name = value              Name = value
    class Name[T](Base):           class Name(Base, Generic[T]):
    def name[T: Bound](x: T):      def name(x: T):

and each file gets `T = TypeVar("T")` before its first import. Values and behaviour stay as they were.
"""

import importlib.util
import re
import sys
from pathlib import Path

ALIAS = re.compile(r"^type (\w+) = ", re.M)
CLASS = re.compile(r"^class (\w+)\[([\w, ]+)\](?:\((.*)\))?:", re.M)
FUNCTION = re.compile(r"^def (\w+)\[(\w+)(?:: \w+)?\]\(", re.M)
FIRST_IMPORT = re.compile(r"^(?:import|from) (?!__future__)", re.M)


def rewritten(source: str) -> str:
    """`source` in the syntax of Python 3.11; unchanged where it declares no type parameters."""
    names = [name for match in CLASS.finditer(source) for name in match[2].split(", ")]
    names += [match[2] for match in FUNCTION.finditer(source)]
    source = ALIAS.sub(r"\1 = ", source)
    source = CLASS.sub(lambda m: f"class {m[1]}({m[3] + ', ' if m[3] else ''}Generic[{m[2]}]):", source)
    source = FUNCTION.sub(r"def \1(", source)
    if names:
        variables = "".join(f'{name} = TypeVar("{name}")\n' for name in names)
        source = FIRST_IMPORT.sub(f"from typing import Generic, TypeVar\n\n{variables}\n\\g<0>", source, count=1)
    return source


def main() -> None:
    if sys.version_info >= (3, 12):
        return
    found = importlib.util.find_spec("lerobot")
    if found is None or found.origin is None:
        raise SystemExit("LeRobot is not installed here: run `make .venv-parity061/ready`, which installs it and runs this script")
    for path in sorted(Path(found.origin).parent.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        new = rewritten(source)
        compile(new, str(path), "exec")
        if new != source:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(Path(found.origin).parent)}: generic syntax rewritten for Python 3.11")


if __name__ == "__main__":
    main()
