"""Hashes in a header, against sd-scripts' definition, stated here over safetensors' own bytes."""

import hashlib
import io

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from lora_tools.adapter import read, write
from lora_tools.files.header import Spec
from lora_tools.files.layout import layout
from lora_tools.files.stamp import blank, stamp
from lora_tools.formats.registry import format_named
from lora_tools.linalg.rank import Fixed
from lora_tools.verbs.convert import convert
from lora_tools.verbs.shrink import shrink

KEY_PREFIX = "lora_unet_mid_block_attentions_0_proj_in"


def defined(file):
    """Return what sd-scripts would have put into the header of a file with these tensors."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    copy = io.BytesIO(safetensors.torch.save(tensors, kept))
    copy.seek(int.from_bytes(copy.read(8), "little") + 8)
    model = hashlib.sha256(copy.read()).hexdigest()
    copy.seek(0x100000)
    legacy = hashlib.sha256(copy.read(0x10000)).hexdigest()[:8]
    return {"sshs_model_hash": model, "sshs_legacy_hash": legacy}


def hashes(file):
    with safe_open(file, "pt") as opened:
        return {k: v for k, v in opened.metadata().items() if k.startswith("sshs_")}


def kohya(file, size, metadata):
    tensors = {
        f"{KEY_PREFIX}.lora_down.weight": torch.randn(8, size),
        f"{KEY_PREFIX}.lora_up.weight": torch.randn(size, 8).half(),
        f"{KEY_PREFIX}.alpha": torch.tensor(4.0),
    }
    safetensors.torch.save_file(tensors, file, metadata)
    return file


@pytest.mark.parametrize("size", [16, 21_000, 23_000, 40_000])  # before, across and past 1 MiB
def test_the_hashes_of_what_was_written_are_those_of_the_definition(size, tmp_path):
    metadata = {"ss_network_dim": "8", "ss_comment": 'héllo "x"', "sshs_model_hash": "stale"}
    source = read(kohya(tmp_path / "source.safetensors", size, metadata | {"other": "kept"}))
    (tmp_path / "out").mkdir()
    shrunk = shrink(source, Fixed(4))
    write(tmp_path / "out", shrunk.manifest, shrunk.report("shrink").watch(shrunk), like=source)
    file = tmp_path / "out" / "source.safetensors"
    assert hashes(file) == defined(file)
    empty = hashlib.sha256(b"").hexdigest()[:8]
    assert (hashes(file)["sshs_legacy_hash"] == empty) == (file.stat().st_size < 0x100000)
    assert len(read(file)) == 1


def test_the_hash_of_modelspec_is_that_of_what_was_written(tmp_path):
    metadata = {"modelspec.hash_sha256": "0xstale", "modelspec.title": "kept"}
    source = read(kohya(tmp_path / "source.safetensors", 16, metadata))
    (tmp_path / "out").mkdir()
    shrunk = shrink(source, Fixed(4))
    write(tmp_path / "out", shrunk.manifest, shrunk.report("shrink").watch(shrunk), like=source)
    file = tmp_path / "out" / "source.safetensors"
    with safe_open(file, "pt") as opened:
        found = opened.metadata()
    assert found["modelspec.title"] == "kept"
    assert found["modelspec.hash_sha256"] == "0x" + defined(file)["sshs_model_hash"]


def test_no_hashes_where_nobody_trained_with_sd_scripts(tmp_path):
    source = read(kohya(tmp_path / "source.safetensors", 16, {"title": "mine"}))
    plan = convert(source, format_named("kohya"))
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", plan.manifest, plan.report("convert").watch(plan), like=source)
    assert hashes(tmp_path / "out" / "source.safetensors") == {}


def test_another_formats_hashes_are_not_stale(tmp_path):
    stem = "diffusion_model.double_blocks.0.img_attn.proj"
    tensors = {
        f"{stem}.lora_A.weight": torch.randn(4, 9),
        f"{stem}.lora_B.weight": torch.randn(7, 4),
    }
    metadata = {"software": "{}", "ss_output_name": "x", "sshs_model_hash": "ab" * 32}
    safetensors.torch.save_file(tensors, tmp_path / "toolkit.safetensors", metadata)
    source = read(tmp_path / "toolkit.safetensors")
    assert source.format.name == "comfyui"
    shrunk = shrink(source, Fixed(2))
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", shrunk.manifest, shrunk.report("shrink").watch(shrunk), like=source)
    file = tmp_path / "out" / "toolkit.safetensors"
    assert hashes(file) == {"sshs_model_hash": defined(file)["sshs_model_hash"]}


def test_a_window_that_begins_in_the_header(tmp_path):
    """A header of more than 1 MiB is in the legacy hash itself."""
    specs = {"x": Spec("F32", (40_000,))}
    metadata = blank({"ss_long": "y" * 0x100100, "sshs_legacy_hash": "-", "title": "t"})
    values = np.arange(40_000, dtype=np.float32)
    plan = layout(specs, metadata)
    file = tmp_path / "x.safetensors"
    file.write_bytes(plan.header + values.tobytes())
    stamp(file, specs, metadata)
    assert file.stat().st_size == plan.size
    assert hashes(file) == {"sshs_legacy_hash": defined(file)["sshs_legacy_hash"]}
