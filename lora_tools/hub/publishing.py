"""Publishing on the Hub: a repository, and one commit with all that belongs together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lora_tools.errors import HubError
from lora_tools.hub.errors import LOGIN, explained, patiently
from lora_tools.hub.reading import Blob, listed


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that is on the Hub."""

    oid: str
    url: str
    pull_request: str | None = None


@dataclass(frozen=True, slots=True)
class Upload:
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
            with explained(repo, token=self.token):
                return bool(patiently(lambda: self._api.model_info(repo)).private)
        except HubError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError) and not isinstance(
                error.__cause__, GatedRepoError
            ):
                return None
            raise

    def files(self, repo: str, revision: str | None = None) -> dict[str, Blob] | None:
        """Return the files of a revision, or None if there is no such revision."""
        try:
            with explained(repo, revision, token=self.token):
                return patiently(lambda: listed(self._api, repo, revision))
        except HubError as error:
            if isinstance(error.__cause__, RevisionNotFoundError):
                return None
            raise

    def head(self, repo: str, revision: str | None = None) -> str:
        """Return the commit that a revision is at now."""
        with explained(repo, revision, token=self.token):
            return str(patiently(lambda: self._api.model_info(repo, revision=revision)).sha)

    def read(self, repo: str, file: str, revision: str | None = None) -> bytes:
        """Return the content of a small file as it is now."""
        with explained(repo, revision, file, token=self.token):
            path = patiently(
                lambda: hf_hub_download(
                    repo, filename=file, revision=revision, token=self.token or None
                )
            )
        return Path(path).read_bytes()

    def create(self, repo: str, *, private: bool) -> str:
        """Create a repository and return its name as the Hub has it."""
        with explained(repo, token=self.token):
            url = patiently(
                lambda: self._api.create_repo(
                    repo, visibility="private" if private else "public", exist_ok=True
                )
            )
        return str(url.repo_id)

    def branch(self, repo: str, name: str) -> None:
        """Create a branch from main unless it is there."""
        with explained(repo, name, token=self.token):
            patiently(lambda: self._api.create_branch(repo, branch=name, exist_ok=True))

    def commit(self, choice: Upload, arrived: Callable[[], str | None]) -> Commit:
        """Upload the files and commit them at once, so that none is there without the others.

        ``arrived`` returns the commit that has them all, if there is one: after an answer that was
        lost, nothing else tells whether to try again.
        """
        operations = [CommitOperationAdd(name, content) for name, content in choice.files.items()]
        for operation in operations:
            operation.upload_info.sha256 = bytes.fromhex(choice.sha256[operation.path_in_repo])
        sent = 0

        def send() -> Commit:
            nonlocal sent
            sent += 1
            if sent > 1 and not choice.create_pr and (oid := arrived()):
                return Commit(oid, f"{constants.ENDPOINT}/{choice.repo}/commit/{oid}")
            if not _speaks_xet():
                # Together they go in threads, for which the client waits even when interrupted.
                for operation in operations:
                    self._api.preupload_lfs_files(
                        choice.repo,
                        [operation],
                        revision=choice.revision,
                        create_pr=choice.create_pr,
                        free_memory=False,
                    )
            info = self._api.create_commit(
                choice.repo,
                operations,
                commit_message=choice.message,
                commit_description=choice.description,
                revision=choice.revision,
                create_pr=choice.create_pr,
            )
            return Commit(info.oid, info.commit_url, info.pr_url)

        with explained(choice.repo, choice.revision, token=self.token):
            # A second try could open a second pull request.
            return send() if choice.create_pr else patiently(send)

    def license(self, repo: str) -> dict[str, str] | None:
        """Return what a repository's card says of its license; None if it may not be read.

        Raises `HubError` if the Hub does not answer: the next call could return something else.
        """
        try:
            with explained(repo, token=self.token):
                card = patiently(lambda: self._api.model_info(repo)).card_data
        except HubError as error:
            if isinstance(error.__cause__, RepositoryNotFoundError):
                return None
            error.hint("Or pass --license ID: the Hub is not asked for it then.")
            raise
        names = ("license", "license_name", "license_link")
        found = {name: getattr(card, name, None) for name in names}
        return {name: value for name, value in found.items() if isinstance(value, str)}


def _speaks_xet() -> bool:
    """Whether the client sends large files through Xet, as it does wherever it can."""
    return not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None
