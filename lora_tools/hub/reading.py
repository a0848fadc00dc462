"""Reading from the Hub: a commit's files, whole ones by way of the cache, and parts of them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import httpx2  # what huggingface_hub speaks with
from huggingface_hub import (
    DeleteCacheStrategy,
    HfApi,
    constants,
    get_session,
    hf_hub_download,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, disable_progress_bars

from lora_tools.errors import HubError
from lora_tools.hub.errors import explained, patiently


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a repository."""

    size: int
    oid: str
    """Git's SHA-1; of a large file, that of its pointer."""
    sha256: str | None
    """Of a large file's content."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository at one commit: nothing in it changes any more."""

    repo: str
    commit: str
    files: Mapping[str, Blob] = field(compare=False, repr=False)
    openings: Counter[str] = field(default_factory=Counter, compare=False, repr=False)
    """How often each file was opened to be read by ranges."""
    partial: bool = False
    """Whether the Hub could not be asked, so that only what is in the cache is listed."""

    @property
    def folder(self) -> Path:
        """Where the cache keeps, or would keep, its files, as the client's manual describes it."""
        name = f"models--{self.repo.replace('/', '--')}"
        return Path(constants.HF_HUB_CACHE, name, "snapshots", self.commit)

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.commit}"


@cache  # one command sees one commit, however often it names the repository
def snapshot(repo: str, revision: str | None = None) -> Snapshot:
    """Pin a revision to its commit and list that commit's files; offline, what the cache has."""
    api = HfApi()
    with explained(repo, revision):
        commit = patiently(lambda: api.resolve_revision(repo, revision=revision)).resolved
        try:
            files = patiently(lambda: listed(api, repo, commit))
        except (OfflineModeIsEnabled, httpx2.TransportError):
            if not (files := _kept(Snapshot(repo, commit, {}))):
                raise
            return Snapshot(repo, commit, files, partial=True)
    return Snapshot(repo, commit, files)


def fetch(of: Snapshot, file: str) -> Path:
    """Return a file in the cache, downloaded now if it is not there yet."""
    if (path := of.folder / file).exists():  # as often as a tensor of it is read
        return path
    with explained(of.repo, of.commit, file):
        return Path(patiently(lambda: hf_hub_download(of.repo, filename=file, revision=of.commit)))


def is_cached(of: Snapshot, file: str) -> bool:
    """Whether a file's content is in the cache, of this commit or of another."""
    blob = of.files[file]
    content = of.folder.parents[1] / "blobs" / (blob.sha256 or blob.oid or ".")
    return (of.folder / file).exists() or content.is_file()


def read_range(of: Snapshot, file: str, start: int, stop: int) -> bytes:
    """Return ``file[start:stop]`` without downloading the file."""
    if start >= stop:
        return b""
    url = hf_hub_url(of.repo, file, revision=of.commit)
    headers = build_hf_headers() | {
        "Range": f"bytes={start}-{stop - 1}",
        "Accept-Encoding": "identity",
    }

    def get() -> bytes:
        with get_session().stream("GET", url, headers=headers, timeout=30) as response:
            hf_raise_for_status(response)
            skip = 0 if response.status_code == 206 else start  # a server that ignores ranges
            data = bytearray()
            for chunk in response.iter_raw():
                data += chunk
                if len(data) >= skip + stop - start:
                    break
            return bytes(data[skip : skip + stop - start])

    with explained(of.repo, of.commit, file):
        data = patiently(get)
    if len(data) != stop - start:
        raise HubError(f"{of}/{file}: {len(data)} bytes came where {stop - start} were asked for")
    return data


def evict(of: Snapshot, file: str) -> None:
    """Remove a file from the cache, with its content unless other repositories share it."""
    path = of.folder / file
    content = [path.parent / path.readlink()] if path.is_symlink() else []
    # Made here: the client makes it from a scan of the whole cache, which would be one per file.
    DeleteCacheStrategy(
        expected_freed_size=0,
        blobs=frozenset(content),
        refs=frozenset(),
        repos=frozenset(),
        snapshots=frozenset(),
        files=frozenset([path]),
        cache_dir=Path(constants.HF_HUB_CACHE),
    ).execute()


def hide_progress() -> None:
    """Show no progress bars."""
    disable_progress_bars()


def listed(api: HfApi, repo: str, revision: str | None) -> dict[str, Blob]:
    """Return the files of a revision, as a client that may read them sees them."""
    entries = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {
        entry.path: Blob(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
        for entry in entries
        if isinstance(entry, RepoFile)
    }


def _kept(of: Snapshot) -> dict[str, Blob]:
    """Return the files of a snapshot that the cache has."""
    return {
        str(path.relative_to(of.folder)): Blob(path.stat().st_size, "", None)
        for path in sorted(of.folder.rglob("*"))
        if path.is_file()
    }
