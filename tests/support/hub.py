"""A stand-in for the hub's server: it keeps the files of data sets in memory, the newest state of each."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """The server. `repos` has each data set's files by name; `private` those that were made so."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits = 0

    @property
    def commit(self) -> str:
        """The newest commit."""
        return f"{self.commits:040x}"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a server meanwhile."""
    hub = Hub()
    Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        """Say nothing."""

    def _give(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _give_json(self, said: object) -> None:
        self._give(200, json.dumps(said).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts == ["api", "validate-yaml"]:
            return self._give_json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self._give(401, b"", X_Error_Message="Invalid username or password.")
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(content)
            repo_id = f"{wanted.get('organization', 'me')}/{wanted['name']}"
            assert wanted["type"] == "dataset"
            self.server.repos.setdefault(repo_id, {})
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.server.private.add(repo_id)
            return self._give_json({"url": f"{self.server.address}/datasets/{repo_id}"})
        repo_id, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            files = json.loads(content)["files"]
            return self._give_json(
                {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]}
            )
        assert action == "commit", self.path
        for line in content.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                assert value["encoding"] == "base64"
                self.server.repos[repo_id][value["path"]] = base64.b64decode(value["content"])
        self.server.commits += 1
        url = f"{self.server.address}/datasets/{repo_id}/commit/{self.server.commit}"
        return self._give_json({"commitUrl": url, "commitOid": self.server.commit, "success": True})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == "datasets":
            files, name = self.server.repos.get("/".join(parts[1:3])), "/".join(parts[5:])
            if files is None:
                return self._give(404, X_Error_Code="RepoNotFound")
            if parts[4] not in ("main", self.server.commit):
                return self._give(404, X_Error_Code="RevisionNotFound")
            if name not in files:
                return self._give(404, X_Error_Code="EntryNotFound", X_Repo_Commit=self.server.commit)
            digest = hashlib.sha256(files[name]).hexdigest()
            return self._give(200, files[name], ETag=f'"{digest}"', X_Repo_Commit=self.server.commit)
        return self._give(404)
