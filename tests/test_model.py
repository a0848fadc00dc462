import json

import pytest
import torch
from safetensors.torch import save_file

from lora_tools.errors import CheckpointError
from lora_tools.model import open_model


@pytest.fixture
def folder(tmp_path):
    save_file({"head.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    return tmp_path


def test_a_model_is_its_tensors_and_its_configuration(folder):
    config = {"architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    model = open_model(folder)
    assert model.architecture == "GPT2LMHeadModel"
    assert model.tied
    assert torch.equal(model.tensors["head.weight"], torch.ones(2, 2))


def test_the_text_model_of_a_composite_may_be_the_tied_one(folder):
    (folder / "config.json").write_text(json.dumps({"text_config": {"tie_word_embeddings": True}}))
    model = open_model(folder / "model.safetensors")
    assert model.tied
    assert model.architecture is None


def test_a_model_needs_no_configuration(folder):
    model = open_model(folder)
    assert model.config == {}
    assert not model.tied


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: not"):
        open_model(folder)
