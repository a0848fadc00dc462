"""A format of another package, found through its entry point, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from click.testing import CliRunner
from conftest import FIXTURES
from safetensors.numpy import load_file, save_file

from lora_tools import format_named, read
from lora_tools.cli import cli
from lora_tools.errors import PackageError
from lora_tools.formats.registry import plugins
from lora_tools.update import factors

CODE = """
from lora_tools.formats.algorithms import describe, update, values_of
from lora_tools.formats.manifest import Manifest, Part


class Mine:
    name = "mine"
    about = "a test"
    supports = None
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


def installed(site: Path, name: str, code: str) -> Path:
    """Lay out a package as pip would, with a format of its own."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lora_tools.formats]\n{name} = {name}:Mine\n")
    return site


def test_a_format_of_another_package_is_found(tmp_path):
    site = installed(tmp_path / "site", "mine", CODE)
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


OURS = """
from dataclasses import replace

from lora_tools.errors import FormatError
from lora_tools.files.container import SAFETENSORS
from lora_tools.formats.algorithms import update, values_of
from lora_tools.formats.manifest import Manifest, Part
from lora_tools.formats.keyed import described, rekeyed

SUFFIXES = {"a": "|in", "b": "|out"}


class Mine:
    name = "barred"
    about = "somebody's own trainer"
    supports = frozenset()
    container = SAFETENSORS
    names = "any"
    files = ("barred.safetensors",)
    config_file = "barred.json"

    def detect(self, specs, config):
        return any("|in" in key for key in specs) and "alphas" in (config or {})

    def read(self, contents):
        found = {}
        for key, spec in contents.specs.items():
            key_prefix, _, side = key.rpartition("|")
            found.setdefault(key_prefix, {})["a" if side == "in" else "b"] = Part(key, spec)
        modules = described(found, str, {})
        alphas = (contents.config or {}).get("alphas")
        if alphas is None:
            raise FormatError("barred.json says no alphas")
        modules = tuple(replace(m, alpha=alphas[m.name]) for m in modules)
        return Manifest(self.name, modules, (), contents.config, contents.metadata)

    def write(self, manifest):
        modules = tuple(rekeyed(m, m.name, SUFFIXES) for m in manifest.modules)
        config = {"alphas": {m.name: m.alpha for m in modules}}
        return replace(manifest, format=self.name, modules=modules, config=config)

    def update(self, module, tensors):
        return update(module, tensors)

    def tensors(self, module, update):
        return {module.parts[r].key: v for r, v in values_of(module, update).items()}
"""
"""A format with a file name, a configuration and a naming that no other has."""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package that offers a format, for the length of a test."""

    def install(name: str, code: str) -> None:
        monkeypatch.syspath_prepend(installed(tmp_path / "site", name, code))
        plugins.cache_clear()

    yield install
    plugins.cache_clear()
    for name in ("barred", "broken"):
        sys.modules.pop(name, None)


def done(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_format_of_another_package_is_like_one_of_ours(package, tmp_path):
    package("barred", OURS)
    plain, out = FIXTURES / "minilm-plain", tmp_path / "barred"
    done("convert", plain, out, "--to", "barred")
    assert {"barred.safetensors", "barred.json"} <= {file.name for file in out.iterdir()}
    assert not (out / "adapter_config.json").exists()
    # Neighbours of other names, which say nothing of this adapter.
    save_file({"x": np.ones(3, "f4")}, out / "another.safetensors")
    (out / "adapter_config.json").write_text('{"peft_type": "LORA"}')

    assert "barred adapter" in done("inspect", out)
    adapter, wanted = read(out), reference.deltas(plain)
    assert adapter.format is format_named("barred")
    assert adapter.config["alphas"] == dict.fromkeys(adapter, 32.0)
    assert {file.name for file in adapter.files} >= {"barred.safetensors", "barred.json"}
    (out / "adapter_config.json").unlink()
    (out / "another.safetensors").unlink()

    done("shrink", out, tmp_path / "small", "--rank", "2")
    assert set(json.loads((tmp_path / "small" / "barred.json").read_text())["alphas"]) == set(
        adapter
    )
    small = load_file(tmp_path / "small" / "barred.safetensors")
    assert {array.shape[0] for key, array in small.items() if key.endswith("|in")} == {2}
    assert read(tmp_path / "small").format.name == "barred"

    done("convert", out, tmp_path / "back", "--to", "peft")
    back = reference.deltas(tmp_path / "back")
    for key_prefix, delta in wanted.items():
        assert torch.equal(back[key_prefix], delta)
        low = factors(adapter[key_prefix.removeprefix("base_model.model.")])
        made = low.scale * torch.as_tensor(low.b).double() @ torch.as_tensor(low.a).double()
        assert torch.allclose(made, delta, rtol=1e-6)

    words = [line.split()[:4] for line in done("formats").splitlines()]
    assert ["barred", "yes", "yes", "somebody's"] in words
    listed = json.loads(done("formats", "--json"))["formats"]
    assert (listed[-1]["format"], listed[-1]["write"]) == ("barred", True)


def test_a_format_that_cannot_be_loaded_is_named_where_it_is_needed(package, tmp_path):
    package("broken", "import no_such_package")
    read(FIXTURES / "minilm-plain")  # ours do not need it
    with pytest.raises(PackageError, match=r"broken:Mine: the format broken .* No module named"):
        format_named("unheard")
