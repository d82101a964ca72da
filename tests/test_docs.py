"""What the documents say of the code is there: messages in docs/troubleshooting.md, executed notebooks, names on the site."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from notebooks.execute import NOTEBOOKS, defects

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "jaxreflow").rglob("*.py"), *(ROOT / "convert").glob("*.py"), ROOT / "train.py"]
HEADING = re.compile(r"^### `+ ?(.+?) ?`+$", re.MULTILINE)


def flat(node: ast.expr) -> str | None:
    """A string or f-string as its reader sees it, with … for every value."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(flat(part) or "…" for part in node.values)
    return None


@pytest.fixture(scope="module")
def messages() -> list[str]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
    return [text for tree in trees for node in ast.walk(tree) if isinstance(node, ast.expr) and (text := flat(node))]


def quoted() -> list[str]:
    return HEADING.findall((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))


def test_troubleshooting_has_the_messages_of_the_first_hour():
    assert len(quoted()) >= 25
    assert len(set(quoted())) == len(quoted())


@pytest.mark.parametrize("message", quoted())
def test_a_message_in_troubleshooting_is_raised_somewhere(messages, message):
    """Quotes may leave out what stands around them, but nothing in the middle."""
    pattern = ".*?".join(re.escape(part.strip()) for part in message.split("…"))
    assert any(re.search(pattern, text, re.DOTALL) for text in messages), f"no source has {message!r}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_readable_without_running_it(path):
    """Committed notebooks hold the outputs of one run from top to bottom, without errors, warnings or places on a machine."""
    assert list(defects(nbformat.read(path, as_version=4))) == []


def test_every_page_of_the_documents_has_a_place_on_the_site():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if f" {page}\n" not in nav] == []
