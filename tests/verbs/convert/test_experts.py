"""Experts split as files have them and stacked as PEFT does: the same updates, for real loaders."""

import json
import pickle
import warnings
from pathlib import Path

import dense
import pytest
import torch
from click.testing import CliRunner
from moe import PER_EXPERT, VERSIONS, D, R, laid_out, saved, stacks_of
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from lora_tools import Adapter, read
from lora_tools.adapter import write
from lora_tools.cli import cli
from lora_tools.errors import PolicyError, UnsupportedError
from lora_tools.executors import Threads
from lora_tools.formats.registry import format_named
from lora_tools.formats.sites import Experts
from lora_tools.model import open_model
from lora_tools.verbs.convert import convert, translate
from lora_tools.verbs.merge import WeightedAdapter, merge, plan

PEFT = format_named("peft")
SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32,
    "bos_token_id": None,
    "eos_token_id": None,
}


def mixtral():
    return MixtralForCausalLM(MixtralConfig(intermediate_size=12, num_local_experts=3, **SMALL))


def qwen3():
    sizes = {"moe_intermediate_size": 16, "num_experts": 3, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **SMALL))


MODELS = {"mixtral": mixtral, "qwen3_moe": qwen3}
LEAVES = {"mixtral": ("w1", "w2", "w3"), "qwen3_moe": ("gate_proj", "up_proj", "down_proj")}
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def converted(source: Path, base: Path, experts, out: Path) -> Adapter:
    adapter = read(source)
    made = convert(adapter, PEFT, Threads(2), paths=open_model(base), experts=experts)
    out.mkdir()
    write(out, made.manifest, ((c.module, c.update) for c in made), like=adapter)
    return read(out)


def merged(adapter: Path, base: Path, out: Path) -> dict[str, torch.Tensor]:
    merge(plan(open_model(base), [WeightedAdapter(read(adapter))])).write(out)
    return dense.load_model(out)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(9)[None]).logits


def loaded(base: Path, adapter: Path) -> torch.Tensor:
    """Return the logits of the base with an adapter that PEFT loads without a word."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, adapter).eval()
    assert not [each for each in caught if "missing" in str(each.message)]
    return logits(model)


def test_stacks_that_peft_trained_are_split_and_stacked_again(tmp_path):
    """Halves share the stack's A, so that its rank comes back."""
    for name, build in MODELS.items():
        folder = tmp_path / name
        model = build().eval()
        model.save_pretrained(folder / "base")
        config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=STACKS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            live = get_peft_model(model, config).eval()
            for weight in live.parameters():
                if weight.requires_grad:
                    torch.nn.init.normal_(weight, std=0.3)
            live.save_pretrained(folder / "adapter")
        split = converted(folder / "adapter", folder / "base", "split", folder / "split")
        experts = [m for m in split.manifest.modules if ".experts." in m.name]
        assert {m.name.rpartition(".")[2] for m in experts} == {*LEAVES[name]}
        assert len(experts) == 9
        assert {m.rank for m in experts} == {2}
        again = converted(folder / "split", folder / "base", "stacked", folder / "again")
        stacks = [m for m in again.manifest.modules if isinstance(m.site, Experts)]
        assert [m.rank for m in stacks] == [2, 2]
        for way in ("split", "again"):
            got = loaded(folder / "base", folder / way)
            assert torch.allclose(got, logits(live), atol=1e-5), way


def per_expert(folder: Path, model, leaves) -> Path:
    """Save factors for the router and each expert, as PEFT did where experts were layers."""
    model.save_pretrained(folder / "base")
    tensors = {}
    for key, weight in dense.load_model(folder / "base").items():
        leaf = key.removesuffix(".weight").rpartition(".")[2]
        if leaf in (*leaves, "gate", "q_proj"):
            name = f"base_model.model.{key.removesuffix('.weight')}"
            tensors[f"{name}.lora_A.weight"] = 0.3 * torch.randn(2, weight.shape[1])
            tensors[f"{name}.lora_B.weight"] = 0.3 * torch.randn(weight.shape[0], 2)
    (folder / "adapter").mkdir()
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "peft_version": "0.18.1"}
    config |= {"target_modules": [*leaves, "gate", "q_proj"], "lora_dropout": 0.05}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return folder / "adapter"


@pytest.mark.parametrize("name", MODELS)
def test_experts_one_by_one_are_stacked_for_peft_and_split_again_bit_for_bit(name, tmp_path):
    source = per_expert(tmp_path, MODELS[name](), LEAVES[name])
    base = tmp_path / "base"
    stacked = converted(source, base, "stacked", tmp_path / "stacked")
    config = json.loads((tmp_path / "stacked" / "adapter_config.json").read_text())
    assert config["peft_version"] == "0.19.1"
    assert not config["lora_dropout"]  # which PEFT refuses for parameters
    assert {m.rank for m in stacked.manifest.modules if m.stack > 1} == {2, 4}
    wanted = merged(source, base, tmp_path / "one-by-one")
    for key, weight in merged(tmp_path / "stacked", base, tmp_path / "as-stacks").items():
        assert torch.allclose(weight, wanted[key], atol=1e-6), key
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "one-by-one").eval()
    assert torch.allclose(loaded(base, tmp_path / "stacked"), logits(reference), atol=1e-5)
    converted(tmp_path / "stacked", base, "split", tmp_path / "again")
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (source, tmp_path / "again")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


@pytest.mark.parametrize("size", [6, D], ids=["oblong", "square"])
@pytest.mark.parametrize("layout", PER_EXPERT)
@pytest.mark.parametrize("version", VERSIONS)
def test_factors_that_are_the_other_way_round_are_turned(version, layout, size, tmp_path):
    state, shapes, kind = laid_out(layout, size)
    base = dense.save_base(tmp_path / "base", state, torch.float64, model_type=kind)
    added = saved(tmp_path / "adapter", version, shapes)
    split = converted(tmp_path / "adapter", base, "split", tmp_path / "split")
    assert {module.rank for module in split.manifest.modules} == {R}
    after = stacks_of(layout, merged(tmp_path / "split", base, tmp_path / "out"))
    for name, weight in stacks_of(layout, state).items():
        assert torch.allclose(after[name] - weight, added[name], atol=1e-12)


def test_scales_that_differ_are_folded_and_missing_experts_are_zero(tmp_path):
    state, _, kind = laid_out("qwen3_moe", 6)
    base = dense.save_base(tmp_path / "base", state, torch.float64, model_type=kind)
    keys = [key.removesuffix(".weight") for key in state if ".1." not in key]
    tensors = {}
    for key in keys:
        out, inp = state[f"{key}.weight"].shape
        tensors[f"base_model.model.{key}.lora_A.weight"] = torch.randn(R, inp)
        tensors[f"base_model.model.{key}.lora_B.weight"] = torch.randn(out, R)
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": R, "lora_alpha": 3, "alpha_pattern": {"up_proj": 7}}
    config["target_modules"] = [*LEAVES["qwen3_moe"]]
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    stacked = converted(tmp_path / "adapter", base, "stacked", tmp_path / "stacked")
    assert all(isinstance(module.site, Experts) for module in stacked.manifest.modules)
    wanted = merged(tmp_path / "adapter", base, tmp_path / "one-by-one")
    for key, weight in merged(tmp_path / "stacked", base, tmp_path / "as-stacks").items():
        assert torch.allclose(weight, wanted[key], atol=1e-5)
        assert (".1." in key) == torch.equal(weight, state[key])


def test_what_no_base_has_is_refused_by_name(tmp_path):
    state, shapes, kind = laid_out("gpt_oss", 6)
    base = dense.save_base(tmp_path / "base", state, torch.float64, model_type=kind)
    saved(tmp_path / "adapter", "0.21.2", shapes, stored_transposed=True)
    adapter, model = read(tmp_path / "adapter"), open_model(base)
    with pytest.raises(UnsupportedError, match=r"has its experts in one tensor.*gate_up_proj"):
        translate(adapter, PEFT, paths=model, experts="split")
    with pytest.raises(UnsupportedError, match="no experts that are one by one"):
        translate(adapter, PEFT, paths=model, experts="stacked")
    with pytest.raises(PolicyError, match="as a base has them"):
        translate(adapter, PEFT, experts="split")
    with pytest.raises(UnsupportedError, match="in PEFT's format"):
        translate(adapter, format_named("mlx"), drop=["experts"], paths=model, experts="split")


def test_another_process_finds_the_same_experts(tmp_path):
    state, shapes, kind = laid_out("mixtral", 6)
    base = dense.save_base(tmp_path / "base", state, torch.float64, model_type=kind)
    saved(tmp_path / "adapter", "0.19.0", shapes)
    source = translate(read(tmp_path / "adapter"), PEFT, paths=open_model(base), experts="split")
    again = pickle.loads(pickle.dumps(source))
    assert again.origins.keys() == source.origins.keys()
    assert len(pickle.dumps(source)) < 4096


def test_the_command_line_splits_experts(tmp_path):
    state, shapes, kind = laid_out("mixtral", 6)
    base = dense.save_base(tmp_path / "base", state, torch.float32, model_type=kind)
    saved(tmp_path / "adapter", "0.21.2", shapes)
    arguments = [str(tmp_path / "adapter"), str(tmp_path / "out"), "--to", "peft"]
    arguments += ["--experts", "split", "--base", str(base)]
    result = CliRunner().invoke(cli, ["convert", *arguments])
    assert not result.exit_code, result.output
    names = [module.name for module in read(tmp_path / "out").manifest.modules]
    assert "model.layers.0.block_sparse_moe.experts.2.w3" in names
    assert len(names) == 9
