"""The blocks of docs/results.md that programs fill, each between its two markers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from jaxreflow.errors import ConfigError


def fill_page(page: Path, blocks: Mapping[str, Callable[[], str | None]]) -> None:
    """Puts each block's text between its markers; a block without one, and the text around, stay."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    for name, make in blocks.items():
        block = make()
        if block is not None:
            text = _filled(text, name, block)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def _filled(text: str, name: str, block: str) -> str:
    """Missing markers are added at the end; ConfigError unless there are both, once and in order, or none."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    found = re.findall(f"{re.escape(begin)}|{re.escape(end)}", text)
    if not found:
        return f"{text}\n{begin}\n{block}\n{end}\n"
    if found != [begin, end]:
        raise ConfigError(
            f"results.md: expected {begin!r} and then {end!r}, each once, found {found}; remove the others"
        )
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{block}\n{end}{rest.partition(end)[2]}"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
