"""A small model hub on this machine: what `huggingface_hub` asks of the hub's HTTP interface, with tokens, branches and commits.

A commit changes a branch all at once; files of the kind that the hub keeps apart (LFS) must have been uploaded before it.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, TOKEN, READ_TOKEN = "me", "hf_writeWRITEwrite0123456789", "hf_readREADread0123456789"
LARGE = (".safetensors", ".png")


@dataclasses.dataclass
class Repo:
    """A repository: every commit's files by its id, and each branch's newest commit."""

    private: bool
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    branches: dict[str, str] = dataclasses.field(default_factory=dict)
    messages: list[str] = dataclasses.field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """The id of a new commit, which the branch then has."""
        commit = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        self.messages.append(message)
        return commit

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """All files at a branch or commit; KeyError where there is none."""
        return self.commits[self.branches.get(revision, revision)]


class Hub(ThreadingHTTPServer):
    """`fail` is a path's pattern and the status that answers it instead; `asked` is every request's method and path."""

    daemon_threads = True

    def __init__(self) -> None:
        self.repos, self.large = dict[str, Repo](), dict[str, bytes]()
        self.fail: dict[str, int] = {}
        self.asked: list[str] = []
        self.lock = threading.RLock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def create(self, name: str, *, private: bool = False, files: dict[str, bytes] | None = None) -> Repo:
        """A repository with its first commit."""
        self.repos[name] = repo = Repo(private)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}, "initial commit")
        return repo


class _Answer(Exception):
    """Ends a request with a status, which says what is wrong."""

    def __init__(self, status: int, message: str = "", code: str = "") -> None:
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        with self.server.lock:
            self.server.asked.append(f"{self.command} {path}")
            try:
                for pattern, status in self.server.fail.items():
                    if re.search(pattern, path):
                        raise _Answer(status, "made to fail")
                for method, pattern, handle in _ROUTES:
                    if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                        return handle(self, *map(unquote, match.groups()))
                raise _Answer(404, f"no such address: {self.command} {path}")
            except _Answer as answer:
                headers = {"X-Error-Message": answer.message, "X-Error-Code": answer.code}
                self._answer(answer.status, {"error": answer.message}, {k: v for k, v in headers.items() if v})

    def _user(self) -> str | None:
        """Who asks, by the token; None without one."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in (TOKEN, READ_TOKEN):
            raise _Answer(401, "Invalid credentials in Authorization header")
        return token or None

    def _repo(self, name: str, *, write: bool = False) -> Repo:
        user = self._user()
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and user is None):
            raise _Answer(404 if user else 401, "Repository not found", "RepoNotFound")
        if write:
            self._may_write(name)
        return repo

    def _may_write(self, name: str) -> None:
        user = self._user()
        if user is None:
            raise _Answer(401, "Invalid username or password.")
        if user == READ_TOKEN or name.split("/")[0] != OWNER:
            raise _Answer(403, "You don't have the rights to write here")

    def _files(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        try:
            return repo.branches.get(revision, revision), repo.files(revision)
        except KeyError:
            raise _Answer(404, f"Invalid rev id: {revision}", "RevisionNotFound") from None

    def whoami(self) -> None:
        user = self._user()
        if user is None:
            raise _Answer(401, "Invalid username or password.")
        token = {"displayName": "a token", "role": "write" if user == TOKEN else "read"}
        self._answer(200, {"type": "user", "name": OWNER, "orgs": [], "auth": {"accessToken": token}})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization'] or OWNER}/{asked['name']}"
        self._may_write(name)
        if name in self.server.repos:
            return self._answer(
                409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}
            )
        # Clients before 1.0 say `private`, later ones `visibility`.
        self.server.create(name, private=asked.get("private") or asked.get("visibility") == "private")
        return self._answer(200, {"url": f"{self.server.url}/{name}"})

    def info(self, name: str, revision: str = "main") -> None:
        repo = self._repo(name)
        commit, files = self._files(repo, revision)
        siblings = [{"rfilename": path} for path in files]
        self._answer(200, {"id": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []})

    def tree(self, name: str, revision: str) -> None:
        _, files = self._files(self._repo(name), revision)
        self._answer(200, [{"type": "file", "path": path, **_describe(path, data)} for path, data in files.items()])

    def branch(self, name: str, branch: str) -> None:
        repo = self._repo(name, write=True)
        if branch in repo.branches:
            raise _Answer(409, "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self._answer(200, {})

    def check_card(self) -> None:
        text = json.loads(self.body)["content"]
        if not re.match(r"---\n(?:.+\n)*library_name: lerobot\n(?:.+\n)*---\n", text):
            return self._answer(400, {"errors": [{"message": "no metadata"}], "warnings": []})
        return self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        _, files = self._files(self._repo(name, write=True), revision)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": _content_id(file["path"], files[file["path"]]) if file["path"] in files else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self._answer(200, {"files": modes})

    def batch(self, name: str) -> None:
        self._repo(name, write=True)
        objects = [
            {"oid": each["oid"], "size": each["size"]}
            | ({} if each["oid"] in self.server.large else {"actions": {"upload": {"href": self._place(each["oid"])}}})
            for each in json.loads(self.body)["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _place(self, digest: str) -> str:
        return f"{self.server.url}/large/{digest}"

    def upload(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            raise _Answer(400, "not the content that was announced")
        self.server.large[digest] = self.body
        self._answer(200, {})

    def commit(self, name: str, branch: str) -> None:
        repo = self._repo(name, write=True)
        _, files = self._files(repo, branch)
        files = dict(files)
        header, *changes = [json.loads(line) for line in self.body.splitlines()]
        for change in changes:
            kind, value = change["key"], change["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.server.large:
                    raise _Answer(400, f"{value['path']} was not uploaded")
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                assert kind == "deletedFile"
                del files[value["path"]]
        commit = repo.commit(branch, files, header["value"]["summary"])
        self._answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit, files = self._files(self._repo(name), revision)
        if path not in files:
            raise _Answer(404, "Entry not found", "EntryNotFound")
        etag = _describe(path, files[path])["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}
        self._answer(200, files[path], headers)

    def _answer(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _describe(path: str, data: bytes) -> dict[str, Any]:
    """Size and id of a file: git's own of its content, or of what stands in its place."""
    digest = hashlib.sha256(data).hexdigest()
    if not path.endswith(LARGE):
        return {"size": len(data), "oid": _git_id(data)}
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()
    return {
        "size": len(data),
        "oid": _git_id(pointer),
        "lfs": {"oid": digest, "size": len(data), "pointerSize": len(pointer)},
    }


def _content_id(path: str, data: bytes) -> str:
    """By which a client sees that a file has not changed."""
    return hashlib.sha256(data).hexdigest() if path.endswith(LARGE) else _git_id(data)


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.check_card),
    ("GET", f"/api/models/{_NAME}", _Handler.info),
    ("GET", f"/api/models/{_NAME}/revision/([^/]+)", _Handler.info),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)", _Handler.tree),
    ("POST", f"/api/models/{_NAME}/branch/([^/]+)", _Handler.branch),
    ("POST", f"/api/models/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    ("POST", f"/api/models/{_NAME}/commit/([^/]+)", _Handler.commit),
    ("POST", f"/{_NAME}.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/large/(\w+)", _Handler.upload),
    ("GET", f"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]


@contextlib.contextmanager
def fake_hub() -> Iterator[Hub]:
    """A hub with one user and no repositories."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
