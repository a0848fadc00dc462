"""A small, honest Hub on loopback: what huggingface_hub asks of the real one, answered truly.

Git keeps what is committed, a second origin keeps large files, tokens decide who may do what, and
faults can be injected by method and path. Every request is recorded with its token and size.
"""

import base64
import hashlib
import io
import json
import re
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_repository import Repository, pointer

LARGE = (".safetensors", ".bin", ".pt", ".gguf", ".png")
PART = 8_000_000  # larger objects are asked for in parts


@dataclass
class Fault:
    method: str
    path: str  # a regular expression for the raw path, found anywhere in it
    status: int = 0  # 0: drop the connection
    times: int = 1
    after: bool = False  # do what was asked, and lose the answer
    bytes: int | None = None  # send so many bytes of the answer's body, then drop
    delay: float = 0.0  # seconds before anything happens
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "injected"


@dataclass
class Request:
    origin: str
    method: str
    path: str
    token: str | None
    received: int = 0
    sent: int = 0
    status: int = 0


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


class HubServer:
    """The Hub: start it, point HF_ENDPOINT to its `url`, look at its `requests`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "objects"
        self.store.mkdir(parents=True)
        self.xet = folder / "xet"
        self.xet.mkdir()
        self.tokens = {"hf_alice_writes": "alice", "hf_bob_writes": "bob"}
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.servers = [_serve(self, "hub"), _serve(self, "store")]
        self.url, self.store_url = (
            f"http://127.0.0.1:{server.server_port}" for server in self.servers
        )

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def create(self, name: str, *, private: bool = False) -> Repository:
        folder = self.folder / "repositories" / f"{name}.git"
        folder.parent.mkdir(parents=True, exist_ok=True)
        repository = Repository(folder, name.partition("/")[0], private)
        repository.create()
        self.repositories[name] = repository
        return repository

    def publish(self, name: str, files: dict[str, bytes], **how: Any) -> Repository:
        """Put files into a new repository, as if somebody had pushed them."""
        repository = self.create(name, **how)
        contents = {}
        for path, data in files.items():
            if path.endswith(LARGE):
                sha = hashlib.sha256(data).hexdigest()
                (self.store / sha).write_bytes(data)
                data = pointer(sha, len(data))
            contents[path] = data
        repository.commit("main", repository.resolve("main"), "files", contents)
        return repository

    def publish_sparse(self, name: str, files: dict[str, tuple[bytes, int]]) -> Repository:
        """Add large files of which only the beginning exists: the rest are holes on the disk."""
        repository = self.repositories[name]
        contents = {}
        for path, (start, size) in files.items():
            sha = hashlib.sha256(start + path.encode()).hexdigest()  # nobody will check it
            with (self.store / sha).open("wb") as file:
                file.write(start)
                file.truncate(size)
            contents[path] = pointer(sha, size)
        repository.commit("main", repository.resolve("main"), "large files", contents)
        return repository

    def fail(self, method: str, path: str, status: int = 0, **more: Any) -> Fault:
        fault = Fault(method, path, status, **more)
        self.faults.append(fault)
        return fault

    def seen(self, method: str = "", path: str = "", origin: str = "") -> list[Request]:
        return [
            request
            for request in self.requests
            if method in request.method and re.search(path, request.path)
            if origin in request.origin
        ]

    def content(self, sha256: str) -> Path | None:
        """Return an object's file; one that came through Xet is put together when asked for."""
        file = self.store / sha256
        if not file.exists() and (found := self.xet_files().get(sha256)):
            _from_xet(self.xet, *found, file)
        return file if file.exists() else None

    def xet_files(self) -> dict[str, tuple[str, int]]:
        """Return the Xet hash and the size of every file in the Xet store, by its sha256."""
        found: dict[str, tuple[str, int]] = {}
        for shard in self.xet.glob("xet/xorbs/shards/*.mdb"):
            found |= _shard_files(shard.read_bytes())
        return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    origin: str

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        split = urlsplit(self.path)
        self.route, self.query = split.path, parse_qs(split.query)
        authorization = self.headers.get("Authorization", "")
        token = authorization.removeprefix("Bearer ") or None
        self.request_log = Request(self.origin, self.command, self.path, token)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = (
            self.read_chunked()
            if "chunked" in self.headers.get("Transfer-Encoding", "")
            else self.rfile.read(length)
        )
        if self.body is None or ("Content-Length" in self.headers and len(self.body) < length):
            self.close_connection = True  # whoever sent it has gone in the middle of it
            return
        self.request_log.received = len(self.body)
        with self.hub.lock:
            self.hub.requests.append(self.request_log)
            self.fault = self.take_fault()
        if self.fault:
            time.sleep(self.fault.delay)
        if self.fault and not self.fault.after and self.fault.bytes is None:
            if not self.fault.status:
                self.close_connection = True
                return
            self.refuse(Refusal(self.fault.status, self.fault.message, **self.fault.headers))
            return
        try:
            with self.hub.lock:
                self.user = self.who(token)
                answers = store_routes(self) if self.origin == "store" else hub_routes(self)
        except Refusal as refusal:
            self.refuse(refusal)
            return
        if self.fault and self.fault.after:
            self.close_connection = True
            return
        self.reply(*answers)

    def read_chunked(self) -> bytes | None:
        """Return a body that came in chunks; None if it broke off before the last one."""
        data = b""
        while line := self.rfile.readline().strip():
            size = int(line, 16)
            data += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                return data
        return None

    def take_fault(self) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times and fault.method == self.command and re.search(fault.path, self.path):
                fault.times -= 1
                return fault
        return None

    def who(self, token: str | None) -> str | None:
        if token is None:
            return None
        if token not in self.hub.tokens:
            message = "Invalid credentials in Authorization header"
            raise Refusal(401, message, **{"X-Error-Message": message})
        return self.hub.tokens[token]

    def refuse(self, refusal: Refusal) -> None:
        headers = dict(refusal.headers)
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        headers.setdefault("X-Error-Message", refusal.message)
        self.reply(refusal.status, {"error": refusal.message}, headers)

    def reply(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.request_log.status = status
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.bytes is not None:
            data, self.close_connection = data[: self.fault.bytes], True
        self.request_log.sent = len(data)
        self.wfile.write(data)

    def json(self) -> Any:
        return json.loads(self.body)

    def repository(self, name: str, *, write: bool = False) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.user != repository.owner):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and self.user != repository.owner:
            raise Refusal(403 if self.user else 401, "You don't have the rights to write here")
        return repository

    def commit_of(self, repository: Repository, revision: str) -> str:
        if (commit := repository.resolve(unquote(revision))) is None:
            raise Refusal(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return commit


def hub_routes(asked: Handler) -> tuple[Any, ...]:
    """Answer a request to the Hub itself; revisions stay quoted in the raw path."""
    for method, pattern, handle in ROUTES:
        if asked.command in method and (match := re.fullmatch(pattern, asked.route)):
            return handle(asked, *match.groups())
    raise Refusal(404, f"no route for {asked.command} {asked.route}")


def create_repo(asked: Handler) -> tuple[Any, ...]:
    choice = asked.json()
    owner = choice.get("organization") or asked.user
    name = f"{owner}/{choice['name']}"
    if asked.user is None:
        raise Refusal(401, "Invalid username or password.")
    if name in asked.hub.repositories:
        return 409, {"error": "You already created this model repo", "url": address(asked, name)}
    if owner != asked.user:
        raise Refusal(403, f"You don't have the rights to create a model under {owner}")
    private = choice.get("private") or choice.get("visibility") == "private"
    asked.hub.create(name, private=bool(private))
    return 200, {"url": address(asked, name), "name": name}


def model_info(asked: Handler, name: str, revision: str = "main") -> tuple[Any, ...]:
    repository = asked.repository(name)
    commit = asked.commit_of(repository, revision)
    readme = repository.entry(commit, "README.md")
    text = repository.blob(readme.oid).decode() if readme else ""
    card = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
    about = {
        "id": name,
        "modelId": name,
        "sha": commit,
        "private": repository.private,
        "gated": "manual" if repository.gated else False,
        "cardData": card,
        "siblings": [{"rfilename": entry.path} for entry in repository.entries(commit)],
    }
    return 200, about


def tree(asked: Handler, name: str, revision: str) -> tuple[Any, ...]:
    repository = asked.repository(name)
    entries = repository.entries(asked.commit_of(repository, revision))
    return 200, [
        {"type": "file", "path": entry.path, "oid": entry.oid, "size": entry.size}
        | ({"lfs": {"oid": entry.lfs, "size": entry.size, "pointerSize": 130}} if entry.lfs else {})
        for entry in entries
    ]


def preupload(asked: Handler, name: str, revision: str) -> tuple[Any, ...]:
    pull = "create_pr" in asked.query
    repository = asked.repository(name, write=not pull)
    there = {e.path: e for e in repository.entries(asked.commit_of(repository, revision))}
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            "shouldIgnore": False,
            "oid": (old.lfs or old.oid) if (old := there.get(file["path"])) else None,
        }
        for file in asked.json()["files"]
    ]
    return 200, {"files": files}


def lfs_batch(asked: Handler, name: str) -> tuple[Any, ...]:
    asked.repository(name)
    if asked.user is None:
        raise Refusal(401, "a token is needed")
    objects = []
    for wanted in asked.json()["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        answer: dict[str, Any] = {"oid": oid, "size": size}
        if asked.hub.content(oid) is None:
            href = f"{asked.hub.store_url}/objects/{oid}"
            verify = {"href": f"{asked.hub.url}/{name}.git/info/lfs/verify"}
            upload: dict[str, Any] = {"href": href}
            if size > PART:
                parts = range(1, -(-size // PART) + 1)
                header = {f"{part:05d}": f"{href}/{part}" for part in parts}
                complete = f"{asked.hub.url}/{name}.git/info/lfs/complete/{oid}"
                upload = {"href": complete, "header": header | {"chunk_size": str(PART)}}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    return 200, {"transfer": "basic", "objects": objects}


def lfs_complete(asked: Handler, _name: str, oid: str) -> tuple[Any, ...]:
    parts = asked.json()["parts"]
    files = [asked.hub.store / f"{oid}.{part['partNumber']}" for part in parts]
    data = b"".join(file.read_bytes() for file in files)
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refusal(400, "the parts are not the object")
    (asked.hub.store / oid).write_bytes(data)
    for file in files:
        file.unlink()
    return 200, {}


def lfs_verify(asked: Handler, _name: str) -> tuple[Any, ...]:
    file = asked.hub.store / asked.json()["oid"]
    if not file.exists() or file.stat().st_size != asked.json()["size"]:
        raise Refusal(404, "no such object")
    return 200, {}


def commit(asked: Handler, name: str, revision: str) -> tuple[Any, ...]:
    pull = "create_pr" in asked.query
    repository = asked.repository(name, write=not pull)
    if asked.user is None:
        raise Refusal(401, "a token is needed")
    parent = asked.commit_of(repository, revision)
    files: dict[str, bytes] = {}
    deleted: list[str] = []
    header: dict[str, Any] = {}
    for line in asked.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        match item["key"]:
            case "header":
                header = value
            case "file":
                files[value["path"]] = base64.b64decode(value["content"])
            case "lfsFile":
                known = asked.hub.xet_files() if asked.hub.xet.exists() else {}
                if not (asked.hub.store / value["oid"]).exists() and value["oid"] not in known:
                    raise Refusal(
                        400, f"LFS pointer pointed to a file that does not exist: {value}"
                    )
                files[value["path"]] = pointer(value["oid"], value["size"])
            case "deletedFile":
                deleted.append(value["path"])
    if header.get("parentCommit") not in (None, parent):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    ref, more = unquote(revision), {}
    if pull:
        repository.pulls += 1
        ref = f"refs/pr/{repository.pulls}"
        more["pullRequestUrl"] = f"{address(asked, name)}/discussions/{repository.pulls}"
    oid = repository.commit(ref, parent, header["summary"], files, tuple(deleted))
    url = f"{address(asked, name)}/commit/{oid}"
    return 200, {"success": True, "commitOid": oid, "commitUrl": url} | more


def branch(asked: Handler, name: str, revision: str) -> tuple[Any, ...]:
    repository = asked.repository(name, write=True)
    if repository.resolve(unquote(revision)):
        return 409, {"error": f"Reference already exists: refs/heads/{unquote(revision)}"}
    start = asked.commit_of(repository, asked.json().get("startingPoint") or "main")
    repository.git("update-ref", f"refs/heads/{unquote(revision)}", start)
    return 200, {}


def validate_yaml(asked: Handler) -> tuple[Any, ...]:
    text = asked.json()["content"]
    try:
        card = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
    except yaml.YAMLError as error:
        return 400, {"errors": [{"message": str(error)}], "warnings": []}
    base = (card or {}).get("base_model")
    if isinstance(base, str) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base):
        message = '"base_model" with value "' + base + '" is not valid. Use a model id'
        return 400, {"errors": [{"message": message}], "warnings": []}
    return 200, {"errors": [], "warnings": []}


def xet_token(asked: Handler, name: str, kind: str) -> tuple[Any, ...]:
    asked.repository(name, write=kind == "write" and "create_pr" not in asked.query)
    store, expires = f"local://{asked.hub.xet}", str(int(time.time()) + 3600)
    headers = {
        "X-Xet-Cas-Url": store,
        "X-Xet-Access-Token": "xet",
        "X-Xet-Token-Expiration": expires,
    }
    return 200, {"casUrl": store, "accessToken": "xet", "exp": int(expires)}, headers


def resolve(asked: Handler, name: str, revision: str, path: str) -> tuple[Any, ...]:
    repository = asked.repository(name)
    commit = asked.commit_of(repository, revision)
    if repository.gated and asked.user not in (repository.owner, *repository.readers):
        raise Refusal(403, f"Access to model {name} is restricted", "GatedRepo")
    entry = repository.entry(commit, unquote(path))
    if entry is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", **{"X-Repo-Commit": commit})
    headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    if entry.lfs is None:
        blob = io.BytesIO(repository.blob(entry.oid))
        return ranged(asked, blob, headers | {"ETag": f'"{entry.oid}"'})
    headers |= {
        "X-Linked-Etag": f'"{entry.lfs}"',
        "X-Linked-Size": str(entry.size),
        "Location": f"{asked.hub.store_url}/objects/{entry.lfs}",
    }
    if entry.lfs in (files := asked.hub.xet_files()):
        route = f"{asked.hub.url}/api/models/{name}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": files[entry.lfs][0], "X-Xet-Refresh-Route": route}
    return 302, b"", headers


def store_routes(asked: Handler) -> tuple[Any, ...]:
    """Answer a request to the store, which knows no tokens: its addresses are the permission."""
    match = re.fullmatch(r"/objects/([0-9a-f]{64})(?:/(\d+))?", asked.route)
    if match is None:
        raise Refusal(404, "no such object")
    oid, part = match.groups()
    if asked.command == "PUT":
        if part is None and hashlib.sha256(asked.body).hexdigest() != oid:
            raise Refusal(400, "the content is not the object")
        (asked.hub.store / (f"{oid}.{part}" if part else oid)).write_bytes(asked.body)
        return 200, b"", {"ETag": f'"{hashlib.md5(asked.body).hexdigest()}"'}
    if (file := asked.hub.content(oid)) is None:
        raise Refusal(404, "no such object")
    with file.open("rb") as data:
        return ranged(asked, data, {"ETag": f'"{oid}"'})


def ranged(asked: Handler, data: BinaryIO, headers: dict[str, str]) -> tuple[Any, ...]:
    size = data.seek(0, 2)
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.headers.get("Range", ""))
    start, stop = (int(match[1]), int(match[2] or size - 1) + 1) if match else (0, size)
    stop = min(stop, size)
    if match and start >= size:
        raise Refusal(416, "range not satisfiable")
    data.seek(start)
    body = data.read(stop - start)
    if match is None:
        return 200, body, headers
    return 206, body, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}


def address(asked: Handler, name: str) -> str:
    return f"{asked.hub.url}/{name}"


NAME, REVISION = r"([\w.-]+/[\w.-]+)", r"([^/]+)"
ROUTES = (
    ("POST", "/api/repos/create", create_repo),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("GET", f"/api/models/{NAME}", model_info),
    ("GET", f"/api/models/{NAME}/revision/{REVISION}", model_info),
    ("GET", f"/api/models/{NAME}/tree/{REVISION}", tree),
    ("POST", f"/api/models/{NAME}/preupload/{REVISION}", preupload),
    ("POST", f"/api/models/{NAME}/commit/{REVISION}", commit),
    ("POST", f"/api/models/{NAME}/branch/{REVISION}", branch),
    ("GET", f"/api/models/{NAME}/xet-(read|write)-token/[^/]+", xet_token),
    ("POST", rf"/{NAME[:-1]}?)\.git/info/lfs/objects/batch", lfs_batch),
    ("POST", rf"/{NAME[:-1]}?)\.git/info/lfs/complete/([0-9a-f]+)", lfs_complete),
    ("POST", rf"/{NAME[:-1]}?)\.git/info/lfs/verify", lfs_verify),
    ("GET HEAD", f"/{NAME}/resolve/{REVISION}/(.+)", resolve),
)


def _serve(hub: HubServer, origin: str) -> ThreadingHTTPServer:
    handler = type("Bound", (Handler,), {"hub": hub, "origin": origin})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _shard_files(data: bytes) -> dict[str, tuple[str, int]]:
    """Read the files of a Xet shard: records of 48 bytes, a header before those of each file.

    The layout is that of xet-core's `mdb_shard`: after the shard's own header, per file its hash,
    flags and number of segments, the segments, as many verifications (flag 2³¹) and the sha256
    (flag 2³⁰); a hash of ones ends the list. Hashes are written as little-endian words.
    """
    found: dict[str, tuple[str, int]] = {}
    at = 48
    while data[at : at + 32] != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", data, at + 32)
        segments = at + 48
        size = sum(struct.unpack_from("<I", data, segments + 48 * i + 36)[0] for i in range(count))
        after = segments + 48 * count * (2 if flags & 1 << 31 else 1)
        if flags & 1 << 30:
            found[_words(data[after : after + 32])] = (_words(data[at : at + 32]), size)
            after += 48
        at = after
    return found


def _words(data: bytes) -> str:
    return "".join(data[i : i + 8][::-1].hex() for i in range(0, 32, 8))


def _from_xet(store: Path, file_hash: str, size: int, out: Path) -> None:
    """Let the real Xet client put a file together, in a process of its own: one opens the store."""
    code = (
        "import hf_xet, sys; store, name, size, out = sys.argv[1:]\n"
        "with hf_xet.XetSession().new_file_download_group(endpoint='local://' + store, "
        "token='xet', token_expiry_unix_secs=1 << 40) as group:\n"
        "    group.start_download_file(hf_xet.XetFileInfo(name, int(size)), out)\n"
    )
    command = [sys.executable, "-c", code, str(store), file_hash, str(size), str(out)]
    subprocess.run(command, check=True, timeout=120)
