"""The Hugging Face Hub, as lora-tools needs it; the only import of huggingface_hub."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2  # what huggingface_hub speaks with: its errors pass through
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    constants,
    get_token,
    hf_hub_download,
    hf_hub_url,
    parse_hf_uri,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HfUriError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status, http_stream_backoff
from huggingface_hub.utils._runtime import is_xet_available
from huggingface_hub.utils._shared_blobs import sweep_shared_blob
from huggingface_hub.utils.tqdm import disable_progress_bars

from lora_tools.errors import HubError, LoraToolsError

Result = TypeVar("Result")

PASSING = (408, 429, 500, 502, 503, 504)
"""Answers that another try may better."""

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try of what the client itself tries once."""

LONGEST = 60.0
"""Seconds that a server may ask to wait before a try is given up."""


@dataclass(frozen=True, slots=True)
class Address:
    """A repository, a revision and a file or folder in it, as somebody wrote them."""

    repo: str
    revision: str | None = None
    file: str = ""


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
    files: Mapping[str, Blob]
    openings: Counter[str] = field(default_factory=Counter, compare=False, repr=False)
    """How often each file was opened to be read by ranges."""
    partial: bool = False
    """Whether the Hub could not be asked, so that only what is in the cache is listed."""

    @property
    def folder(self) -> Path:
        """Where the cache keeps, or would keep, its files."""
        name = repo_folder_name(repo_id=self.repo, repo_type="model")
        return Path(constants.HF_HUB_CACHE) / name / "snapshots" / self.commit

    def __str__(self) -> str:
        return f"hf://{self.repo}@{self.commit}"


def parse(text: str) -> Address:
    """Parse ``hf://org/name[@revision][/path]`` or the address of a page of the Hub."""
    try:
        uri = parse_hf_uri(text, constants.ENDPOINT)
    except HfUriError as error:
        raise HubError(f"{text}: not an address on the Hub ({error})").hint(
            "Write hf://org/name, hf://org/name@revision or hf://org/name@revision/file."
        ) from error
    if uri.type != "model":
        raise HubError(f"{text}: a {uri.type}; adapters and models are in model repositories")
    return Address(uri.id, uri.revision, uri.path_in_repo)


def snapshot(repo: str, revision: str | None = None) -> Snapshot:
    """Pin a revision to its commit and list that commit's files; offline, what the cache has."""
    api = HfApi()
    with _explained(repo, revision):
        commit = _patiently(lambda: api.resolve_revision(repo, revision=revision)).resolved
        try:
            files = _patiently(lambda: _files(api, repo, commit))
        except (OfflineModeIsEnabled, httpx2.TransportError):
            if not (files := _kept(Snapshot(repo, commit, {}))):
                raise
            return Snapshot(repo, commit, files, partial=True)
    return Snapshot(repo, commit, files)


def fetch(of: Snapshot, file: str) -> Path:
    """Return a file in the cache, downloaded now if it is not there yet."""
    if (path := of.folder / file).exists():  # as often as a tensor of it is read
        return path
    with _explained(of.repo, of.commit, file):
        return Path(_patiently(lambda: hf_hub_download(of.repo, filename=file, revision=of.commit)))


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
        with http_stream_backoff("GET", url, headers=headers, timeout=30) as response:
            hf_raise_for_status(response)
            skip = 0 if response.status_code == 206 else start
            data = bytearray()
            for chunk in response.iter_raw():
                data += chunk
                if len(data) >= skip + stop - start:
                    break
            return bytes(data[skip : skip + stop - start])

    with _explained(of.repo, of.commit, file):
        data = _patiently(get)
    if len(data) != stop - start:
        raise HubError(f"{of}/{file}: {len(data)} bytes came where {stop - start} were asked for")
    return data


def evict(of: Snapshot, file: str) -> None:
    """Remove a file from the cache, with its content unless other repositories share it."""
    path = of.folder / file
    if path.is_symlink():  # to its content, which may be a link again
        content = path.parent / path.readlink()
        path.unlink()
        path = content
    shared = path.parent / path.readlink() if path.is_symlink() else None
    path.unlink(missing_ok=True)
    if shared is not None:
        sweep_shared_blob(shared, cache_dir=constants.HF_HUB_CACHE)


def hide_progress() -> None:
    """Show no progress bars."""
    disable_progress_bars()


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that is on the Hub."""

    oid: str
    url: str
    pull_request: str | None = None


@dataclass(frozen=True, slots=True)
class Commission:
    """What is to be committed, and where."""

    repo: str
    files: Mapping[str, "Path | bytes"]
    sha256: Mapping[str, str]
    message: str
    description: str = ""
    revision: str | None = None
    create_pr: bool = False


@dataclass(frozen=True, slots=True)
class Publisher:
    """Somebody who may write: the owner of a token, given or stored."""

    token: str | None = field(default=None, repr=False)

    @property
    def _api(self) -> HfApi:
        return HfApi(token=self.token)

    def check(self) -> None:
        """Raise `HubError` if there is no token."""
        if not (self.token or get_token()):
            raise HubError("publishing needs a token, and there is none").hint(
                LOGIN.format(constants.ENDPOINT)
            )

    def is_private(self, repo: str) -> bool | None:
        """Whether a repository is private; None if there is none that the token can see."""
        try:
            with _explained(repo, token=self.token):
                return bool(_patiently(lambda: self._api.model_info(repo)).private)
        except HubError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError) and not isinstance(
                error.__cause__, GatedRepoError
            ):
                return None
            raise

    def files(self, repo: str, revision: str | None = None) -> dict[str, Blob] | None:
        """Return the files of a revision, or None if there is no such revision."""
        try:
            with _explained(repo, revision, token=self.token):
                return _patiently(lambda: _files(self._api, repo, revision))
        except HubError as error:
            if isinstance(error.__cause__, RevisionNotFoundError):
                return None
            raise

    def head(self, repo: str, revision: str | None = None) -> str:
        """Return the commit that a revision is at now."""
        with _explained(repo, revision, token=self.token):
            return str(_patiently(lambda: self._api.model_info(repo, revision=revision)).sha)

    def read(self, repo: str, file: str, revision: str | None = None) -> bytes:
        """Return the content of a small file as it is now."""
        with _explained(repo, revision, file, token=self.token):
            path = _patiently(
                lambda: hf_hub_download(
                    repo, filename=file, revision=revision, token=self.token or None
                )
            )
        return Path(path).read_bytes()

    def create(self, repo: str, *, private: bool) -> str:
        """Create a repository and return its name as the Hub has it."""
        with _explained(repo, token=self.token):
            url = _patiently(
                lambda: self._api.create_repo(
                    repo, visibility="private" if private else "public", exist_ok=True
                )
            )
        return str(url.repo_id)

    def branch(self, repo: str, name: str) -> None:
        """Create a branch from main unless it is there."""
        with _explained(repo, name, token=self.token):
            _patiently(lambda: self._api.create_branch(repo, branch=name, exist_ok=True))

    def commit(self, wish: Commission, arrived: Callable[[], str | None]) -> Commit:
        """Upload the files and commit them at once, so that none is there without the others.

        ``arrived`` returns the commit that has them all, if there is one: after an answer that was
        lost, nothing else tells whether to try again.
        """
        operations = [CommitOperationAdd(name, content) for name, content in wish.files.items()]
        for operation in operations:
            operation.upload_info.sha256 = bytes.fromhex(wish.sha256[operation.path_in_repo])
        sent = 0

        def send() -> Commit:
            nonlocal sent
            sent += 1
            if sent > 1 and not wish.create_pr and (oid := arrived()):
                return Commit(oid, f"{constants.ENDPOINT}/{wish.repo}/commit/{oid}")
            if not is_xet_available():
                # Together they go in threads, for which the client waits even when interrupted.
                for operation in operations:
                    self._api.preupload_lfs_files(
                        wish.repo,
                        [operation],
                        revision=wish.revision,
                        create_pr=wish.create_pr,
                        free_memory=False,
                    )
            info = self._api.create_commit(
                wish.repo,
                operations,
                commit_message=wish.message,
                commit_description=wish.description,
                revision=wish.revision,
                create_pr=wish.create_pr,
            )
            return Commit(info.oid, info.commit_url, info.pr_url)

        with _explained(wish.repo, wish.revision, token=self.token):
            # A second try could open a second pull request.
            return send() if wish.create_pr else _patiently(send)

    def license(self, repo: str) -> dict[str, str] | None:
        """Return what a repository's card says of its license; None if it may not be read.

        Raises `HubError` if the Hub does not answer: the next call could return something else.
        """
        try:
            with _explained(repo, token=self.token):
                card = _patiently(lambda: self._api.model_info(repo)).card_data
        except HubError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                return None
            error.hint("Or pass --license ID: the Hub is not asked for it then.")
            raise
        names = ("license", "license_name", "license_link")
        found = {name: getattr(card, name, None) for name in names}
        return {name: value for name, value in found.items() if isinstance(value, str)}


def page(repo: str, revision: str | None = None) -> str:
    """Return the address of a repository's page."""
    return f"{constants.ENDPOINT}/{repo}" + (f"/tree/{revision}" if revision else "")


def _files(api: HfApi, repo: str, revision: str | None) -> dict[str, Blob]:
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


def _patiently(call: Callable[[], Result]) -> Result:
    """Call, and call again after what may pass: the client does so only for some of its calls."""
    for wait in WAITS:
        try:
            return call()
        except (HfHubHTTPError, httpx2.TransportError, RevisionResolutionError) as error:
            if not _passes(error):
                raise
            time.sleep(min(_asked(error) or wait, LONGEST))
    return call()


def _passes(error: BaseException | None) -> bool:
    """Whether another try may go better; a network that is not there does not come in seconds."""
    match error:
        case HfHubHTTPError():
            return _status(error) in PASSING
        case RevisionResolutionError():
            return _passes(error.__cause__)
        case httpx2.TimeoutException() | httpx2.RemoteProtocolError() | httpx2.ReadError():
            return True
    return isinstance(error, httpx2.WriteError)


def _status(error: HfHubHTTPError) -> int:
    return int(error.response.status_code) if error.response is not None else 0


def _asked(error: Exception) -> float | None:
    """Return the seconds that a server asked to wait."""
    response = getattr(error, "response", None)
    try:
        return float(response.headers["Retry-After"]) if response is not None else None
    except (KeyError, ValueError):
        return None


LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token from {}/settings/tokens."


@contextmanager
def _explained(
    repo: str, revision: str | None = None, file: str = "", *, token: str | None = None
) -> Iterator[None]:
    """Turn the client's errors into ones that say what is wrong and what to do about it."""
    try:
        yield
    except LoraToolsError:
        raise
    except Exception as error:  # of any of its libraries; what is not known is raised as it is
        if (found := _explain(error, repo, revision, file, token)) is None:
            raise
        raise found from error


def _explain(
    error: Exception, repo: str, revision: str | None, file: str, token: str | None
) -> HubError | None:
    where = f"hf://{repo}" + (f"@{revision}" if revision else "") + (f"/{file}" if file else "")
    known = bool(token or get_token())
    login = LOGIN.format(constants.ENDPOINT)
    match error:
        case GatedRepoError():
            return HubError(f"{where}: gated: its owner wants to know who reads it").hint(
                f"Accept the conditions at {page(repo)}"
                + (". " if known else f". {login} ")
                + "Then run the command again."
            )
        case RevisionNotFoundError():
            return HubError(f"hf://{repo}: has no revision {revision or 'main'}").hint(
                f"Its branches and tags are listed at {page(repo)}/tree/main."
            )
        case RepositoryNotFoundError():
            why = "or it is private and the token may not see it" if known else "or it is private"
            return HubError(f"hf://{repo}: no such repository, {why}").hint(
                "Check its name" + (" and the token's rights." if known else f". {login}")
            )
        case LocalEntryNotFoundError() | OfflineModeIsEnabled() | RevisionResolutionError():
            if constants.is_offline_mode():
                return HubError(f"{where}: not in the cache, and HF_HUB_OFFLINE is set").hint(
                    "Unset HF_HUB_OFFLINE, or download it where there is a network: "
                    f"`hf download {repo}`."
                )
            return HubError(f"{where}: the Hub cannot be reached ({_reason(error)})").hint(
                f"Check the network and HF_ENDPOINT ({constants.ENDPOINT})."
            )
        case EntryNotFoundError():
            return HubError(f"{where}: no such file in the repository")
        case HfHubHTTPError():
            return _refused(error, where, known=known, login=login)
        case httpx2.TransportError() | ConnectionError():
            return HubError(f"{where}: the Hub cannot be reached ({_reason(error)})").hint(
                f"Check the network and HF_ENDPOINT ({constants.ENDPOINT}), and run it again: "
                "what has arrived is not sent twice."
            )
        case HFValidationError():
            return HubError(f"{repo}: not the name of a repository ({error})")
        case ValueError() if "README.md" in str(error):
            return HubError(f"{where}: {error}").hint("Mend the YAML at the top of README.md.")
        case RuntimeError(__cause__=Exception() as cause):  # an upload's, around what it met
            return _explain(cause, repo, revision, file, token)
        case RuntimeError() | OSError():
            return HubError(f"{where}: {_reason(error)}").hint("Run it again to resume.")
    return None


def _refused(error: HfHubHTTPError, where: str, *, known: bool, login: str) -> HubError:
    status = _status(error)
    said = (error.server_message or "").strip()
    tail = f" ({said})" if said else ""
    match status:
        case 401:
            what = "the token is not valid" if known else "a token is needed"
            return HubError(f"{where}: {what}{tail}").hint(login)
        case 403:
            return HubError(f"{where}: the token may not do this{tail}").hint(
                f"Use a token with write access to it: {constants.ENDPOINT}/settings/tokens."
            )
        case 409 | 412:
            return HubError(f"{where}: somebody else changed it meanwhile{tail}").hint(
                "Run the command again."
            )
        case _ if status in PASSING:
            return HubError(f"{where}: the Hub answers {status} again and again{tail}").hint(
                "Run the command again later: what has arrived is not sent twice."
            )
    return HubError(f"{where}: the Hub answers {status}{tail}")


def _reason(error: Any) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].strip().rstrip(":")
