"""The package that speaks with the Hub, by the client's documented names alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub

import lora_tools

FOLDER = Path(lora_tools.__file__).parent

DOCUMENTED = {
    "huggingface_hub.errors",
    "huggingface_hub.hf_api.RepoFile",
    "huggingface_hub.utils.build_hf_headers",  # offered there to other libraries, undocumented
    "huggingface_hub.utils.disable_progress_bars",
    *(f"huggingface_hub.{name}" for name in ("constants", *huggingface_hub.__all__)),
}
"""What the client's manual describes, or its own package offers."""


def imported(file: Path) -> set[str]:
    """Return the full names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_nothing_private_of_the_client_is_used():
    of_client = {
        (file.relative_to(FOLDER).as_posix(), name)
        for file in FOLDER.rglob("*.py")
        for name in imported(file)
        if name.split(".")[0] == "huggingface_hub"
    }
    assert {file.split("/")[0] for file, _ in of_client} == {"hub"}
    unknown = {name for _, name in of_client if name not in DOCUMENTED}
    assert {name for name in unknown if name.rpartition(".")[0] not in DOCUMENTED} == set()


def derived(tree: ast.Module) -> Iterator[str]:
    """Yield the classes of a module that inherit from one of pathlib's."""
    paths = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "pathlib"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base) for base in node.bases}
            if any(base in paths or base.startswith("pathlib.") for base in bases):
                yield node.name


def test_no_class_is_a_path():
    found = {
        f"{file.relative_to(FOLDER)}: {name}"
        for file in FOLDER.rglob("*.py")
        for name in derived(ast.parse(file.read_text()))
    }
    assert found == set()
    assert list(derived(ast.parse("from pathlib import PosixPath as P\nclass A(P): ..."))) == ["A"]


def test_the_package_alone_does_not_import_the_client(alice):
    alice.python(
        "import sys, lora_tools.hub; from lora_tools import locate; locate('here');"
        "assert not {'huggingface_hub', 'httpx2'} & set(sys.modules)"
    )
