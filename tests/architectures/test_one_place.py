"""One place knows models: no module outside the tables names a family, or a layer of one."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import lora_tools
from lora_tools.architectures.families import FAMILIES

ROOT = Path(lora_tools.__file__).parent
PLACE = ROOT / "architectures"

# Words of families' names that say nothing of a family by themselves.
PLAIN = {"stable", "diffusion", "refiner", "xl", "image", "video", "moe", "and", "clip"}
# Tools that are called after a model.
TOOLS = re.compile(r"llama[._ ]?cpp", re.IGNORECASE)
WORD = re.compile(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*")


@cache
def family_words() -> frozenset[str]:
    """The words of families' names, and what their configurations call them."""
    found = {w.lower() for family in FAMILIES for w in re.findall(r"[A-Za-z]+\d*", family.name)}
    found |= {kind.lower() for family in FAMILIES for kind in (*family.types, *family.ids.values())}
    return frozenset(word for word in found - PLAIN if len(word) > 1)


@cache
def layer_words() -> frozenset[str]:
    """What the tables call modules, word by word, as far as a word is nobody else's."""
    paths = {
        path
        for family in FAMILIES
        for dialect in (family.hub, *family.dialects)
        for rule in family.rules(dialect)
        for path in (rule.path, *(part.path for part in rule.layout.parts))
    }
    words = {word for path in paths for word in path.split(".")}
    return frozenset(word for word in words if "_" in word)


def said(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield every identifier and every text of a module that is no docstring, with its line."""
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
                yield node.lineno, f"{name} {other or ''}"
            case ast.keyword(arg=str(name)):
                yield node.value.lineno, name


def named(text: str) -> list[str]:
    """Return the families and layers that a text names."""
    text = TOOLS.sub("", text)
    words = {word.lower() for word in WORD.findall(text)}
    words |= {re.sub(r"\d+$", "", word) for word in words}
    whole = {word.strip("_") for word in re.findall(r"[A-Za-z0-9_]+", text)}
    return sorted((words & family_words()) | (whole & layer_words()))


def findings(source: str) -> list[str]:
    return [
        f"{line}: {', '.join(names)} in {text[:60]!r}"
        for line, text in said(ast.parse(source))
        if (names := named(text))
    ]


FILES = sorted(path for path in ROOT.rglob("*.py") if PLACE not in path.parents)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_but_the_tables_names_a_model(path):
    assert findings(path.read_text()) == []
