"""Which model of a pipeline a name is of: by its folder, by its path, and neither."""

import subprocess
import sys

import pytest
from conftest import FIXTURES

from lora_tools.architectures.families import FAMILIES
from lora_tools.architectures.pipelines import components, is_known, known, split


@pytest.mark.parametrize(
    "name",
    [
        "transformer.h.0.attn.c_attn",
        "transformer.wte",
        "transformer.h.3.self_attention.query_key_value",
        "transformer.word_embeddings",
        "transformer.encoder.layers.0.self_attention.query_key_value",
        "transformer.embedding.word_embeddings",
        "model.layers.0.mlp.up_proj",
        "somebodys.own",
        "unet",
    ],
)
def test_a_model_by_itself_is_no_component(name):
    assert split(name) == ("", name)


def test_every_folder_of_a_family_is_a_component():
    folders = {encoder.folder for family in FAMILIES for encoder in family.encoders}
    folders |= {family.before(family.hub)[:-1] for family in FAMILIES} - {""}
    folders |= {folder for family in FAMILIES for folder in family.siblings}
    assert folders == known().words - {"diffusion_model"}
    for folder in (*folders, "diffusion_model"):
        assert split(f"{folder}.x.0.y") == (folder, "x.0.y")


def test_paths_tell_their_component_together():
    unet = ["down_blocks.0.attentions.1.proj_in", "conv_in"]
    assert components([*unet, "text_model.encoder.layers.0.mlp.fc1"]) == {
        **dict.fromkeys(unet, "unet"),
        "text_model.encoder.layers.0.mlp.fc1": "text_encoder",
    }
    # Alone it may be anybody's; beside blocks it is theirs.
    assert components(["img_in", "double_blocks.0.img_attn.qkv"])["img_in"] == "diffusion_model"
    names = ["img_in", "transformer_blocks.0.img_mod.1"]
    assert components(names) == dict.fromkeys(names, "transformer")
    assert components(["img_in"]) == {}
    assert components(["model.layers.0.self_attn.q_proj", "lora_unet_conv_in"]) == {}


def test_a_path_is_known_whole_or_not():
    assert is_known("double_blocks.0.img_attn.qkv")
    assert not is_known("double_blocks.0.img_attn.qkv.x")
    assert not is_known("double_blocks_0_img_attn_qkv")


def test_a_peft_adapter_is_read_without_any_family():
    """Their tables take longer to import than its header to read."""
    code = (
        "import sys; from lora_tools.adapter import read; read(sys.argv[1]);"
        "print(sorted(name for name in sys.modules if '.families.' in name))"
    )
    words = [sys.executable, "-c", code, str(FIXTURES / "minilm-plain")]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "[]\n"
