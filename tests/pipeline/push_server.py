"""A hub that takes uploads, as far as `HfApi.create_commit` goes: repositories, listings, LFS, commits. Loopback only.

`faults` holds (method, path part, status) that the next matching requests answer, one use each; status 0 hangs up.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Files = dict[str, tuple[bytes, bool]]  # path -> (content, stored as LFS)


class PushServer:
    """Context manager; `url` is the endpoint, `repos` what was published, `commits` their messages and paths in order."""

    def __init__(self) -> None:
        self.repos: dict[str, Files] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.commits: list[tuple[str, list[str]]] = []
        self.uploads = 0
        self.faults: list[tuple[str, str, int]] = []
        self.refuse = False

    def __enter__(self) -> "PushServer":
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle_any(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                status, body = server.answer(self.command, self.path, self.rfile.read(length))
                if not status:
                    self.close_connection = True
                    return
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and body of one request."""
        if self.refuse:
            return 403, {"error": "no"}
        for fault in self.faults:
            if fault[0] == method and fault[1] in path:
                self.faults.remove(fault)
                return fault[2], {"error": "fault"}
        path = path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            status = 409 if name in self.repos else 200
            self.repos.setdefault(name, {})
            self.private.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
            return status, {"url": f"{self.url}/datasets/{name}", "id": name, "name": name}
        if path.startswith("/api/validate-yaml") or path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/main(/.*)?", path):
            return 200, [self._listed(name, *held) for name, held in sorted(self.repos[match[1]].items())]
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            return 200, {"files": [{"path": file["path"], "shouldIgnore": False,
                                    "uploadMode": "lfs" if file["path"].endswith((".tar", ".npy", ".parquet")) else "regular"}
                                   for file in files]}
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return 200, {"transfer": "basic", "objects": [
                {"oid": o["oid"], "size": o["size"],
                 **({} if o["oid"] in self.objects else {"actions": {"upload": {"href": f"{self.url}/storage/{o['oid']}"}}})}
                for o in objects]}
        if method == "PUT" and path.startswith("/storage/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/storage/")
            self.objects[path.removeprefix("/storage/")] = body
            self.uploads += 1
            return 200, b""
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/commit/main", path):
            return 200, self._commit(self.repos[match[1]], [json.loads(line) for line in body.splitlines()])
        if re.fullmatch(r"/api/datasets/[^/]+/[^/]+(/revision/main)?", path):
            return 200, {"id": "x/y", "sha": "0" * 40, "siblings": []}
        return 404, {"error": f"no {method} {path}"}

    @staticmethod
    def _listed(name: str, data: bytes, lfs: bool) -> dict[str, Any]:
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
        if lfs:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _commit(self, files: Files, lines: list[dict[str, Any]]) -> dict[str, Any]:
        paths = []
        for line in lines[1:]:
            value = line["value"]
            paths.append(("-" if line["key"] == "deletedFile" else "+") + value["path"])
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = (self.objects[value["oid"]], True)
            else:
                files[value["path"]] = (base64.b64decode(value["content"]), False)
        self.commits.append((lines[0]["value"]["summary"], paths))
        oid = f"{len(self.commits):040d}"
        return {"success": True, "commitUrl": f"{self.url}/datasets/someone/small/commit/{oid}", "commitOid": oid, "hookOutput": ""}
