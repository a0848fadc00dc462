"""Addresses on the Hub: what somebody writes for a repository, and the page that shows it."""

from dataclasses import dataclass

from huggingface_hub import constants, parse_hf_uri
from huggingface_hub.errors import HfUriError

from lora_tools.errors import HubError


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository, a revision and a file or folder in it, as somebody wrote them."""

    repo: str
    revision: str | None = None
    file: str = ""


def parse(text: str) -> HubAddress:
    """Parse ``hf://org/name[@revision][/path]`` or the address of a page of the Hub."""
    try:
        uri = parse_hf_uri(text, constants.ENDPOINT)
    except HfUriError as error:
        raise HubError(f"{text}: not an address on the Hub ({error})").hint(
            "Write hf://org/name, hf://org/name@revision or hf://org/name@revision/file."
        ) from error
    if uri.type != "model":
        raise HubError(f"{text}: a {uri.type}; adapters and models are in model repositories")
    return HubAddress(uri.id, uri.revision, uri.path_in_repo)


def page(repo: str, revision: str | None = None) -> str:
    """Return the address of a repository's page."""
    return f"{constants.ENDPOINT}/{repo}" + (f"/tree/{revision}" if revision else "")
