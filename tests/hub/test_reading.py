"""Parts of files, from servers that do not do as they are asked."""

from collections.abc import Iterator

import httpx2
import pytest

from lora_tools.errors import HubError
from lora_tools.hub import reading
from lora_tools.hub.reading import Blob, Snapshot, read_range

CONTENT = bytes(range(256)) * 400
SNAPSHOT = Snapshot("bob/cat", "c" * 40, {"x.safetensors": Blob(len(CONTENT), "", None)})


@pytest.mark.parametrize(("start", "stop"), [(0, 1000), (5000, 6500), (99_000, len(CONTENT))])
def test_a_server_that_ignores_ranges_is_cut_off(start, stop, monkeypatch):
    sent = []

    def body() -> Iterator[bytes]:
        for place in range(0, len(CONTENT), 1000):
            sent.append(place)
            yield CONTENT[place : place + 1000]

    answering(monkeypatch, lambda _: httpx2.Response(200, content=body()))
    assert read_range(SNAPSHOT, "x.safetensors", start, stop) == CONTENT[start:stop]
    assert len(sent) <= stop // 1000 + 1


def test_a_short_answer_is_refused(monkeypatch):
    answering(monkeypatch, lambda _: httpx2.Response(206, content=iter([b"abc"])))
    with pytest.raises(HubError, match=r"x.safetensors: 3 bytes came where 10 were asked for"):
        read_range(SNAPSHOT, "x.safetensors", 20, 30)


def test_nothing_is_asked_for_nothing(monkeypatch):
    answering(monkeypatch, lambda _: pytest.fail("asked"))
    assert read_range(SNAPSHOT, "x.safetensors", 30, 30) == b""


def answering(monkeypatch: pytest.MonkeyPatch, answer) -> None:
    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    monkeypatch.setattr(reading, "get_session", lambda: client)
