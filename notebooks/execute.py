"""Runs the notebooks in fresh kernels, and says what keeps them from being read on the web.

python notebooks/execute.py             # into build/notebooks; an error, or anything on stderr, fails
python notebooks/execute.py --write     # and puts the outputs into the notebooks that are committed
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

HERE = Path(__file__).resolve().parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))
OUT = HERE.parent / "build" / "notebooks"
MOST_BYTES = 1_000_000
# An absolute path, as a traceback, a warning or a careless print shows it.
_MACHINE_PATH = re.compile(r"(?<![\w.:/])/\w+/\w|\b[A-Z]:\\\w")


def defects(notebook: Any) -> Iterator[str]:
    """What is wrong with an executed notebook: cells that did not run in order, errors, warnings, paths of this machine."""
    ids = [cell.id for cell in notebook.cells]
    if len(set(ids)) < len(ids) or any(re.fullmatch(r"[0-9a-f]{6,}(-.*)?", cell_id) for cell_id in ids):
        yield "cell ids are not unique names"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield f"cells were not run in order, once each: {counts}"
    if not any(output.output_type == "display_data" for cell in code for output in cell.outputs):
        yield "no picture"
    for cell in code:
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {cell.id}: {output.ename}: {output.evalue}"
            if output.get("name") == "stderr":
                yield f"cell {cell.id}: stderr: {output.text.strip()}"
            if _MACHINE_PATH.search(str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))):
                yield f"cell {cell.id}: a path of the machine that ran it"
    size = len(nbformat.writes(notebook).encode())
    if size > MOST_BYTES:
        yield f"{size:,} bytes, expected at most {MOST_BYTES:,}"


def execute(path: Path) -> Any:
    """The notebook with the outputs of a fresh kernel that starts beside it; the first error ends it."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from traitlets.config import Config

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    # A progress bar's wish for ipywidgets is of this environment, and no defect of the notebook.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    client = NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
        # Anybody on the machine could listen to the kernel's ports, and it says so.
        config=Config({"KernelManager": {"transport_encryption": "required"}}),
    )
    try:
        client.execute()
    except CellExecutionError as error:
        print(error, file=sys.stderr)
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    return notebook


def main(argv: list[str]) -> int:
    """Executes all notebooks; 1 if one of them has defects."""
    OUT.mkdir(parents=True, exist_ok=True)
    failed = False
    for path in NOTEBOOKS:
        notebook = execute(path)
        nbformat.write(notebook, OUT / path.name)
        found = list(defects(notebook))
        for defect in found:
            print(f"{path.name}: {defect}", file=sys.stderr)
        if not found:
            print(f"{path.name}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells")
            if "--write" in argv:
                nbformat.write(notebook, path)
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
