"""A hub on loopback: the part of the Hugging Face hub's HTTP interface that a download uses, with faults on request.

Repositories are dicts of file name -> bytes. `cut_after` breaks the connection once after so many bytes of a file;
`corrupt` sends other bytes than those whose sum is told; `requests` records what was asked.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.cut_after: int | None = None
        self.corrupt = False
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, body: bool) -> None:
                double.requests.append((self.command, self.path, self.headers["Range"]))
                path = self.path.partition("?")[0]
                if path.startswith("/api/models/"):
                    self.describe(path.removeprefix("/api/models/"))
                    return
                repository, _, rest = path.removeprefix("/").partition("/resolve/")
                revision, _, file = rest.partition("/")
                content = double.repositories.get(repository, {}).get(file)
                if content is None or revision not in ("main", COMMIT):
                    self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
                    return
                self.file(content, body)

            def describe(self, what: str) -> None:
                repository, _, revision = what.partition("/revision/")
                files = double.repositories.get(repository)
                if files is None:
                    self.send(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
                elif revision not in ("", "main", COMMIT):
                    self.send(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
                else:
                    siblings = [
                        {
                            "rfilename": name, "size": len(content), "blobId": "0" * 40,
                            "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content),
                                    "pointerSize": 134},
                        }
                        for name, content in files.items()
                    ]  # fmt: skip
                    told = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}
                    self.send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

            def file(self, content: bytes, body: bool) -> None:
                sent = bytes(len(content)) if double.corrupt else content
                headers = {
                    "ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT,
                    "Accept-Ranges": "bytes",
                }  # fmt: skip
                start = 0
                if self.headers["Range"]:
                    start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
                    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                cut, double.cut_after = (double.cut_after, None) if body else (None, double.cut_after)
                self.send(206 if start else 200, sent[start:], headers, body, cut)

            def send(
                self, status: int, content: bytes, headers: dict[str, str], body: bool = True, cut: int | None = None
            ) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content[:cut])
                if cut is not None:
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
