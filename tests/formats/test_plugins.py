"""A format of another package, found through its entry point, in a process of its own."""

import subprocess
import sys

import numpy as np
from safetensors.numpy import save_file

CODE = """
from lora_tools.formats.algorithms import describe, update, values_of
from lora_tools.formats.manifest import Manifest, Part


class Mine:
    name = "mine"
    about = "a test"
    expresses = None
    names = "any"
    files = ()
    config_file = None

    def detect(self, specs, config):
        return "mine.a" in specs

    def read(self, contents):
        parts = {key[-1]: Part(key, spec) for key, spec in contents.specs.items()}
        return Manifest(self.name, (describe("m", "mine", parts, None),))

    def update(self, module, tensors):
        return update(module, tensors)
"""


def test_a_format_of_another_package_is_found(tmp_path):
    site = tmp_path / "site"
    info = site / "mine-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "mine.py").write_text(CODE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lora_tools.formats]\nmine = mine:Mine\n")
    file = tmp_path / "x.safetensors"
    save_file({"mine.a": np.ones((2, 3), "f4"), "mine.b": np.ones((4, 2), "f4")}, file)
    run = "import sys; sys.path.insert(0, sys.argv.pop(1)); from lora_tools.cli import main; main()"
    shown = [
        subprocess.run(
            [sys.executable, "-c", run, str(site), *arguments], capture_output=True, text=True
        )
        for arguments in (["inspect", str(file)], ["formats"], ["inspect", str(tmp_path / "no")])
    ]
    assert shown[0].returncode == 0, shown[0].stderr
    assert "mine adapter" in shown[0].stdout
    assert "4×3" in shown[0].stdout
    assert "\nmine       yes     no " in shown[1].stdout
    assert shown[2].returncode == 1
