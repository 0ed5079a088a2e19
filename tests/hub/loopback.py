"""A small Hub on the loopback: repositories, commits, LFS, file lists, downloads. It speaks the protocol, not the API.

Run as a program it serves until its standard input is closed, and prints its port first. A write needs the token
`good`, and so does reading a private repository; the organization `closed` lets nobody write, `full` has used up its
storage, and every request to the organization `broken` fails with status 500. It is strict: an object must have the
size and sha256 that were announced, a commit may name stored objects only. `Hub.faults` makes the next requests fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

BIG = (".parquet", ".safetensors")
DATE = "2025-01-01T00:00:00.000Z"


class Fault(NamedTuple):
    """The next request that matches fails: `cut` in the middle of its body, `hang` there, `lost` when its work is done
    and the answer would go out, or a status."""

    method: str
    path: str
    how: str
    headers: dict[str, str] | None = None


class Hub:
    """What the server holds: files of every commit, the head of every branch, and LFS objects."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.heads: dict[tuple[str, str], dict[str, str]] = {}
        self.private: dict[tuple[str, str], bool] = {}
        self.objects: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.requests: list[tuple[tuple[str, str], int, str]] = []
        self.puts: list[str] = []
        self.faults: list[Fault] = []
        self.hung, self.go_on = threading.Event(), threading.Event()
        self.lines, self.hang_up = 0, threading.Condition()

    def wait_until_alone(self) -> None:
        """Wait until nobody is connected: what a client that was killed had sent whole has been dealt with then."""
        with self.hang_up:
            self.hang_up.wait_for(lambda: self.lines == 0)

    def commit(self, repo: tuple[str, str], branch: str, files: dict[str, bytes]) -> str:
        told = "".join(f"{k}{hashlib.sha1(v).hexdigest()}" for k, v in sorted(files.items())) + repr(repo) + branch
        oid = hashlib.sha1(told.encode()).hexdigest()
        self.commits[oid] = files
        self.heads.setdefault(repo, {})[branch] = oid
        return oid

    def find(self, repo: tuple[str, str], revision: str) -> str | None:
        heads = self.heads.get(repo, {})
        return heads.get(revision, revision if revision in self.commits else None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = Hub()
    lost = False

    def setup(self) -> None:
        super().setup()
        with self.hub.hang_up:
            self.hub.lines += 1

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            with self.hub.hang_up:
                self.hub.lines -= 1
                self.hub.hang_up.notify_all()

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        if self.lost and status == 200:
            self.lost, status, body = False, 500, {"error": "Lost"}
        content = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def faulty(self, path: str) -> bool:
        for fault in self.hub.faults:
            if fault.method == self.command and re.search(fault.path, path):
                self.hub.faults.remove(fault)
                if fault.how == "lost":
                    self.lost = True
                    return False
                if fault.how in {"cut", "hang"}:
                    self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
                    self.close_connection = True
                    if fault.how == "hang":
                        self.hub.hung.set()
                        self.hub.go_on.wait()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return True
                self.body()
                self.fail(int(fault.how), f"Fault {fault.how}", fault.headers)
                return True
        return False

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        self.serve()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 (the names that http.server calls)

    def serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.faulty(path):
            return None
        content = self.body()
        if "/broken/" in path:
            return self.fail(500, "Broken")
        good = self.headers.get("Authorization") == "Bearer good"
        write = self.command == "POST" and "validate-yaml" not in path and "paths-info" not in path
        if write and not good:
            return self.fail(401, "Unauthorized")
        if self.command == "PUT" and path.startswith("/objects/"):
            return self.store(path.rsplit("/", 1)[-1], content)
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                found = match.groupdict()
                if self.hub.private.get(self.repo(found.get("kind"), found.get("name") or "")) and not good:
                    return self.fail(401, "RepoNotFound")
                return method(self, content, **found)
        return self.fail(404, "NoSuchRoute")

    def store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            # a killed client leaves the halves of whatever else it was sending
            return self.fail(400, "WrongSha256")
        self.hub.puts.append(oid)
        self.hub.objects[oid] = content
        return self.answer(200)

    def who(self, _: bytes) -> None:
        if self.headers.get("Authorization") != "Bearer good":
            return self.fail(401, "Unauthorized")
        return self.answer(200, {"type": "user", "name": "me", "orgs": []})

    def verify(self, content: bytes, kind: str | None, name: str) -> None:
        told = json.loads(content)
        held = self.hub.objects.get(told["oid"])
        return self.answer(200) if held is not None and len(held) == told["size"] else self.fail(404, "NoObject")

    @staticmethod
    def repo(kind: str | None, name: str) -> tuple[str, str]:
        return ((kind or "models").removesuffix("s"), name)

    def create(self, content: bytes) -> None:
        told = json.loads(content)
        name = f"{told['organization']}/{told['name']}" if told.get("organization") else told["name"]
        if name.startswith("closed/"):
            return self.fail(403, "Forbidden")
        repo = (told.get("type") or "model", name)
        host = f"http://{self.headers['Host']}/{'' if repo[0] == 'model' else f'{repo[0]}s/'}{name}"
        # `shared` is an organization whose models and data sets share one space of names
        taken = name.startswith("shared/") and any(name == other for _, other in self.hub.heads)
        if repo in self.hub.heads or taken:
            return self.answer(409, {"url": host, "error": "Exists"})
        self.hub.private[repo] = bool(told.get("private")) or told.get("visibility") == "private"
        self.hub.commit(repo, "main", {".gitattributes": b"*.parquet filter=lfs\n"})
        return self.answer(200, {"url": host, "name": name, "id": name})

    def validate(self, content: bytes) -> None:
        import yaml

        card = json.loads(content)["content"]
        loaded = yaml.safe_load(card.split("---")[1])
        license = loaded.get("license")
        errors = [{"message": "license must be a string"}] if license and not isinstance(license, str) else []
        # as the Hub: a card without a license is taken, a wrong one is not
        warnings = [] if license else [{"message": "license is missing"}]
        self.answer(400 if errors else 200, {"errors": errors, "warnings": warnings})

    def info(self, _: bytes, kind: str, name: str, rev: str = "main") -> None:
        repo = self.repo(kind, name)
        oid = self.hub.find(repo, rev)
        if oid is None:
            return self.fail(404, "RevisionNotFound" if repo in self.hub.heads else "RepoNotFound")
        siblings = [{"rfilename": path} for path in sorted(self.hub.commits[oid])]
        told = {"_id": "1", "id": name, "sha": oid, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
        more = {"private": self.hub.private[repo], "disabled": False, "gated": False, "lastModified": DATE}
        return self.answer(200, told | more | {"createdAt": DATE})

    def branch(self, _: bytes, kind: str, name: str, rev: str) -> None:
        repo = self.repo(kind, name)
        if rev in self.hub.heads[repo]:
            return self.fail(409, "Exists")
        self.hub.commit(repo, rev, self.hub.commits[self.hub.heads[repo]["main"]])
        return self.answer(201)

    def preupload(self, content: bytes, kind: str, name: str, rev: str) -> None:
        head = self.hub.find(self.repo(kind, name), rev)
        if head is None:
            return self.fail(404, "RepoNotFound")
        files = []
        for path in (f["path"] for f in json.loads(content)["files"]):
            mode = "lfs" if path.endswith(BIG) else "regular"
            file: dict[str, Any] = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in self.hub.commits[head]:
                # by which the client leaves out what has not changed
                entry = self.entry(path, self.hub.commits[head][path])
                file["oid"] = entry["lfs"]["oid"] if mode == "lfs" else entry["oid"]
            files.append(file)
        return self.answer(200, {"files": files})

    def batch(self, content: bytes, kind: str | None, name: str) -> None:
        host = f"http://{self.headers['Host']}"
        objects = []
        for one in json.loads(content)["objects"]:
            if one["oid"] in self.hub.objects:
                objects.append(one)
                continue
            put, check = f"{host}/objects/{one['oid']}", f"{host}/{name}.git/info/lfs/objects/verify"
            objects.append({**one, "actions": {"upload": {"href": put}, "verify": {"href": check}}})
        self.answer(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def do_commit(self, content: bytes, kind: str, name: str, rev: str) -> None:
        repo = self.repo(kind, name)
        if name.startswith("closed/") and "create_pr=1" not in self.path:
            return self.fail(403, "You have no write access")
        if name.startswith("full/"):
            return self.fail(403, "You have exceeded your storage quota")
        request = "create_pr=1" in self.path
        parent = self.hub.find(repo, rev)
        if parent is None:
            return self.fail(404, "RevisionNotFound")
        files = dict(self.hub.commits[parent])
        steps = [json.loads(line) for line in content.splitlines()]
        wrong = [step["key"] for step in steps[1:] if not self.apply(step["key"], step["value"], files)]
        if wrong:
            return self.fail(400, f"Cannot apply {wrong[0]}")
        message = steps[0]["value"]["summary"]
        self.hub.messages.append(message)
        where = f"http://{self.headers['Host']}/{'' if repo[0] == 'model' else f'{repo[0]}s/'}{name}"
        more = {}
        if request:
            number = 1 + sum(held == repo for held, _, _ in self.hub.requests)
            self.hub.requests.append((repo, number, message))
            rev, more = f"refs/pr/{number}", {"pullRequestUrl": f"{where}/discussions/{number}"}
        oid = self.hub.commit(repo, rev, files)
        return self.answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{where}/commit/{oid}"} | more)

    def apply(self, key: str, value: dict[str, Any], files: dict[str, bytes]) -> bool:
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"], validate=True)
        elif key == "lfsFile":
            held = self.hub.objects.get(value["oid"])
            if held is None or len(held) != value["size"]:
                return False
            files[value["path"]] = held
        elif key == "deletedFile":
            del files[value["path"]]
        return key in {"file", "lfsFile", "deletedFile"}

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        told: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git}
        if path.endswith(BIG):
            told["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return told

    def tree(self, _: bytes, kind: str, name: str, rev: str, folder: str | None = None) -> None:
        oid = self.hub.find(self.repo(kind, name), rev)
        if oid is None:
            return self.fail(404, "RepoNotFound")
        prefix = f"{folder}/" if folder else ""
        inside = {p: c for p, c in self.hub.commits[oid].items() if p.startswith(prefix)}
        deep = "recursive=true" in self.path.lower()
        here = [self.entry(p, c) for p, c in inside.items() if deep or "/" not in p.removeprefix(prefix)]
        folders = {p[: p.index("/", len(prefix))] for p in inside if "/" in p.removeprefix(prefix)}
        here += [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in sorted(folders)]
        return self.answer(200, here) if inside else self.fail(404, "EntryNotFound")

    def paths(self, content: bytes, kind: str, name: str, rev: str) -> None:
        files = self.hub.commits[self.hub.find(self.repo(kind, name), rev) or ""]
        told = (
            json.loads(content)
            if content.startswith(b"{")
            else {"paths": re.findall(r"paths=([^&]+)", content.decode())}
        )
        asked = [unquote(p) for p in told["paths"]]
        here = [self.entry(p, files[p]) for p in asked if p in files]
        folders = [p for p in asked if p not in files and any(f.startswith(f"{p}/") for f in files)]
        self.answer(200, here + [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders])

    def resolve(self, _: bytes, kind: str | None, name: str, rev: str, file: str) -> None:
        oid = self.hub.find(self.repo(kind, name), rev)
        if oid is None:
            return self.fail(404, "RepoNotFound")
        content = self.hub.commits[oid].get(file)
        if content is None:
            return self.fail(404, "EntryNotFound")
        told = self.entry(file, content)
        tag = f'"{told["lfs"]["oid"] if "lfs" in told else told["oid"]}"'
        headers = {"X-Repo-Commit": oid, "ETag": tag, "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream"
        if self.headers.get("If-None-Match") == tag:
            return self.answer(304, b"", headers)
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if span and self.command == "GET":
            first, last = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
            if first > last:
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.answer(206, content[first : last + 1], headers)
        return self.answer(200, content, headers | {"Content-Length": str(len(content))})


KIND = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
FILE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)"
ROUTES = [
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (KIND, Handler.info),
    (rf"{KIND}/revision/(?P<rev>.+)", Handler.info),
    (rf"{KIND}/branch/(?P<rev>.+)", Handler.branch),
    (rf"{KIND}/preupload/(?P<rev>.+)", Handler.preupload),
    (rf"{KIND}/commit/(?P<rev>.+)", Handler.do_commit),
    (rf"{KIND}/tree/(?P<rev>refs/[^/]+/[^/]+|[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    (rf"{KIND}/paths-info/(?P<rev>.+)", Handler.paths),
    (r"/api/whoami-v2", Handler.who),
    (rf"{FILE}\.git/info/lfs/objects/batch", Handler.batch),
    (rf"{FILE}\.git/info/lfs/objects/verify", Handler.verify),
    (rf"{FILE}/resolve/(?P<rev>refs/[^/]+/[^/]+|[^/]+)/(?P<file>.+)", Handler.resolve),
]


def start() -> tuple[Hub, ThreadingHTTPServer]:
    """Serve a new Hub in a thread of this process; `shutdown()` the server when done."""
    hub = Hub()
    handler = type("OneHub", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return hub, server


if __name__ == "__main__":
    _, running = start()
    print(running.server_address[1], flush=True)
    sys.stdin.read()
