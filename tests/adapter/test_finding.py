import shutil

import pytest
import torch
from conftest import FIXTURES

from lora_tools.adapter import read
from lora_tools.errors import CheckpointError


def test_a_file_is_read_with_the_configuration_beside_it(folder):
    file = folder / "adapter_model.safetensors"
    adapter = read(str(file))
    assert adapter.path == file
    assert list(adapter) == list(read(folder))


def test_safetensors_are_preferred_to_a_pickle(folder):
    torch.save({"other": torch.ones(1)}, folder / "adapter_model.bin")
    assert read(folder).tensors.path.name == "adapter_model.safetensors"


def test_a_pickle_is_read_where_there_is_nothing_else():
    assert read(FIXTURES / "minilm-bin").tensors.path.name == "adapter_model.bin"


def test_a_file_of_another_name_is_found_if_it_is_the_only_one(folder):
    (folder / "adapter_model.safetensors").rename(folder / "mine.safetensors")
    assert read(folder).tensors.path.name == "mine.safetensors"
    shutil.copyfile(folder / "mine.safetensors", folder / "yours.safetensors")
    with pytest.raises(CheckpointError, match=r"mine\.safetensors, yours\.safetensors") as caught:
        read(folder)
    assert caught.value.__notes__ == ["Name the one that is meant."]


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read(tmp_path / "nowhere")


def test_an_empty_folder_is_an_error_that_says_what_is_expected(tmp_path):
    with pytest.raises(CheckpointError, match="holds no adapter") as caught:
        read(tmp_path)
    assert "adapter_model.safetensors" in caught.value.__notes__[0]
