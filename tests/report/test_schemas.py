"""Every document that a command prints or writes has the fields that are listed, and no others."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dense
import pytest
import torch
from bases import BASES
from click.testing import CliRunner
from conftest import FIXTURES
from hub_person import make_adapter
from safetensors.torch import load_file, save_file

import lora_tools
from lora_tools.cli import cli
from lora_tools.report.schemas import SCHEMAS
from lora_tools.report.vocabulary import field
from lora_tools.verbs.push import record

PLAIN, PATTERNS = FIXTURES / "minilm-plain", FIXTURES / "minilm-patterns"
REPORT = "lora_tools_report.json"
Documents = dict[str, list[dict[str, Any]]]


def fits(value: Any, kind: str) -> bool:
    """Whether a value has a type, as the list of fields calls it."""
    stated, _, null = kind.partition(" or ")
    if null and value is None:
        return True
    match stated.partition(" of ")[::2], stated.partition(": ")[::2]:
        case (("list", "pairs"), _):
            return isinstance(value, list) and all(map(is_pair, value))
        case (("list", each), _):
            return isinstance(value, list) and all(fits(item, each[:-1]) for item in value)
        case (_, ("object", each)):
            inner = value.values() if isinstance(value, dict) and each else ()
            return isinstance(value, dict) and all(fits(item, each) for item in inner)
    kinds = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}
    return isinstance(value, kinds[stated]) and (
        stated == "boolean" or value not in (True, False) or not isinstance(value, bool)
    )


def is_pair(value: Any) -> bool:
    return fits(value, "list of strings") and len(value) == 2


def faults(document: dict[str, Any]) -> Iterator[str]:
    """Yield how a document differs from what is listed of it."""
    schema = SCHEMAS[document["schema"]]

    def look(value: dict[str, Any], path: str) -> Iterator[str]:
        wanted = schema.objects[path]
        names = {name.rstrip("?") for name in wanted}
        needed = {name for name in wanted if not name.endswith("?")}
        for name in sorted(value.keys() ^ names - (names - needed - value.keys())):
            yield f"{path}.{name} is {'not listed' if name in value else 'missing'}"
        for name in value.keys() & names:
            inner, here = value[name], f"{path}.{name}".lstrip(".")
            kind = field(here).type
            if not fits(inner, kind):
                yield f"{here} is {inner!r}, no {kind}"
            elif name == "outcome" and inner not in schema.outcomes:
                yield f"{here} is {inner!r}, which is not listed"
            elif name == "outcomes":
                yield from (
                    f"{here} has {word!r}" for word in inner.keys() - schema.outcomes.keys()
                )
            elif kind.startswith("object") and ":" not in kind and inner is not None:
                yield from look(inner, here)
            elif kind.startswith("list of objects"):
                for item in inner or ():
                    yield from look(item, f"{here}[]")

    yield from look(document, "")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    """Every document, by its schema, of runs that have something to say in every part."""
    folder = tmp_path_factory.mktemp("documents")
    found: Documents = defaultdict(list)

    def run(*arguments: object, out: str = "") -> None:
        words = [str(word) for word in (*arguments, "--json")]
        done = CliRunner().invoke(cli, words, catch_exceptions=False)
        texts = [done.stdout] + ([(folder / out / REPORT).read_text()] if out else [])
        for text in texts:
            document = json.loads(text)
            found[document["schema"]].append(document)

    base = _base(folder)
    run("formats")
    run("shrink", PLAIN, folder / "small", "--rank", 4, out="small")
    record(folder / "small" / REPORT, [PLAIN])
    found["lora-tools/report/3"].append(json.loads((folder / "small" / REPORT).read_text()))
    run("shrink", PATTERNS, folder / "vllm", "--energy", 0.9, "--for", "vllm", "--dry-run")
    run("shrink", PLAIN, folder / "none", "--dry-run")
    run("convert", FIXTURES / "minilm-dora", folder / "none", "--to", "kohya", "--dry-run")
    run("convert", FIXTURES / "minilm-tokens", folder / "peft", "--to", "peft", out="peft")
    run("combine", PLAIN, FIXTURES / "minilm-rslora", PATTERNS, folder / "sum", out="sum")
    run("combine", PLAIN, PLAIN, folder / "none", "--rank", 4, "--only", "*.query", "--dry-run")
    for adapter in sorted(FIXTURES.glob("*/adapter_config.json")):
        run("inspect", adapter.parent, "--spectrum", "--for", "all")
    run("inspect", PATTERNS)
    run("inspect", PLAIN, "--base", base)
    run("inspect", FIXTURES / "gpt2-conv1d", "--base", base)
    run("inspect", _broken(folder), "--spectrum")
    run("inspect", base, "--for", "vllm")
    run("merge", base, PLAIN, folder / "merged", "--weight", 0.01, out="merged")
    run("merge", base, PLAIN, folder / "cast", "--dtype", "float32", "--dry-run")
    run("merge", base, PLAIN, folder / "in-parts", "--part", "1/2")
    run("verify", folder / "merged", base, PLAIN)
    run("verify", base, base, PLAIN)
    run("extract", base, _tuned(folder, base), folder / "got", "--rank", 2, "--skip-bad", out="got")
    run("extract", base, folder / "tuned", folder / "none", "--rank", 2, "--dry-run")
    run("diff", PLAIN, PATTERNS)
    run("diff", PLAIN, FIXTURES / "minilm-dora")
    run("diff", FIXTURES / "minilm-tokens", FIXTURES / "minilm-embedding")
    return found


def _base(folder: Path) -> Path:
    state = dense.state_of(BASES["minilm-plain"]())
    return dense.save_base(folder / "base", state, torch.bfloat16)


def _tuned(folder: Path, base: Path) -> Path:
    """A fine-tune: a module that changed, a small tensor, one with NaN, and one that is new."""
    tensors = dense.load_model(base)
    layer = "encoder.layer.{}.attention.self.query.weight"
    tensors[layer.format(0)] = tensors[layer.format(0)] + 0.1
    tensors[layer.format(1)] = tensors[layer.format(1)] * float("nan")
    tensors["embeddings.LayerNorm.weight"] = tensors["embeddings.LayerNorm.weight"] + 1
    dense.save_base(folder / "tuned", tensors | {"new.weight": torch.ones(2, 2)}, torch.bfloat16)
    return folder / "tuned"


def _broken(folder: Path) -> Path:
    """An adapter with NaN, and with a module that is zero."""
    place = folder / "broken"
    place.mkdir()
    (place / "adapter_config.json").write_bytes((PLAIN / "adapter_config.json").read_bytes())
    tensors = load_file(PLAIN / "adapter_model.safetensors")
    first, second = [key for key in tensors if "lora_B" in key][:2]
    tensors[first] *= float("nan")
    tensors[second] *= 0
    save_file(tensors, place / "adapter_model.safetensors")
    return place


@pytest.mark.parametrize("name", [name for name in SCHEMAS if "push" not in name])
def test_a_document_is_what_is_listed(name, documents):
    assert documents[name], "no command of this test prints it"
    found = sorted({fault for document in documents[name] for fault in faults(document)})
    assert found == []


def test_a_push_is_what_is_listed(alice):
    folder = make_adapter(alice.folder / "mine")
    for more in (["--dry-run"], ["--public"]):
        document = json.loads(alice.does("push", folder, "alice/x", *more, "--json"))
        assert list(faults(document)) == []


def test_every_schema_in_the_code_is_listed():
    root = Path(lora_tools.__file__).parent
    texts = [file.read_text(encoding="utf-8") for file in root.rglob("*.py")]
    used = {name for text in texts for name in re.findall(r"lora-tools/[a-z-]+/\d+", text)}
    assert used == set(SCHEMAS)


def test_a_field_that_is_not_listed_is_found():
    wrong = {"schema": "lora-tools/ranks/2", "ranks": [{"rank_after": 1.5, "bytes": 3}], "x": 1}
    assert sorted(faults(wrong)) == [
        ".x is not listed",
        "ranks[].allocated_error is missing",
        "ranks[].bytes is not listed",
        "ranks[].bytes_after is missing",
        "ranks[].optimal_error is missing",
        "ranks[].rank_after is 1.5, no integer",
    ]
