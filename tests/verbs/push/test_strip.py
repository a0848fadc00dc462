"""A copy with less metadata and the same tensors."""

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from lora_tools.files.header import read_header
from lora_tools.verbs.push.strip import strip


def test_tensors_keep_their_bytes_and_other_metadata_stays(tmp_path):
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors = {f"t{i}": np.arange(i + 1, dtype=np.float16) for i in range(5)}
    save_file(tensors, source, {"ss_dir": "/home/x/y", "format": "pt", "ü": "ß"})
    strip(source, out, {"ss_dir"})
    with safe_open(out, "np") as file:
        assert file.metadata() == {"format": "pt", "ü": "ß"}
        assert all((file.get_tensor(name) == value).all() for name, value in tensors.items())
    before, after = read_header(source), read_header(out)
    assert list(before.slots) == list(after.slots)


def test_no_metadata_is_left_when_all_is_dropped(tmp_path):
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"t": np.ones(3, np.float32)}, source, {"ss_dir": "x"})
    strip(source, out, {"ss_dir"})
    assert read_header(out).metadata == {}
