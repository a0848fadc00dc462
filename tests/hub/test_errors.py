"""The Hub's client: what its errors become, and which pass as they are."""

import pytest
from huggingface_hub import HfApi

from lora_tools.errors import HubError
from lora_tools.hub.reading import snapshot


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(HfApi, "resolve_revision", fail)


@pytest.mark.parametrize("error", [KeyError("a bug"), TypeError("another"), ValueError("a third")])
def test_an_error_that_is_not_known_passes_as_it_is(monkeypatch, error):
    failing(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        snapshot("org/name")
    assert caught.value is error


def test_one_that_is_known_is_explained_and_kept_as_the_cause(monkeypatch):
    error = ConnectionError("no network")
    failing(monkeypatch, error)
    with pytest.raises(HubError, match=r"hf://org/name: the Hub cannot be reached") as caught:
        snapshot("org/name")
    assert caught.value.__cause__ is error
