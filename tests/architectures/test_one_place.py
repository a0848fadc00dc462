"""One place knows models: nothing outside the tables names a family, or a layer of one.

What is looked at are identifiers and texts, docstrings and comments aside. No word in them may be
one of a family's name, or of what configurations call it. What is no sentence (which has a space)
may not have the name of a layer either: a word with an underscore that a path of a table has.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import lora_tools
from lora_tools.architectures.families import FAMILIES

ROOT = Path(lora_tools.__file__).parent
FILES = sorted(
    path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] != "architectures"
)
# Words of families' names that say nothing by themselves.
PLAIN = {"stable", "diffusion", "refiner", "xl", "image", "video", "moe", "and", "clip"}
# Tools that are called after a model.
TOOLS = re.compile(r"llama[._ ]?cpp|llama-adapter|lit-?gpt|x-flux", re.IGNORECASE)
WORD = re.compile(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*")
OWN = {
    "formats/diffusers.py": {"to_out", "out_proj"},  # what old processors' names have at their end
    "formats/megatron.py": {"linear_in", "linear_out"},  # what it calls A and B
    "formats/peft/config.py": {"in_layers"},  # a method, by chance
}
"""Words that mean something else, by file."""


@cache
def family_words() -> frozenset[str]:
    names = {word.lower() for f in FAMILIES for word in re.findall(r"[A-Za-z]+\d*", f.name)}
    names |= {kind.lower() for f in FAMILIES for kind in (*f.types, *f.ids.values())}
    return frozenset(word for word in names - PLAIN if len(word) > 1)


@cache
def layer_words() -> frozenset[str]:
    paths = {
        path
        for family in FAMILIES
        for dialect in (family.hub, *family.dialects)
        for rule in family.rules(dialect)
        for path in (rule.path, *(part.path for part in rule.layout.parts))
    }
    return frozenset(word for path in paths for word in path.split(".") if "_" in word)


def spoken(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield every identifier and every text that is no docstring, with its line."""
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in prose:
                yield node.lineno, text
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.alias(name=name, asname=other):
                yield node.lineno, other or name
            case ast.keyword(arg=str(name)):
                yield node.value.lineno, name


def named(text: str) -> set[str]:
    """Return the families and the layers that a text names."""
    text = TOOLS.sub("", text)
    words = {word.lower() for word in WORD.findall(text)}
    words |= {re.sub(r"\d+$", "", word) for word in words}
    whole = {word.strip("_").lower() for word in re.findall(r"\w+", text)}
    layers = set() if " " in text else whole & layer_words()
    inside = {family for family in family_words() if len(family) > 4 and family in text.lower()}
    return (words | whole) & family_words() | inside | layers


def findings(source: str) -> dict[str, set[str]]:
    return {
        f"{line}: {text[:60]}": names
        for line, text in spoken(ast.parse(source))
        if (names := named(text))
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_but_the_tables_names_a_model(path):
    own = OWN.get(path.relative_to(ROOT).as_posix(), set())
    found = findings(path.read_text())
    assert {where: names - own for where, names in found.items() if names - own} == {}
    assert set().union(*found.values()) == own, "an exception that is none any more"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ('if config["model_type"] == "gpt2": ...', {"gpt", "gpt2"}),
        ('BLOCKS = ("double_blocks.",)', {"double_blocks"}),
        ('KEY = re.compile(r"blk\\.\\d+\\.attn_q")', {"attn_q"}),
        ('name = f"model.layers.{i}.self_attn.q_proj"', {"self_attn", "q_proj"}),
        ("def _is_flux(name): ...", {"flux"}),
        ("class HunyuanVideoNames: ...", {"hunyuanvideo"}),
        ("class FluxNames: ...", {"flux"}),
        ("from x import LLAMA", {"llama"}),
        ("qwen2 = 1", {"qwen", "qwen2"}),
        ("rule(gemma3=True)", {"gemma", "gemma3"}),
        ('raise ValueError("this is no Wan 2.1")', {"wan"}),
        ('"""Flux, in a docstring."""', set()),
        ('help = "the q_proj beside it"', set()),
        ('about = "llama.cpp and LitGPT"', set()),
        ("wanted = banter = phial = 1", set()),
    ],
)
def test_a_name_that_is_put_in_is_found(line, names):
    assert set().union(*findings(line).values()) == names


def test_a_family_more_is_a_word_more():
    """The words come out of the tables, so that nobody has to think of this test."""
    assert {"flux", "llama", "gpt_oss", "wan"} <= family_words()
    assert {"double_blocks", "self_attn", "linear_fc1", "token_embd"} <= layer_words()
