"""Hashes of a file's own tensors in its header, as sd-scripts puts them there.

``sshs_model_hash`` is the SHA-256 of everything behind the header. ``sshs_legacy_hash`` is the
start of that of 64 KiB, 1 MiB into a copy whose header has no other metadata than ``ss_*``.
``modelspec.hash_sha256`` is the first of the two, after ``0x``.
Programs that show models look up by them who made a file, and from what.
"""

from collections.abc import Mapping
from pathlib import Path

from lora_tools.files.header import Spec
from lora_tools.files.layout import layout

MODEL, LEGACY = "sshs_model_hash", "sshs_legacy_hash"
BLANK = {MODEL: "0" * 64, LEGACY: "0" * 8}
"""As long as the hashes, so that a header with them can be laid out before there are tensors."""
SPEC = "modelspec.hash_sha256"
ROOM = BLANK | {SPEC: "0x" + "0" * 64}
"""All hashes that a header may have of its file's tensors."""

START, LENGTH = 0x100000, 0x10000
CHUNK = 1 << 20


def blank(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a header's metadata with room for the hashes in place of those of other tensors."""
    return {key: ROOM.get(key, value) for key, value in metadata.items()}


def stamp(file: Path, specs: Mapping[str, Spec], metadata: Mapping[str, str]) -> None:
    """Put the hashes of a complete file into its header, where its metadata has room for them.

    Reads the file once; its size stays.
    """
    if not ROOM.keys() & metadata.keys():
        return
    import hashlib  # takes longer than to read a header, and few files have such fields

    begin = len(layout(specs, metadata).header)
    with file.open("r+b") as opened:
        opened.seek(begin)
        whole = hashlib.sha256()
        while chunk := opened.read(CHUNK):
            whole.update(chunk)
        ours = {key: value for key, value in metadata.items() if key.startswith("ss_")}
        head = layout(specs, ours).header
        window = head[START : START + LENGTH]
        opened.seek(begin + max(START - len(head), 0))
        window += opened.read(LENGTH - len(window))
        found = {MODEL: whole.hexdigest(), LEGACY: hashlib.sha256(window).hexdigest()[:8]}
        found[SPEC] = f"0x{found[MODEL]}"
        opened.seek(0)
        stamped = {key: found.get(key, value) for key, value in metadata.items()}
        opened.write(layout(specs, stamped).header)
