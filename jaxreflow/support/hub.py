"""Downloads from the Hugging Face hub and commits to it, whose errors never show the user's token."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_TOKEN = re.compile(r"hf_\w+|(?<=://)[^/@\s]+(?=@)|(?<=Bearer )\S+")


# The client's best-known errors by class: what they mean, and what to do. The first of an error's classes counts, and what
# an error follows from before the error itself.
_MEANINGS = {
    "GatedRepoError": "the repository is gated: ask for access on its page, then log in with `hf auth login`",
    "RepositoryNotFoundError": "there is no such repository, or it is private: check the name, or log in with `hf auth login`",
    "RevisionNotFoundError": "the repository has no such revision: give one of its branches, tags or commits",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE forbids the network: unset it, or fetch the repository before with `hf download`",
    "LocalEntryNotFoundError": "it is not in the hub's local cache, and the hub was not reached: check the network",
}


class HubError(Exception):
    """A repository, or a revision of it, cannot be had or written; the message says why."""


def download(name: str, *, revision: str | None = None, **options: Any) -> Path:
    """The local folder of a repository at a commit, tag or branch (None: its main branch); HubError otherwise.

    `options` are those of `huggingface_hub.snapshot_download`.
    """
    from huggingface_hub import snapshot_download

    with _hub_errors(f"{name} at revision {revision}" if revision else name):
        return Path(snapshot_download(name, revision=revision, **options))


def list_repository(name: str, *, revision: str | None = None) -> list[str]:
    """Names of all files of a repository; HubError if it cannot be read."""
    from huggingface_hub import HfApi

    with _hub_errors(name):
        return sorted(HfApi().list_repo_files(name, revision=revision))


def check_name(name: str) -> None:
    """HubError unless `name` is USER/NAME as the hub takes it."""
    from huggingface_hub.utils import validate_repo_id

    if name.count("/") != 1:
        raise HubError(f"expected USER/NAME, found {name!r}")
    with _hub_errors(name):
        validate_repo_id(name)


def check_may_write(name: str, *, private: bool = False) -> None:
    """HubError unless the user's token may write to the repository, as far as the hub tells.

    With `private`, a repository of that name that is there and public is an error, too.
    """
    from huggingface_hub import HfApi

    check_name(name)
    owner = name.split("/")[0]
    with _hub_errors(name):
        api = HfApi()
        user = api.whoami()
        token = user.get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise HubError(
                f"{name}: the token may only read; make one of the kind `write` and log in with it: hf auth login"
            )
        scopes = token.get("fineGrained", {}).get("scoped")
        if scopes is not None and not any("repo.write" in scope.get("permissions", ()) for scope in scopes):
            raise HubError(
                f"{name}: the fine-grained token may write to no repository; give it `repo.write` for {owner}"
            )
        groups = [group["name"] for group in user.get("orgs", ()) if group.get("roleInOrg") != "read"]
        if owner not in (user["name"], *groups):
            owners = ", ".join((user["name"], *groups))
            raise HubError(
                f"{name}: the token belongs to {user['name']}, who may write for {owners}, not for {owner}; choose one of them"
            )
        if private and api.repo_exists(name):
            _check_private(api, name)


def commit(
    name: str,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    private: bool = False,
    branch: str | None = None,
    replaced: Callable[[str], bool] = lambda _: False,
) -> str:
    """Writes files to a repository in one commit, all or none of them, and returns its address.

    A repository or branch that is not there is made. Files that are there already and are `replaced` by these, by name, go.

    Raises:
        HubError: the hub refuses, or the repository is public where `private` was asked for.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    with _hub_errors(name):
        api.create_repo(name, private=private or None, exist_ok=True)
        if private:
            _check_private(api, name)
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        stale = [path for path in api.list_repo_files(name, revision=branch) if replaced(path) and path not in files]
        # Not `upload_folder`, which may commit in several parts.
        done = api.create_commit(
            name,
            [
                *(CommitOperationAdd(path, content) for path, content in files.items()),
                *(CommitOperationDelete(path) for path in stale),
            ],
            commit_message=message,
            revision=branch,
        )
        return str(done.commit_url)


def _check_private(api: HfApi, name: str) -> None:
    if not api.model_info(name).private:
        raise HubError(
            f"{name}: --private, but the repository is there already and public; nothing was uploaded: make it private in its "
            "settings, choose another name, or leave the flag out"
        )


@contextlib.contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """HubError for whatever the client raises: its errors share no base class with its HTTP library's."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        # Not chained: the original may hold request headers.
        raise HubError(f"{what}: {_meaning(error)}{without_token(_reasons(error))}") from None


def _meaning(error: Exception) -> str:
    """What one of the client's best-known errors means; nothing for the others."""
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    classes = [cls.__name__ for link in reversed(chain) for cls in type(link).__mro__]
    known = [_MEANINGS[name] for name in classes if name in _MEANINGS]
    return f"{known[0]}; the client says: " if known else ""


def _reasons(error: BaseException) -> str:
    """The first line of an error, and of what it follows from: the client says `Error while uploading`, its cause why."""
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return f"{reason} {_reasons(error.__cause__)}" if error.__cause__ is not None else reason


def without_token(text: str) -> str:
    """`text` without what looks like a token: the hub's own kind, an Authorization header's, or a URL's user and password."""
    return _TOKEN.sub("***", text)
