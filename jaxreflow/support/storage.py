"""Folders in object stores, `gs://` and `s3://`: copied to this machine to be read, written file by file.

An object store replaces whole objects; it knows no links, no appending and no renaming of folders. What is read at random
(videos, parquet, safetensors) is therefore copied first, as from the hub, and a run's files count once the one that names
them, `checkpoints/last`, has been written after them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from etils import epath

from jaxreflow.errors import ConfigError, StorageError
from jaxreflow.support.console import progress

AnyPath: TypeAlias = Path | epath.Path
"""A local path, or one in an object store."""

CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}
CACHE_VARIABLE = "JAXREFLOW_CACHE"
# So many files are fetched at once, and are there when the process is killed.
_FETCHED_TOGETHER = 64


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file's size in bytes, when it last changed (seconds since 1970), and its digest: SHA-256, or the store's own."""

    size: int
    changed: float
    digest: Callable[[], str]


def is_remote(path: str | AnyPath) -> bool:
    """Whether the path lies in an object store."""
    return _scheme(path) in CLIENTS


def as_path(path: str | AnyPath) -> AnyPath:
    """The path as an object, with `~` expanded; both kinds join, read and write alike."""
    return epath.Path(path) if is_remote(path) else Path(path).expanduser()


def check_path(
    flag: str, path: str | AnyPath | None, schemes: Collection[str] = tuple(CLIENTS), reason: str = ""
) -> None:
    """ConfigError unless the path is local, or in an object store of these `schemes` whose client is installed."""
    # A pathlib.Path has made one slash of two.
    match = re.match(r"([a-z][a-z0-9+]+):/", str(path or ""))
    if not match:
        return
    scheme = match[1]
    if scheme not in schemes:
        expected = " or ".join(["a local path", *(f"{name}://" for name in schemes)])
        raise ConfigError(
            f"{flag} {path}: expected {expected}, found {scheme}://{reason and f' ({reason})'}; give another path and copy "
            "the files there or from there"
        )
    if importlib.util.find_spec(CLIENTS[scheme]) is None:
        raise ConfigError(
            f"{flag} {path}: expected the package {CLIENTS[scheme]}, found none; install it with "
            'pip install "jaxreflow[remote]"'
        )


def local_copy(path: str | AnyPath, wanted: Callable[[str], bool] = lambda _: True) -> Path:
    """The folder itself if it is local, else its copy on this machine with the files whose relative names are `wanted`.

    Files that are there already are fetched again only if their size or time of change differs; others than the remote ones
    are removed.

    Raises:
        StorageError: the remote folder has no files, or cannot be read.
    """
    if not is_remote(path):
        return Path(path).expanduser()
    files, folder = list_files(as_path(path)), place_of_copy(path)
    if not files:
        raise StorageError(f"{path}: expected a folder with files, found none; check the path and your access to it")
    for name in list_files(folder).keys() - files.keys():
        (folder / name).unlink(missing_ok=True)
    stale = [name for name, file in files.items() if wanted(name) and not _is_same(folder / name, file)]
    with progress(f"fetching {path}", len(stale), unit="file") as advance:
        for start in range(0, len(stale), _FETCHED_TOGETHER):
            names = stale[start : start + _FETCHED_TOGETHER]
            _fetch(as_path(path), {name: files[name] for name in names}, folder)
            advance(len(names))
    return folder


def place_of_copy(path: str | AnyPath) -> Path:
    """Where `local_copy` puts a remote folder: under $JAXREFLOW_CACHE, or ~/.cache/jaxreflow."""
    return _cache() / _scheme(path) / _key(path)


def list_files(folder: AnyPath) -> dict[str, StoredFile]:
    """All files in a folder and its subfolders by relative name, in order; none if there is no such folder."""
    if isinstance(folder, Path):
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): _local_file(path) for path in found}
    with _store_errors(folder):
        infos = _store(folder).find(_key(folder), detail=True)
    names = {name.removeprefix(f"{_key(folder)}/"): info for name, info in infos.items()}
    outside = [name for name in names if ".." in PurePosixPath(name).parts or name.startswith("/")]
    if outside:
        raise StorageError(f"{folder}: expected names inside the folder, found {outside[0]!r}; remove that object")
    # Consoles mark folders with an empty object whose name ends in a slash.
    return {name: _remote_file(info) for name, info in sorted(names.items()) if not name.endswith("/")}


def list_folders(folder: AnyPath) -> list[str]:
    """Names of the folders directly in a folder."""
    if isinstance(folder, Path):
        return sorted(path.name for path in folder.iterdir() if path.is_dir())
    with _store_errors(folder):
        infos = _store(folder).ls(_key(folder), detail=True)
    return sorted(PurePosixPath(info["name"]).name for info in infos if info["type"] == "directory")


def is_taken(path: AnyPath) -> bool:
    """Whether there is anything but an empty folder."""
    if isinstance(path, Path):
        return path.exists() and (not path.is_dir() or any(path.iterdir()))
    return bool(list_files(path))


def make_folder(folder: AnyPath) -> None:
    """Makes a folder and those above it; in an object store there is nothing to make."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def remove_folder(folder: AnyPath) -> None:
    """Removes a folder with all that is in it, as far as that is possible."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError), _store_errors(folder):
        store = _store(folder)
        if names := store.find(_key(folder)):
            store.rm(names)


def upload(folder: Path, target: AnyPath) -> None:
    """Copies a local folder's files into a folder of an object store; StorageError if that fails."""
    names = list(list_files(folder))
    with _store_errors(target):
        _store(target).put([str(folder / name) for name in names], [f"{_key(target)}/{name}" for name in names])


def append_text(path: AnyPath, text: str) -> None:
    """Adds to the end of a file; in an object store the file is written again as a whole."""
    if isinstance(path, Path):
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        return
    with _store_errors(path):
        path.write_text((path.read_text() if path.exists() else "") + text)


def _cache() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/jaxreflow").expanduser().absolute()


def _scheme(path: str | AnyPath) -> str:
    before, separator, _ = str(path).partition("://")
    return before if separator else ""


def _key(path: str | AnyPath) -> str:
    """Bucket and name, as the stores' clients take them."""
    return str(path).partition("://")[2].rstrip("/")


def _store(path: str | AnyPath) -> Any:
    """The store's client; without a cache of listings, since checkpoints are written past it."""
    import fsspec

    return fsspec.filesystem(_scheme(path), use_listings_cache=False)


@contextlib.contextmanager
def _store_errors(path: AnyPath) -> Iterator[None]:
    """The errors of the stores' clients share no base class."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[:1]
        raise StorageError(
            f"{path}: {' '.join([type(error).__name__, *reason])}; check the path, your credentials and the network"
        ) from error


def _local_file(path: Path) -> StoredFile:
    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    stat = path.stat()
    return StoredFile(stat.st_size, stat.st_mtime, digest)


def _remote_file(info: dict[str, Any]) -> StoredFile:
    digest = str(info.get("crc32c") or info.get("ETag"))
    changed = info.get("mtime") or info["LastModified"]
    return StoredFile(int(info["size"]), changed.timestamp(), lambda: digest)


def _is_same(copy: Path, file: StoredFile) -> bool:
    if not copy.is_file():
        return False
    stat = copy.stat()
    return stat.st_size == file.size and abs(stat.st_mtime - file.changed) < 1e-3


def _fetch(source: AnyPath, files: dict[str, StoredFile], folder: Path) -> None:
    """Each file is complete or not there, also when several processes of a machine fetch it at once."""
    _cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_cache(), prefix="fetching.") as temporary:
        arriving = [Path(temporary) / str(number) for number in range(len(files))]
        with _store_errors(source):
            _store(source).get([f"{_key(source)}/{name}" for name in files], [str(path) for path in arriving])
        for path, (name, file) in zip(arriving, files.items(), strict=True):
            os.utime(path, (file.changed, file.changed))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(folder / name)
