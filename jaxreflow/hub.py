"""Downloads from the Hugging Face hub, whose errors never show the user's token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_TOKEN = re.compile(r"hf_\w+|(?<=://)[^/@\s]+(?=@)|(?<=Bearer )\S+")


class HubError(Exception):
    """A repository, or a revision of it, cannot be had; the message says why."""


def download(name: str, *, revision: str | None = None, **options: Any) -> Path:
    """The local folder of a repository at a commit, tag or branch (None: its main branch); HubError otherwise.

    `options` are those of `huggingface_hub.snapshot_download`.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, **options))
    except Exception as error:  # the hub client's errors share no base class with its HTTP library's
        reason = str(error).splitlines()[0] if str(error) else ""
        wanted = f"{name} at revision {revision}" if revision else name
        # Not chained: the original may hold request headers.
        raise HubError(f"{wanted}: {type(error).__name__}: {without_token(reason)}") from None


def without_token(text: str) -> str:
    """`text` without what looks like a token: the hub's own kind, an Authorization header's, or a URL's user and password."""
    return _TOKEN.sub("***", text)
