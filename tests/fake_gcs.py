"""A small Cloud Storage on this machine: what gcsfs and TensorStore ask of its JSON API, with generations and preconditions.

TensorStore commits by writing an object on the condition that nobody else has; emulators that ignore it lose checkpoints.
"""

import base64
import contextlib
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

_OBJECT = re.compile(r"/(?:download/|upload/)?storage/v1/b/([^/]+)/o/?(.*)")


class Stored(NamedTuple):
    """An object's bytes, its number among all writes, and when it was written."""

    data: bytes
    generation: int
    written: str


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, bucket: str) -> None:
        self.bucket, self.objects, self.lock = bucket, dict[str, Stored](), threading.Lock()
        self.generations = itertools.count(1)
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """TensorStore closes connections whose answer it no longer needs."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        name, query = self._target()
        if name is None:
            return None
        if not name:
            return self._list(query.get("prefix", ""), query.get("delimiter"))
        with self.server.lock:
            found = self.server.objects.get(name)
        if found is None:
            return self._answer(404)
        if query.get("ifGenerationNotMatch") == str(found.generation):
            return self._answer(304, headers={"x-goog-generation": str(found.generation)})
        if query.get("alt") != "media":
            return self._answer(200, self._describe(name, found))
        start, end = 0, len(found.data)
        if limits := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(limits[1]), min(int(limits[2] or end - 1) + 1, end)
        headers = {"x-goog-generation": str(found.generation)}
        if limits:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(found.data)}"
        return self._answer(206 if limits else 200, found.data[start:end], headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if urlsplit(self.path).path.startswith("/batch/"):
            return self._batch(body)
        name, query = self._target()
        if name is None:
            return None
        name, data = query.get("name"), body
        if query["uploadType"] == "resumable":  # and then, in one piece, to the place that is named here
            place = f"http://{self.headers['Host']}{self.path.replace('resumable', 'media')}"
            return self._answer(200, headers={"Location": place})
        if query["uploadType"] == "multipart":
            boundary = b"\n--" + body.split(b"\n", 1)[0].strip()[2:]
            description, data = (part.split(b"\n\n", 1)[1] for part in (b"\n" + body).split(boundary)[1:3])
            name = json.loads(description)["name"]
        assert name is not None
        with self.server.lock:
            before = self.server.objects.get(name)
            generation = str(before.generation if before else 0)
            if query.get("ifGenerationMatch", generation) != generation:
                return self._answer(412)
            written = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            self.server.objects[name] = stored = Stored(data, next(self.server.generations), written)
        return self._answer(200, self._describe(name, stored))

    def do_DELETE(self) -> None:
        name, _ = self._target()
        self._answer(404 if name is None or self._delete(name) is None else 204)

    def _batch(self, body: bytes) -> None:
        names = [unquote(name) for name in re.findall(r"DELETE /storage/v1/b/[^/]+/o/(\S+)", body.decode())]
        codes = [204 if self._delete(name) else 404 for name in names]
        parts = "".join(f"--batch\nContent-Type: application/http\n\nHTTP/1.1 {code} -\n\n" for code in codes)
        self._answer(200, f"{parts}--batch--".encode(), {"Content-Type": "multipart/mixed; boundary=batch"})

    def _delete(self, name: str) -> Stored | None:
        with self.server.lock:
            return self.server.objects.pop(name, None)

    def _list(self, prefix: str, delimiter: str | None) -> None:
        with self.server.lock:
            found = sorted(item for item in self.server.objects.items() if item[0].startswith(prefix))
        items, folders = [], set()
        for name, stored in found:
            head, separator, _ = name[len(prefix) :].partition(delimiter or "\0")
            if separator:
                folders.add(prefix + head + separator)
            else:
                items.append(self._describe(name, stored))
        self._answer(200, {"items": items, "prefixes": sorted(folders)})

    def _describe(self, name: str, stored: Stored) -> dict[str, str]:
        checksum = base64.b64encode(google_crc32c.Checksum(stored.data).digest()).decode()
        return {
            "name": name,
            "bucket": self.server.bucket,
            "generation": str(stored.generation),
            "size": str(len(stored.data)),
            "crc32c": checksum,
            "timeCreated": stored.written,
            "updated": stored.written,
        }

    def _target(self) -> tuple[str | None, dict[str, str]]:
        """The object's name, "" for the bucket, None (and an answer) where there is no such bucket; and the query."""
        url = urlsplit(self.path)
        match = _OBJECT.fullmatch(url.path)
        if not match or match[1] != self.server.bucket:
            self._answer(404)
            return None, {}
        return unquote(match[2]), {key: values[0] for key, values in parse_qs(url.query).items()}

    def _answer(self, code: int, body: bytes | dict = b"", headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def fake_gcs(bucket: str) -> Iterator[str]:
    """The URL of a server with one empty bucket."""
    with _Server(bucket) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
