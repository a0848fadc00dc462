"""Help, messages, docs and names say it as those who train, serve and mix adapters say it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted({*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "SECURITY.md"})
MODULES = sorted((ROOT / "lora_tools").rglob("*.py"))

WORDS = {
    r"\b(re)?spell(s|ed|ing|ings)?\b": "key naming, format, convert",
    r"\bhomeless\b|\b(no|a) home\b(?! folder)": "matching base weight, unmatched",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bpass(ed|es) over\b(?! (ΔW|D|it|them))": "ignored, ignores",
    r"\bswallow(s|ed)?\b": "lost to rounding",
    r"\bshared out\b": "allocated",
    r"\b(re|un)?baked?\b": "folded",
    r"\bno chance\b": "deterministic",
    r"is not to be recognised": "overrides detection",
    r"\bdots back\b": "the dotted module paths that kohya flattened",
    r"one of the two must": "required for a new repository",
    r"\bauthors\b|\bauthors'": "original naming",
    r"\bdenoisers? ": "UNet or DiT, diffusion model",
    r"\bfull differences?\b": "full-rank diff",
    r"\bnorms of (rows|columns)\b": "DoRA magnitude, per output or per input",
    r"in rotated pairs|pairs that rotate|rotate in pairs": "interleaved RoPE layout",
    r"(?<!`)\bstems?\b": "key prefix",
    r"\bless what\b|and the like\b|\bhears of\b|\bdone with\b|\bgo(es)? on\b": "finished, resumes",
    r"\bcan(not)? say\b|\b\w+'s words\b|\bwords of (a|another) format\b": "supports",
    r"\b[Ee]lement types?\b": "dtype",
    r"\bKINDs?\b|--drop kind": "feature",
    r"\bembedding tables?\b": "embedding",
    r"\bengines?\b|\bconsumers?\b": "runtime or executor",
    r"\bguests?\b|\bbystanders?\b|\bkin\b": "what they are",
}
"""What is not said, and what is."""

RIDDLES = re.compile(
    r"(?i)(^|_)(homes?|homeless|swallow(ed|s)?|spell(ed|ing|ings)?|stems|mend(s|ed)?|baked?"
    r"|consumers?|engines?|denoisers?|tall|kin|strangers?|guests?|bystanders?|wish|wishes"
    r"|offers?|goal|said|look)(_|$)"
)
"""Parts of names that say nothing to who reads them first."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a page, or of the strings of a module: docstrings, messages, help."""
    if path.suffix == ".md":
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for number, line in enumerate(node.value.splitlines()):
                yield node.lineno + number, line


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every name that a module gives: of classes, functions, parameters and values."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.lineno, re.sub(r"(?<=[a-z])(?=[A-Z])", "_", node.name)
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_the_field_does_not_use_is_not_used(word):
    pages = [page for page in PAGES if page.parent.name != "decisions"]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in (*pages, *MODULES)
        for number, line in texts(path)
        if re.search(word, line)
    ]
    assert not found, "\n".join([f"say {WORDS[word]}:", *found])


def test_no_name_is_a_riddle():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {name}"
        for path in MODULES
        for number, name in names(path)
        if RIDDLES.search(name)
    ]
    assert not found, "\n".join(found)


def test_no_file_is_named_by_a_riddle():
    found = [path for path in MODULES if RIDDLES.search(path.stem)]
    assert not found
