"""The blocks of docs/results.md that programs fill, each between its two markers."""

from __future__ import annotations

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
    """Missing markers are added at the end; ConfigError if one of the two is missing."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if (begin in text) != (end in text):
        raise ConfigError(f"results.md: expected both {begin!r} and {end!r}, found one of them; remove it")
    if begin not in text:
        text = f"{text}\n{begin}\n{end}\n"
    before, after = text.split(begin)[0], text.split(end)[1]
    return f"{before}{begin}\n{block}\n{end}{after}"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
