"""A repository of the loopback Hub: a real bare git repository, driven by git itself."""

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

POINTER = re.compile(
    rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n"
)
PERSON = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "Hub"), ("EMAIL", "hub@example.org"))
}


class Entry(NamedTuple):
    path: str
    oid: str
    size: int
    lfs: str | None  # sha256 of the content that a pointer stands for


def pointer(sha256: str, size: int) -> bytes:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return text.encode()


@dataclass
class Repository:
    folder: Path
    owner: str
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)  # who accepted a gated one's conditions
    pulls: int = 0

    def git(self, *arguments: str, data: bytes | None = None, **env: str) -> bytes:
        command = ["git", "--git-dir", str(self.folder), *arguments]
        return subprocess.run(
            command, input=data, check=True, capture_output=True, env=os.environ | PERSON | env
        ).stdout

    def create(self) -> None:
        subprocess.run(
            ["git", "init", "--quiet", "--bare", "--initial-branch=main", str(self.folder)],
            check=True,
        )
        self.commit("main", None, "initial commit", {".gitattributes": b"*.bin filter=lfs\n"})

    def resolve(self, revision: str) -> str | None:
        names = [revision] if revision.startswith("refs/") else [f"refs/heads/{revision}"]
        if re.fullmatch("[0-9a-f]{40}", revision):
            names = [f"{revision}^{{commit}}"]
        for name in names:
            try:
                return self.git("rev-parse", "--verify", "--quiet", name).decode().strip()
            except subprocess.CalledProcessError:
                continue
        return None

    def entries(self, commit: str) -> list[Entry]:
        found = []
        for line in self.git("ls-tree", "-r", "-l", "-z", commit).decode().split("\0")[:-1]:
            about, _, path = line.partition("\t")
            _, _, oid, size = about.split()
            match = POINTER.fullmatch(self.blob(oid)) if int(size) < 200 else None
            if match:
                found.append(Entry(path, oid, int(match[2]), match[1].decode()))
            else:
                found.append(Entry(path, oid, int(size), None))
        return found

    def entry(self, commit: str, path: str) -> Entry | None:
        return next((entry for entry in self.entries(commit) if entry.path == path), None)

    def blob(self, oid: str) -> bytes:
        return self.git("cat-file", "blob", oid)

    def log(self, revision: str = "main") -> list[str]:
        return self.git("log", "--format=%s", self.resolve(revision) or "").decode().splitlines()

    def commit(
        self,
        ref: str,
        parent: str | None,
        message: str,
        files: dict[str, bytes],
        deleted: tuple[str, ...] = (),
    ) -> str:
        name = hashlib.sha1(f"{ref}{parent}{message}".encode()).hexdigest()
        index = {"GIT_INDEX_FILE": str(self.folder / f"index-{name}")}
        self.git("read-tree", *([parent] if parent else ["--empty"]), **index)
        lines = b""
        for path, content in files.items():
            oid = self.git("hash-object", "-w", "--stdin", data=content).decode().strip()
            lines += f"100644 {oid}\t{path}\0".encode()
        for path in deleted:
            lines += f"0 {'0' * 40}\t{path}\0".encode()
        self.git("update-index", "-z", "--index-info", data=lines, **index)
        tree = self.git("write-tree", **index).decode().strip()
        parents = ["-p", parent] if parent else []
        commit = self.git("commit-tree", tree, *parents, data=message.encode()).decode().strip()
        full = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
        self.git("update-ref", full, commit)
        Path(index["GIT_INDEX_FILE"]).unlink(missing_ok=True)
        return commit
