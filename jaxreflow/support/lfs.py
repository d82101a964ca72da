"""Pointers of Git LFS, which lie in the place of large files where a repository was cloned without git-lfs."""

from __future__ import annotations

from pathlib import Path

START = b"version https://git-lfs"


def is_lfs_pointer(file: Path) -> bool:
    """Whether the file only names the content that Git LFS would put in its place."""
    try:
        with file.open("rb") as content:
            return content.read(len(START)) == START
    except (OSError, ValueError):
        return False


def lfs_advice(file: Path | str) -> str:
    """What to do about a pointer of Git LFS."""
    return (
        f"{file} is a pointer of Git LFS, not the file itself: its repository was cloned without git-lfs; "
        "install git-lfs and run `git lfs pull` in the clone, or download it again"
    )
