import copy
import json
import re
import sys
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

import documents
import pytest

from lora_tools.errors import PackageError
from lora_tools.page import render

CASES = {
    "one": documents.document(["encoder.layer.0.attention.self.query"]),
    "language": documents.full(documents.language(), rank=64),
    "diffusion": documents.full(documents.diffusion()),
    "header": documents.document(documents.language(), spectrum=False),
    "empty": documents.document([], spectrum=False),
}


class Elements(HTMLParser):
    """All elements of a page with their attributes, and the text of its scripts and table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.texts.append((self.found[-1][0], data))

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


@pytest.fixture(scope="module", params=CASES)
def page(request: pytest.FixtureRequest) -> tuple[documents.Document, Elements]:
    return CASES[request.param], Elements(render(CASES[request.param]))


def test_the_same_document_makes_the_same_page_and_stays_as_it_is():
    before = copy.deepcopy(CASES["language"])
    assert render(CASES["language"]) == render(CASES["language"])
    assert before == CASES["language"]


def test_every_module_is_in_the_table(page: Any) -> None:
    document, elements = page
    rows = [attrs for tag, attrs in elements.found if tag == "th" and attrs.get("scope") == "row"]
    names = [attrs["data-value"] for attrs in rows if "data-value" in attrs]
    assert sorted(names) == sorted(module["module"] for module in document["modules"])


def test_the_table_begins_in_the_order_of_layers():
    names = [f"layers.{n}.q" for n in (10, 9, 2, 0)]
    elements = Elements(render(documents.document(names)))
    rows = [attrs.get("data-value") for tag, attrs in elements.found if tag == "th"]
    assert [row for row in rows if row] == names[::-1]


def test_nothing_is_loaded_from_elsewhere(page: Any) -> None:
    for tag, attrs in page[1].found:
        assert tag not in {"img", "iframe", "object", "embed", "base", "form"}
        for key, value in attrs.items():
            if key in {"src", "href", "srcset", "action", "data", "poster"}:
                assert (tag, value) == ("link", "data:,")
            assert not key.startswith("on")


def test_the_policy_allows_the_scripts_of_the_page_and_no_other(page: Any) -> None:
    policy = next(
        attrs["content"] or ""
        for tag, attrs in page[1].found
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules.pop("default-src") == "'none'"
    scripts = rules.pop("script-src").split()
    texts = [text for text in page[1].text("script") if text.strip() and text[0] != "{"]
    digests = [b64encode(sha256(text.encode()).digest()).decode() for text in texts]
    assert scripts == [f"'sha256-{digest}'" for digest in digests]
    assert rules == {
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_every_string_of_the_document_is_text():
    def spoil(value: Any) -> Any:
        match value:
            case str():
                return value + documents.HOSTILE
            case dict():
                return {key: spoil(item) for key, item in value.items()}
            case list():
                return [spoil(item) for item in value]
            case _:
                return value

    plain = documents.full(documents.language(2))
    harmless, hostile = Elements(render(plain)), Elements(render(spoil(plain)))
    kinds = [tag for tag, _ in harmless.found]
    assert sorted({tag for tag, _ in hostile.found}) == sorted(set(kinds))
    scripts = [elements.text("script") for elements in (harmless, hostile)]
    assert scripts[0][1:] == scripts[1][1:]
    data = json.loads(scripts[1][0])
    assert data["modules"][0]["name"] == plain["modules"][0]["module"] + documents.HOSTILE
    assert "49" not in hostile.text("h1")


def test_halves_of_surrogate_pairs_can_be_written():
    html = render(documents.document(["\ud800.0.q", "a\x00b\u2028.1.q"]))
    assert html.encode("utf-8").decode("utf-8") == html


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_numbers_that_are_none_are_dashes(value: float | None) -> None:
    document = documents.document(["a.0.q", "a.1.q"])
    document["modules"][0]["spectrum"] |= {"norm": value, "sigma_max": value, "sigma": None}
    elements = Elements(render(document))
    row = [attrs for tag, attrs in elements.found if tag == "td" and "data-value" in attrs]
    assert row[1]["data-value"] == ""
    assert json.loads(elements.text("script")[0])["modules"][0]["norm"] is None


def test_what_is_missing_is_said_in_words():
    header, none = render(CASES["header"]), render(CASES["empty"])
    assert "<code>--spectrum</code>" in header
    assert "Singular values were not computed" in header
    assert "no modules" in none
    assert "What a lower rank would cost" not in header


@pytest.mark.parametrize(
    "words",
    [
        "It uses alpha / r = 2 for all modules",
        "lora-tools shrink adapters/my-adapter OUT --rank 16 --for vllm",
        "loads at the wrong strength",
        "and 7 more",
        "1 problem",
        "rank 8 keeps 99.1 % of this adapter",
        "networks.lora",
        "2 modules without a weight",
        "is 4×8, <code>",
        "1 tensor: not understood, 524.3 MB",
        "the same as model.layers.0.self_attn.q_proj",
        "2.21 % of the base",
        "model.layers.[0..31].self_attn.q_proj",
    ],
)
def test_the_page_says(words: str) -> None:
    document = documents.full(documents.language())
    document["totals"]["base_params"] = round(document["totals"]["params"] / 0.0221)
    html = re.sub(r"</?(span|wbr)>", "", render(document).partition("<main>")[2])
    text = re.sub(r"\s+", " ", html.replace("&#39;", "'"))
    assert words in text


@pytest.mark.parametrize("package", ["jinja2", "plotly"])
def test_without_the_extra_the_error_says_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (package, f"{package}.offline"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PackageError, match=package) as caught:
        render(CASES["one"])
    assert "pip install 'lora-tools[report]'" in caught.value.__notes__[0]
