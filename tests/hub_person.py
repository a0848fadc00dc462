"""Somebody at a computer: a folder, a token, and the real processes that they start."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hub_server import HubServer
from safetensors.numpy import save_file

ALICE = "hf_alice_writes"
BASE = "org/tiny-base"


@dataclass
class Person:
    hub: HubServer
    folder: Path
    token: str | None = ALICE
    home: str = "home"
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        kept |= {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / self.home)}
        return kept | ({"HF_TOKEN": self.token} if self.token else {}) | self.settings

    def start(self, *arguments: object, **options) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "lora_tools", *map(str, arguments)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            command, env=self.env, cwd=self.folder, text=True, **(pipes | options)
        )

    def run(
        self, *arguments: object, picture: bool = False, **options
    ) -> subprocess.CompletedProcess[str]:
        if arguments[0] == "push" and not picture:  # drawing takes longer than publishing
            arguments += ("--no-picture",)
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=240)
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def does(self, *arguments: object, **options) -> str:
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def python(self, code: str) -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fresh(self, home: str, token: str | None = None) -> "Person":
        """Somebody else, whose cache holds nothing."""
        return Person(self.hub, self.folder, token, home, self.settings)


def make_adapter(
    folder: Path, *, modules: int = 4, wide: int = 64, rank: int = 4, base: str = BASE, **config
) -> Path:
    """Write a PEFT adapter of random numbers, 8 · modules · wide · rank bytes."""
    rng = np.random.default_rng(wide)
    tensors = {}
    for i in range(modules):
        stem = f"base_model.model.model.layers.{i}.self_attn.q_proj"
        tensors[f"{stem}.lora_A.weight"] = rng.standard_normal((rank, wide), dtype=np.float32)
        tensors[f"{stem}.lora_B.weight"] = rng.standard_normal((wide, rank), dtype=np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", config.pop("metadata", None))
    about = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": base,
    }
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    return folder
