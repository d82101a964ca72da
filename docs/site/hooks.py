"""What MkDocs does not do by itself: pages from files outside docs/, and links that work on the site and in the repository.

README.md, CONTRIBUTING.md, CHANGELOG.md and the notebooks become pages. A link to any other file of the repository leads to
a page that shows that file, so that the site needs no address of a repository. Nothing is written twice.
"""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files at the top of the repository, and the pages that they are."""
NOTEBOOKS = {
    f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
# A link's target without its anchor; code is matched too, so that nothing in it is taken for a link.
_LINK = re.compile(
    r"^(?P<fence>```|~~~).*?^(?P=fence)|`[^`\n]*`|(?<=\]\()(?!https?:|mailto:|#)(?P<target>[^()\s#]+)",
    re.DOTALL | re.MULTILINE,
)
_LANGUAGES = {".py": "python", ".sh": "bash", ".sbatch": "bash", ".yaml": "yaml", ".toml": "toml", ".md": "markdown"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that do not lie in docs/, and a page for each other file that one of them links to."""
    for origin, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / origin).read_text(encoding="utf-8")))
    for origin, name in NOTEBOOKS.items():
        text, pictures = notebook_page(ROOT / origin)
        files.append(File.generated(config, name, content=text))
        for picture, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{picture}", content=content))
    for file in list(files.documentation_pages()):
        for link in _LINK.finditer(file.content_string):
            place = _in_repository(file.src_uri, link["target"])
            if place is None:
                continue
            name = _shown_as(place)
            if name.startswith("repository/") and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, content=file_page(place)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links of the repository become links of the site; what is no file stays as it is, for MkDocs to complain of."""

    def on_site(link: re.Match[str]) -> str:
        place = _in_repository(page.file.src_uri, link["target"])
        return link[0] if place is None else os.path.relpath(_shown_as(place), PurePosixPath(page.file.src_uri).parent)

    return markdown if page.file.src_uri.startswith("repository/") else _LINK.sub(on_site, markdown)


def _in_repository(page: str, link: str | None) -> str | None:
    """Path from the repository's root of the file that a page links to, None if there is none."""
    if link is None:
        return None
    origins = {name: origin for origin, name in (PAGES | NOTEBOOKS).items()}
    folder = PurePosixPath(origins.get(page, f"docs/{page}")).parent
    place = os.path.normpath(folder / link)
    return place if (ROOT / place).is_file() and not place.startswith("..") else None


def _shown_as(place: str) -> str:
    """The site's name for a file of the repository: a page, a file of docs/ as it is, or a page that shows it."""
    known = PAGES | NOTEBOOKS
    if place in known:
        return known[place]
    return place.removeprefix("docs/") if place.startswith("docs/") else f"repository/{place}.md"


def file_page(place: str) -> str:
    """A page that shows a file; the site's search leaves it out."""
    text = (ROOT / place).read_text(encoding="utf-8").rstrip()
    language = _LANGUAGES.get(PurePosixPath(place).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {place}\n\n````{language}\n{text}\n````\n"


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as a page, text, code and what it printed, and the page's pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{cell['id']}-{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Drawn by the cell above]({name})")
            elif text := "".join(output.get("text") or data.get("text/plain", "")):
                parts.append(f"```{{ .text .output .no-copy }}\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures
