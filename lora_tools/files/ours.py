"""What an output of lora-tools looks like: ``--force`` replaces nothing else."""

from pathlib import Path
from typing import Literal, TypeAlias

from lora_tools.files.pipeline import MODEL_INDEX

Force: TypeAlias = bool | Literal["any"]
"""Whether an output may be replaced: not at all, one of lora-tools, or whatever is there."""

REPORT = "lora_tools_report.json"
"""What every command leaves in the folder that it writes."""

BEGINNINGS = (b"GGUF", b"\x89PNG\r\n\x1a\n", b"%PDF", b"<?xml")
"""Of tensor files and pictures."""

SIGNS = (b'"schema": "lora-tools/', b"lora-tools inspect</title>")
"""Of reports and pages."""

START = 1 << 16
MAX_HEADER = 100_000_000


def foreign(path: Path) -> str:
    """Return why something is no output of ours; nothing if it looks like one.

    A link is no loss, as what it leads to stays. An empty file or folder is none, either.
    """
    if path.is_symlink():
        return ""
    if path.is_dir():
        return _foreign_folder(path)
    if not path.is_file():
        return "it is neither a file nor a folder"
    return _foreign_file(path)


def _foreign_folder(folder: Path) -> str:
    files = sorted(folder.iterdir())
    names = [file.name for file in files]
    parts = files if MODEL_INDEX in names else []  # of a pipeline, in folders of their own
    for file in (
        *files,
        *(inner for part in parts if _is_folder(part) for inner in part.iterdir()),
    ):
        if file.name.startswith(".") or (_is_folder(file) and file not in parts):
            return f"{file.name} is in it"
    return f"there is no {REPORT} in it" if names and REPORT not in names else ""


def _is_folder(file: Path) -> bool:
    return file.is_dir() and not file.is_symlink()


def _foreign_file(file: Path) -> str:
    with file.open("rb") as opened:
        start = opened.read(START)
    safetensors = start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER
    known = not start or start.startswith(BEGINNINGS) or any(sign in start for sign in SIGNS)
    return "" if known or safetensors else "it is no tensor file, report, page or picture"
