"""What llama.cpp has no place for is refused by name, and leaves nothing behind."""

import numpy as np
import pytest
import torch
from gguf_adapters import (
    GGUF,
    KINDS,
    LLAMA,
    ONE,
    WIDTH,
    as_the_converter_writes,
    gguf,
    made_up,
    model,
    one,
    peft,
)
from safetensors.torch import load_file, save_file

from lora_tools.adapter import read
from lora_tools.errors import FormatError, LoraToolsError, NonFiniteError, UnsupportedError
from lora_tools.verbs.convert import convert


@pytest.mark.parametrize(
    ("modules", "base", "config", "message", "remedy"),
    [
        (
            *one("model.layers.0.mlp.up_proj", None),
            "which only the base model tells",
            "--base MODEL",
        ),
        (*one("model.layers.0.mlp.up_proj", {"a": 1}), "names no model_type", None),
        (*one("model.layers.0.mlp.up_proj", {"model_type": "gpt2"}), "of type gpt2", "qwen2"),
        (
            *one("model.layers.0.self_attn.k_proj", {"model_type": "llama"}),
            "num_attention_heads",
            None,
        ),
        (*one("model.layers.0.mlp.odd"), "no place for model.layers.0.mlp.odd", None),
        (*one("lm_head", LLAMA | {"tie_word_embeddings": True}), "ties its head", "Leave it out"),
        (
            *one("model.layers.0.self_attn.q_proj", LLAMA | {"num_attention_heads": 5}),
            "5 heads",
            "base",
        ),
        (*one("model.layers.0.mlp.up_proj", use_dora=True), "DoRA: model.layers", "--drop 'DoRA'"),
    ],
)
def test_what_llama_cpp_has_no_place_for_is_refused(
    tmp_path, modules, base, config, message, remedy
):
    source = peft(tmp_path / "peft", modules, **config)
    if config.get("use_dora"):
        file = source / "adapter_model.safetensors"
        (key_prefix,) = {key.rpartition(".lora_")[0] for key in load_file(file)}
        save_file(
            load_file(file) | {f"{key_prefix}.lora_magnitude_vector": torch.ones(WIDTH)}, file
        )
    with pytest.raises(LoraToolsError, match=message) as caught:
        convert(read(source, base=base), GGUF)
    assert isinstance(caught.value, FormatError | UnsupportedError)
    assert str(caught.value).startswith(f"{source}: ")
    if remedy:
        assert remedy in caught.value.__notes__[0]


def test_two_modules_of_one_name_are_refused(tmp_path):
    paths = ("model.layers.0.mlp.up_proj", "layers.0.mlp.up_proj")
    source = peft(tmp_path / "peft", dict.fromkeys(paths, ("", (WIDTH, WIDTH))))
    with pytest.raises(UnsupportedError, match=r"one name for these: .*layers\.0\.mlp\.up_proj"):
        convert(read(source, base=LLAMA), GGUF)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "falcon"}, "for the architecture 'falcon'"),
        ({"adapter.alora.invocation_tokens": [1, 2]}, "aLoRA is switched on by tokens"),
        ({"add": "blk.0.attn_v.bias"}, r"blk\.0\.attn_v\.bias of type F32 is not understood"),
        ({"add": "blk.0.ffn_gate_exps.weight.lora_a"}, "ffn_gate_exps: no weight of llama"),
        ({"add": "blk.3.attn_v.weight.lora_a"}, r"blk\.3\.attn_v has no lora_b"),
        ({"alpha": float("nan")}, "adapter.lora.alpha is nan"),
        ({"arch": "qwen2"}, "for the architecture qwen2, the base is llama"),
    ],
)
def test_files_that_are_no_lora_of_the_base_are_refused(tmp_path, change, message):
    tensors, _ = made_up(ONE)
    if name := change.pop("add", None):
        tensors[name] = (np.ones((4, 4), np.float32), KINDS.F32)
    as_the_converter_writes(tmp_path / "x.gguf", tensors, **change)
    with pytest.raises((FormatError, UnsupportedError), match=message) as caught:
        read(tmp_path / "x.gguf", base=LLAMA)
    assert str(caught.value).startswith(f"{tmp_path / 'x.gguf'}: ")


def test_a_model_is_no_adapter(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("blk.0.attn_v.weight.lora_a", np.ones((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match=r"general\.type is None and adapter\.type None"):
        read(tmp_path / "x.gguf")


def test_what_fails_leaves_nothing_behind(tmp_path):
    from click.testing import CliRunner

    from lora_tools.cli import cli

    base = model(tmp_path / "base")
    source = peft(tmp_path / "peft", ONE)
    file = source / "adapter_model.safetensors"
    save_file({key: value * 1e30 for key, value in load_file(file).items()}, file)
    out = tmp_path / "x.gguf"
    arguments = ["convert", source, out, "--to", "gguf", "--base", base, "--dtype", "float16"]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert isinstance(result.exception, NonFiniteError)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "peft"}
