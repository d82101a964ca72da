"""Adapts two installed packages to the Python and the PyTorch beside them; `make parity` runs it once in each environment.

    .venv-parity061/bin/python tests/parity/adapt_packages.py

LeRobot 0.6.1 asks for Python 3.12 because eight statements in five of its files declare type parameters in the syntax of
PEP 695. All else in it also runs on Python 3.11. So on Python 3.11 these statements get the older syntax, and mean the same:

    type Name = value              Name = value
    class Name[T](Base):           class Name(Base, Generic[T]):
    def name[T: Bound](x: T):      def name(x: T):

Each file with such a class or function also gets `T = TypeVar("T")` before its first import.

torchvision is a CUDA build, whose compiled extension does not load beside a CPU PyTorch. Without the extension, two operators
have no schema, and torchvision cannot be imported. So `torchvision/extension.py` declares them where the extension is missing.
SmolVLA calls neither of them.
"""

import importlib.util
import re
import sys
from pathlib import Path

ALIAS = re.compile(r"^type (\w+) = ", re.M)
CLASS = re.compile(r"^class (\w+)\[([\w, ]+)\](?:\((.*)\))?:", re.M)
FUNCTION = re.compile(r"^def (\w+)\[(\w+)(?:: \w+)?\]\(", re.M)
FIRST_IMPORT = re.compile(r"^(?:import|from) (?!__future__)", re.M)

OPERATORS = """

if not _has_ops():
    _operators = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def in_older_syntax(source: str) -> str:
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


def folder_of(package: str) -> Path:
    """Where a package is installed; SystemExit if it is not."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed in {sys.prefix}: `make parity` makes environments that have it")
    return Path(found.origin).parent


def adapt_lerobot(folder: Path) -> None:
    """Rewrites the files that need it; SyntaxError if one cannot be parsed even then."""
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        new = in_older_syntax(source)
        compile(new, str(path), "exec")
        if new != source:
            path.write_text(new, encoding="utf-8")
            print(f"{path}: generic syntax rewritten for Python 3.11")


def adapt_torchvision(folder: Path) -> None:
    """Declares the two operators, once."""
    path = folder / "extension.py"
    source = path.read_text(encoding="utf-8")
    if OPERATORS not in source:
        path.write_text(source + OPERATORS, encoding="utf-8")
        print(f"{path}: operators declared for where the compiled extension does not load")


def main() -> None:
    adapt_torchvision(folder_of("torchvision"))
    if sys.version_info < (3, 12):
        adapt_lerobot(folder_of("lerobot"))


if __name__ == "__main__":
    main()
