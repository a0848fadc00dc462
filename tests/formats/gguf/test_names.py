"""Every layer that llama.cpp knows has its name, and fields of the header keep their meaning."""

import pytest
import torch
from gguf_adapters import (
    GGUF,
    HEADLESS,
    LLAMA,
    MODELS,
    ONE,
    as_the_converter_writes,
    converted,
    file_in,
    gguf,
    made_up,
    peft,
)
from judges import judge
from safetensors.torch import load_file, save_file

from lora_tools.adapter import read, write
from lora_tools.architectures.dialects import candidates, in_tool, in_transformers
from lora_tools.errors import UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Manifest, Module, Part
from lora_tools.formats.registry import format_named
from lora_tools.formats.sites import Embedding, Linear
from lora_tools.linalg.rank import Fixed
from lora_tools.verbs.convert import convert
from lora_tools.verbs.shrink import shrink


def test_a_base_that_llama_cpp_knows_has_a_name_for_every_layer():
    """transformers' own models, and the package's own table as the judge of their names."""
    transformers = judge("transformers")
    small = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 16,
        "pad_token_id": 0,
    }
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    models = candidates("gguf")
    assert {each.family.ids["gguf"] for each in models} == {*MODELS}
    for candidate in models:
        arch = candidate.family.ids["gguf"]
        for model_type in candidate.family.types:
            if model_type in ("mixtral", "gemma3"):  # experts are stacked; a model of two parts
                continue
            config = transformers.AutoConfig.for_model(model_type, **small)
            with torch.device("meta"):
                model = transformers.AutoModelForCausalLM.from_config(config)
            table = gguf.TensorNameMap(kinds[arch], 1)
            layers = (torch.nn.Linear, torch.nn.Embedding)
            names = [name for name, layer in model.named_modules() if isinstance(layer, layers)]
            assert len(names) >= 6
            missing = []
            for name in names:
                found = in_tool(name, (candidate,))
                assert (found and found.path) == table.get_name(name), (model_type, name)
                if found is None:
                    missing.append(name)
                else:
                    assert in_transformers(found.path, (candidate,)).path == name
            assert missing in ([], ["lm_head"])
            assert arch in HEADLESS or not missing


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.language_model.layers.3.self_attn.q_proj", "blk.3.attn_q"),
        ("language_model.model.layers.3.mlp.up_proj", "blk.3.ffn_up"),
        ("language_model.lm_head", "output"),
        ("layers.3.mlp.up_proj", "blk.3.ffn_up"),
        ("embed_tokens", "token_embd"),
        ("model.vision_tower.layers.3.self_attn.q_proj", None),
        ("model.layers.3.mlp.gate_up_proj", None),
        ("somebodys.own", None),
    ],
)
def test_what_stands_before_a_language_model_is_left_out(name, expected):
    parts = {"b": Part("b", Spec("F32", (8, 1))), "a": Part("a", Spec("F32", (1, 8)))}
    site = Embedding() if "embed" in name else Linear()
    module = Module(name, site, 8, 8, 1, 1.0, False, parts, name, name)
    manifest = Manifest("elsewhere", (module,), base=LLAMA)
    if expected is None:
        with pytest.raises(UnsupportedError, match=f"no place for {name}"):
            GGUF.write(manifest)
    else:
        assert GGUF.write(manifest).modules[0].key_prefix == expected


def test_fields_of_the_header_stay_with_the_file(tmp_path):
    tensors, _ = made_up()
    fields = {"adapter.lora.task_name": "sql", "general.license": "mit", "some.list": [1, 2]}
    as_the_converter_writes(tmp_path / "x.gguf", tensors, **fields)
    adapter = read(tmp_path / "x.gguf", base=LLAMA)
    small = shrink(adapter, Fixed(1))
    (tmp_path / "small").mkdir()
    write(tmp_path / "small", small.manifest, small.report("shrink").watch(small), like=adapter)
    found = gguf.GGUFReader(file_in(tmp_path / "small")).fields
    assert {name: found[name].contents() for name in fields} == fields
    assert found["adapter.lora.alpha"].contents() == 1.0
    made = convert(adapter, format_named("peft"))
    assert made.manifest.metadata["adapter.lora.task_name"] == "sql"
    assert "header field general.license" in made.report("convert").left_out


@pytest.mark.parametrize("name", ["org/base", "/some/path/of/mine", "base", "FLOAT32 1.0"])
def test_the_base_model_is_named_in_the_header(tmp_path, name):
    converted(peft(tmp_path / "peft", ONE, base_model_name_or_path=name), tmp_path / "out")
    adapter = read(tmp_path / "out")
    assert adapter.base_model == name
    assert convert(adapter, GGUF).manifest.metadata == adapter.manifest.metadata


def test_text_that_looks_like_a_number_stays_text(tmp_path):
    source = peft(tmp_path / "peft")
    file = source / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "note": "FLOAT32 1.0"})
    converted(source, tmp_path / "out")
    found = gguf.GGUFReader(file_in(tmp_path / "out")).fields
    assert found["note"].contents() == "FLOAT32 1.0"
    assert "format" not in found
