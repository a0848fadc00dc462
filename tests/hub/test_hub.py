"""The package that speaks with the Hub, by the client's public names alone."""

import ast
from pathlib import Path

import lora_tools

FOLDER = Path(lora_tools.__file__).parent


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
    assert not [found for found in of_client if "._" in found[1]]
