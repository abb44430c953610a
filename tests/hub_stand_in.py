"""The hub's interface as far as a download asks, on loopback: a model's facts, and its files with ranges."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`repos` are files by repository and name. `cut` files end after so many bytes, a number for each of the first
    requests; `gated` repositories ask for a licence."""

    repos: dict[str, dict[str, Path]]
    licence: str = "mit"
    cut: dict[str, list[int]] = field(default_factory=dict)
    gated: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)  # "GET name from byte"
    url: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *_: object) -> None: ...

        def _answer(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
                return self._facts(found[1])
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            place = hub.repos.get(found[1], {}).get(found[2]) if found else None
            if place is None:
                return self._refuse(404, "EntryNotFound")
            return self._file(found[2], place.read_bytes(), with_body)  # type: ignore[index]

        def _facts(self, repo: str) -> None:
            if repo in hub.gated:
                return self._refuse(403, "GatedRepo")
            if repo not in hub.repos:
                return self._refuse(404, "RepoNotFound")
            files = [{"rfilename": name, "size": place.stat().st_size} for name, place in hub.repos[repo].items()]
            return self._send(200, json.dumps({"id": repo, "sha": SHA, "siblings": files,
                                               "cardData": {"license": hub.licence}}).encode())  # fmt: skip

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

        def _file(self, name: str, content: bytes, with_body: bool) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(wanted[1]) if wanted else 0
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            headers = {"ETag": tag, "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if not with_body:
                return self._send(200, b"", headers | {"Content-Length": str(len(content))})
            hub.asked.append(f"{name} from {start}")
            body = content[start:]
            if ends := hub.cut.get(name):  # the connection breaks off
                end = ends.pop(0)
                self.send_response(206 if start else 200)
                for key, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body[:end])
                self.wfile.flush()
                self.close_connection = True
                return None
            return self._send(206 if start else 200, body, headers)

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def build_by_name(place: Path, *arguments: object, url: str = "http://127.0.0.1:9", code: int = 0, **more: str) -> str:
    """The command in a process of its own, for the hub's settings are read at import; what it says."""
    place.mkdir(exist_ok=True)
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(place / "hf"), "HF_HUB_DOWNLOAD_TIMEOUT": "5",
                "HF_HUB_OFFLINE": "0"} | more  # fmt: skip
    command = [sys.executable, "-m", "cascade_trt", "build", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=place, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr
