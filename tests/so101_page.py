"""The commands of docs/so101.md, as a shell would split them."""

import shlex
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "so101.md"


def commands(first: str) -> list[list[str]]:
    """The words of every command in the page's indented blocks that begins with `first`, comments left out."""
    lines = PAGE.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    typed = [shlex.split(line, comments=True) for line in lines if line.startswith("    ") and line.strip()]
    return [words for words in typed if words[: len(first.split())] == first.split()]
