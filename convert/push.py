"""What `convert push` asks of a folder before anybody else sees it, and what it says of it."""

from __future__ import annotations

import sys
from pathlib import Path

from jaxreflow.errors import PublishError
from jaxreflow.support.storage import list_files

from .doctor import examine


def check_sound(directory: Path, *, force: bool) -> None:
    """PublishError for what `convert doctor` calls an error, unless `force`; its warnings are shown."""
    findings = examine(directory, measure=False)
    for finding in findings:
        if finding.severity != "note":
            print(f"{finding.severity}: {finding.what}", file=sys.stderr)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors and not force:
        raise PublishError(
            f"{directory}: {len(errors)} error{'s' * (len(errors) > 1)}, so the policy would not act as it was trained; repair it "
            f"(`python -m convert doctor {directory}` says how), or push it all the same with --force"
        )


def describe_files(folder: Path) -> str:
    """The files of a dry run with their sizes."""
    lines = [f"{file.size:>15,}  {name}" for name, file in list_files(folder).items()]
    return "\n".join([*lines, f"{folder}: as it would be published; python -m convert push {folder} USER/NAME does it"])
