"""What the Hub's client raises: tried again where that may help, explained where it does not."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2  # what huggingface_hub speaks with: its errors pass through
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from lora_tools.errors import HubError, LoraToolsError
from lora_tools.hub.address import page

Result = TypeVar("Result")

PASSING = (408, 429, 500, 502, 503, 504)
"""Answers that another try may better."""

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try of what the client itself tries once."""

LONGEST = 60.0
"""Seconds that a server may ask to wait before a try is given up."""


def patiently(call: Callable[[], Result]) -> Result:
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
def explained(
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
            return HubError(f"{where}: {error}").hint("Fix the YAML at the top of README.md.")
        case RuntimeError(__cause__=Exception() as cause):  # an upload's, around what it met
            return _explain(cause, repo, revision, file, token)
        case RuntimeError() | OSError():
            return HubError(f"{where}: {_reason(error)}").hint("Run it again to resume.")
    return None


def _refused(error: HfHubHTTPError, where: str, *, known: bool, login: str) -> HubError:
    status = _status(error)
    message = (error.server_message or "").strip()
    tail = f" ({message})" if message else ""
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
