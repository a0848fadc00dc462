"""Flux between diffusers' separate layers and its authors' fused ones, there and back."""

import json
import re

import pytest
import torch
from judges import judge
from reference import deltas, relative_error
from safetensors.torch import load_file, save_file

from lora_tools.adapter import read, write
from lora_tools.errors import UnsupportedError
from lora_tools.formats.registry import format_named
from lora_tools.linalg.rank import Fixed
from lora_tools.verbs.convert import convert, translate
from lora_tools.verbs.shrink import RewriteOptions, shrink

WIDE = 12
DOUBLE = {f"attn.to_{x}": WIDE for x in "qkv"} | {f"attn.add_{x}_proj": WIDE for x in "qkv"}
DOUBLE |= {"attn.to_out.0": WIDE, "ff.net.0.proj": 4 * WIDE}
SINGLE = {f"attn.to_{x}": WIDE for x in "qkv"} | {"proj_mlp": 4 * WIDE}
LAYERS = {f"transformer_blocks.18.{path}": out for path, out in DOUBLE.items()} | {
    f"single_transformer_blocks.3.{path}": out for path, out in SINGLE.items()
}
LAYERS["norm_out.linear"] = 2 * WIDE
PREFIX = "base_model.model."


def peft(folder, layers=LAYERS, r=4, dtype=torch.float32, shared=False, **config):
    """Write an adapter of diffusers' Flux as peft does, without any of our code."""
    torch.manual_seed(0)
    folder.mkdir()
    ranks = config.get("rank_pattern", {})
    tensors, inputs = {}, {}
    for path, out in layers.items():
        block = re.sub(r"(attn\.)?((to|add)_.*|proj_mlp)", "", path)
        a = torch.randn(ranks.get(path, r), WIDE).to(dtype)
        tensors[f"{PREFIX}{path}.lora_A.weight"] = inputs.setdefault(block, a) if shared else a
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.randn(out, ranks.get(path, r)).to(dtype)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": r, "lora_alpha": 7, "target_modules": ".*"} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def converted(source, out, target, **options):
    out.mkdir()
    plan = convert(read(source), format_named(target), **options)
    outcome = plan.report("convert")
    write(
        out, plan.manifest, outcome.watch(plan), like=plan.source.adapter, format=plan.source.format
    )
    return outcome


def fused(folder):
    """Return what a kohya or ComfyUI file adds to each layer, from its tensors alone."""
    (file,) = folder.glob("*.safetensors")
    tensors, found = load_file(file), {}
    for key in tensors:
        key_prefix = re.sub(r"\.(lora_down|lora_A)\.weight$", "", key)
        if key_prefix != key:
            b = tensors.get(
                f"{key_prefix}.lora_up.weight", tensors.get(f"{key_prefix}.lora_B.weight")
            )
            a = tensors[key].double()
            path = re.sub(r"^(lora_unet_|diffusion_model\.)", "", key_prefix).replace(".", "_")
            alpha = tensors.get(f"{key_prefix}.alpha", torch.tensor(len(a))).double()
            found[path] = alpha / len(a) * (b.double() @ a)
    return found


def stacks(folder):
    """Return what peft's file adds to the fused layers: the rows of each one, in order."""
    each = {name.removeprefix(PREFIX): delta for name, delta in deltas(folder).items()}
    double = "transformer_blocks.18."
    single = [f"single_transformer_blocks.3.{path}" for path in SINGLE]
    scale, shift = each["norm_out.linear"].chunk(2)
    return {
        "double_blocks_18_img_attn_qkv": torch.cat([each[f"{double}attn.to_{x}"] for x in "qkv"]),
        "double_blocks_18_txt_attn_qkv": torch.cat(
            [each[f"{double}attn.add_{x}_proj"] for x in "qkv"]
        ),
        "double_blocks_18_img_attn_proj": each[f"{double}attn.to_out.0"],
        "double_blocks_18_img_mlp_0": each[f"{double}ff.net.0.proj"],
        "single_blocks_3_linear1": torch.cat([each[path] for path in single]),
        "final_layer_adaLN_modulation_1": torch.cat([shift, scale]),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", ["kohya", "comfyui"])
@pytest.mark.parametrize("shared", [False, True])
def test_separate_layers_are_stacked_and_split_again(target, dtype, shared, tmp_path):
    source = peft(tmp_path / "peft", r=3, dtype=dtype, shared=shared)
    there = converted(source, tmp_path / target, target)
    assert there.error == 0
    found, wanted = fused(tmp_path / target), stacks(source)
    assert found.keys() == wanted.keys()
    for path, delta in wanted.items():
        torch.testing.assert_close(found[path], delta, rtol=1e-14, atol=1e-14)
    ranks = {row.module.rpartition(".")[2]: row.rank_stored for row in there.rows}
    # A of q, k and v is one and the same in what was fused once: the rank is its rank.
    assert ranks["qkv"] == (3 if shared else 9)
    assert ranks["linear1"] == (3 if shared else 12)
    assert ranks["proj"] == 3


def test_a_stack_and_back_keeps_every_bit(tmp_path):
    source = peft(tmp_path / "peft", r=3)
    there = converted(source, tmp_path / "kohya", "kohya")
    back = converted(tmp_path / "kohya", tmp_path / "back", "peft")
    assert there.error == back.error == 0
    assert {row.outcome for row in there.rows + back.rows} == {"kept"}
    before, after = (
        load_file(f / "adapter_model.safetensors") for f in (source, tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    wanted, seen = deltas(source), deltas(tmp_path / "back")
    assert all(torch.equal(wanted[name], seen[name]) for name in wanted)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_ranks_and_scales_that_differ_come_back(options, tmp_path):
    name = "transformer_blocks.18.attn.to_k"
    config = {"rank_pattern": {name: 2}, "alpha_pattern": {name: 5}} | options
    source = peft(tmp_path / "peft", **config)
    there = converted(source, tmp_path / "kohya", "kohya")
    found, wanted = fused(tmp_path / "kohya"), stacks(source)
    lost = sum(float((found[p] - wanted[p]).square().sum()) for p in wanted)
    whole = sum(float(d.square().sum()) for d in wanted.values())
    assert there.error == pytest.approx((lost / whole) ** 0.5, rel=1e-3, abs=2e-8)
    assert there.error < 1e-6
    converted(tmp_path / "kohya", tmp_path / "back", "peft")
    assert relative_error(deltas(source), deltas(tmp_path / "back")) < 1e-6
    ranks = {module.name: module.r for module in read(tmp_path / "back").manifest.modules}
    assert ranks[name] == 2


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
)
def test_a_rank_above_the_sides_is_reduced_and_its_error_is_that_of_the_bytes(
    dtype, bound, tmp_path
):
    """Four layers of rank 8 in twelve columns: 32 is more than any such update can have."""
    single = {path: out for path, out in LAYERS.items() if path.startswith("single")}
    source = peft(tmp_path / "peft", single, r=8, dtype=dtype)
    there = converted(source, tmp_path / "kohya", "kohya")
    (row,) = there.rows
    assert (row.rank_before, row.rank_after, row.outcome) == (32, WIDE, "reduced")
    each = {name.removeprefix(PREFIX): delta for name, delta in deltas(source).items()}
    wanted = torch.cat([each[path] for path in single])
    (found,) = fused(tmp_path / "kohya").values()
    error = float((found - wanted).norm() / wanted.norm())
    assert error < bound
    assert there.error == pytest.approx(error, rel=1e-2, abs=2e-8)
    back = converted(tmp_path / "kohya", tmp_path / "back", "peft")
    assert relative_error(deltas(source), deltas(tmp_path / "back")) < bound
    assert back.error < bound


def test_layers_that_are_missing_are_rows_of_zeros(tmp_path):
    single = "single_transformer_blocks.3."
    source = peft(tmp_path / "peft", {f"{single}attn.to_q": WIDE, f"{single}attn.to_v": WIDE})
    converted(source, tmp_path / "comfyui", "comfyui")
    (found,) = fused(tmp_path / "comfyui").values()
    assert found.shape == (7 * WIDE, WIDE)
    each = {name.removeprefix(PREFIX): delta for name, delta in deltas(source).items()}
    torch.testing.assert_close(found[:WIDE], each[f"{single}attn.to_q"])
    torch.testing.assert_close(found[2 * WIDE : 3 * WIDE], each[f"{single}attn.to_v"])
    assert not found[WIDE : 2 * WIDE].any()
    assert not found[3 * WIDE :].any()


def dora(folder, layers=LAYERS):
    """Write an adapter of diffusers' Flux with norms of every row, as peft does."""
    source = peft(folder, layers, r=2, use_dora=True)  # stacks have fewer columns than the layer
    file = source / "adapter_model.safetensors"
    norms = {
        f"{PREFIX}{path}.lora_magnitude_vector": torch.rand(out) + 1 for path, out in layers.items()
    }
    save_file(load_file(file) | norms, file)
    return source


def test_norms_of_rows_are_joined_and_shared_out_again(tmp_path):
    source = dora(tmp_path / "peft")
    converted(source, tmp_path / "kohya", "kohya")
    made = load_file(next((tmp_path / "kohya").glob("*.safetensors")))
    before = load_file(source / "adapter_model.safetensors")
    single = "single_transformer_blocks.3."
    parts = [before[f"{PREFIX}{single}{path}.lora_magnitude_vector"] for path in SINGLE]
    norms = made["lora_unet_single_blocks_3_linear1.dora_scale"]
    assert torch.equal(norms.flatten(), torch.cat(parts))
    turned = before[f"{PREFIX}norm_out.linear.lora_magnitude_vector"].chunk(2)[::-1]
    norms = made["lora_unet_final_layer_adaLN_modulation_1.dora_scale"]
    assert torch.equal(norms.flatten(), torch.cat(turned))
    back = converted(next((tmp_path / "kohya").glob("*.safetensors")), tmp_path / "back", "peft")
    assert back.error == 0
    after = load_file(tmp_path / "back" / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_norms_of_some_layers_that_are_fused_are_refused(tmp_path):
    single = "single_transformer_blocks.3."
    layers = {path: out for path, out in LAYERS.items() if path != f"{single}proj_mlp"}
    source = dora(tmp_path / "peft", layers)
    with pytest.raises(
        UnsupportedError, match=r"linear1: DoRA of 3 of the 4 layers that are fused"
    ):
        convert(read(source), format_named("kohya"))
    assert len(convert(read(source), format_named("kohya"), drop=["DoRA"])) == 6


def test_biases_go_with_their_rows(tmp_path):
    """To PEFT, which alone has them beside the original names."""
    key_prefix = "transformer.single_transformer_blocks.3"
    source = tmp_path / "x"
    source.mkdir()
    torch.manual_seed(0)
    tensors = {
        f"{PREFIX}diffusion_model.single_blocks.3.linear1.lora_A.weight": torch.randn(3, WIDE),
        f"{PREFIX}diffusion_model.single_blocks.3.linear1.lora_B.weight": torch.randn(7 * WIDE, 3),
        f"{PREFIX}diffusion_model.single_blocks.3.linear1.lora_B.bias": torch.randn(7 * WIDE),
    }
    save_file(tensors, source / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "lora_bias": True}
    config["target_modules"] = ["linear1"]
    (source / "adapter_config.json").write_text(json.dumps(config))
    outcome = converted(source, tmp_path / "out", "diffusers")
    assert outcome.error == 0
    made = load_file(next((tmp_path / "out").glob("*.safetensors")))
    bias = torch.cat([made[f"{key_prefix}.{path}.lora_B.bias"] for path in SINGLE])
    assert torch.equal(
        bias, tensors[f"{PREFIX}diffusion_model.single_blocks.3.linear1.lora_B.bias"]
    )


ALONE = {"transformer_blocks.0.attn.to_q": WIDE}


def test_names_that_many_families_share_need_the_base_model(tmp_path):
    """Qwen-Image has this layer, too, and no fused one to put it into."""
    with pytest.raises(UnsupportedError, match=r"Flux\.1.* and of Qwen-Image") as error:
        convert(read(peft(tmp_path / "x", ALONE)), format_named("kohya"))
    assert "--base MODEL" in "".join(error.value.__notes__)
    base = {"base_model_name_or_path": "black-forest-labs/FLUX.1-dev"}
    plan = convert(read(peft(tmp_path / "flux", ALONE, **base)), format_named("kohya"))
    config = {"_class_name": "FluxTransformer2DModel"}
    same = convert(read(tmp_path / "x", base=config), format_named("kohya"))  # as the hint says
    assert same.jobs[0].target.module.key_prefix == plan.jobs[0].target.module.key_prefix
    assert [job.target.module.key_prefix for job in plan.jobs] == [
        "lora_unet_double_blocks_0_img_attn_qkv"
    ]


@pytest.mark.parametrize("path", ["attn.to_q", "proj_mlp", "norm.linear"])
def test_a_block_of_one_stream_is_taken_for_fluxs(path, tmp_path):
    """Chroma and HunyuanVideo have it; whole adapters of theirs show more than Flux has."""
    outs = {"attn.to_q": WIDE, "proj_mlp": 4 * WIDE, "norm.linear": 3 * WIDE}
    layers = {f"single_transformer_blocks.0.{path}": outs[path], "x_embedder": WIDE}
    plan = convert(read(peft(tmp_path / "x", layers)), format_named("kohya"))
    key_prefixes = {job.target.module.key_prefix for job in plan.jobs}
    assert "lora_unet_img_in" in key_prefixes
    assert len(key_prefixes) == 2


@pytest.mark.parametrize("target", ["kohya", "diffusers"])
def test_stacks_are_shrunk_on_the_way(target, tmp_path):
    """From peft to the original layers, or from those to diffusers': truncated once, whole."""
    source = peft(tmp_path / "peft")
    if target == "diffusers":
        converted(source, tmp_path / "fused", "comfyui")
        source = tmp_path / "fused"
    translated = translate(read(source), format_named(target))
    shrunk = shrink(translated, Fixed(2), RewriteOptions(scale="keep"))
    outcome = shrunk.report("convert", "rank 2")
    out = tmp_path / "out"
    out.mkdir()
    rows = outcome.watch(shrunk)
    write(out, shrunk.manifest, rows, like=translated.adapter, format=translated.format)
    assert {row.rank_after for row in outcome.rows} == {2}
    if target == "kohya":
        found, wanted = fused(out), stacks(source)
    else:
        found = {n: torch.as_tensor(u.dense("float64")) for n, u in read(out).items()}
        each = deltas(tmp_path / "peft")
        wanted = {f"transformer.{n.removeprefix(PREFIX)}": delta for n, delta in each.items()}
    assert found.keys() == wanted.keys()
    lost = sum(float((found[p] - wanted[p]).square().sum()) for p in wanted)
    tails = sum(float(torch.linalg.svdvals(d)[2:].square().sum()) for d in wanted.values())
    whole = sum(float(d.square().sum()) for d in wanted.values())
    assert outcome.error == pytest.approx((lost / whole) ** 0.5, rel=1e-6)
    assert outcome.optimal_error == pytest.approx((tails / whole) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("target", ["kohya", "comfyui"])
def test_hunyuan_video_is_told_by_its_number_of_blocks(target, tmp_path):
    """It has Flux's layers in diffusers, more blocks, and other names outside of them."""
    layers = {f"single_transformer_blocks.39.{path}": out for path, out in SINGLE.items()}
    layers["transformer_blocks.19.ff.net.0.proj"] = 4 * WIDE
    source = peft(tmp_path / "peft", layers, r=2)
    outcome = converted(source, tmp_path / target, target)
    assert outcome.error == 0
    found = fused(tmp_path / target)
    mlp = {"kohya": "double_blocks_19_img_mlp_fc1", "comfyui": "double_blocks_19_img_mlp_0"}
    assert found.keys() == {"single_blocks_39_linear1", mlp[target]}
    each = {name.removeprefix(PREFIX): delta for name, delta in deltas(source).items()}
    wanted = torch.cat([each[f"single_transformer_blocks.39.{path}"] for path in SINGLE])
    torch.testing.assert_close(found["single_blocks_39_linear1"], wanted)


FLUX2 = {
    "double_blocks.0.img_attn.qkv": (3, 1),
    "double_blocks.0.img_mlp.0": (6, 1),
    "double_blocks.0.img_mlp.2": (1, 3),
    "single_blocks.0.linear1": (9, 1),
    "single_blocks.0.linear2": (1, 4),
}
"""Modules of Flux.2 under names that Flux.1 has, too, and how many times WIDE their sides are."""


def comfyui(folder, sides, prefix="diffusion_model."):
    folder.mkdir()
    torch.manual_seed(0)
    tensors = {}
    for path, (out, inp) in sides.items():
        tensors[f"{prefix}{path}.lora_A.weight"] = torch.randn(2, inp * WIDE)
        tensors[f"{prefix}{path}.lora_B.weight"] = torch.randn(out * WIDE, 2)
    save_file(tensors, folder / "x.safetensors")
    return folder / "x.safetensors"


def test_flux_2_has_its_own_names_in_diffusers(tmp_path):
    """Every layer is found by its own name in diffusers' model, whole; none by Flux.1's rules."""
    source = comfyui(tmp_path / "x", FLUX2)
    outcome = converted(source, tmp_path / "out", "diffusers")
    assert outcome.error == 0
    settings = {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 6}
    settings |= {"num_attention_heads": 2, "joint_attention_dim": 8, "axes_dims_rope": (2, 2, 2)}
    model = judge("diffusers").Flux2Transformer2DModel(**settings)
    layers = dict(model.named_modules())
    found = read(tmp_path / "out")
    paths = {name.removeprefix("transformer.") for name in found}
    assert paths == {
        *(f"transformer_blocks.0.attn.to_{x}" for x in "qkv"),
        *(f"transformer_blocks.0.ff.linear_{x}" for x in ("in", "out")),
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj",
        "single_transformer_blocks.0.attn.to_out",
    }
    for name, update in found.items():
        shape = layers[name.removeprefix("transformer.")].weight.shape
        assert torch.as_tensor(update.dense("float64")).shape == shape
    back = converted(tmp_path / "out", tmp_path / "back", "comfyui")
    assert back.error == 0
    before, after = fused(source.parent), fused(tmp_path / "back")
    assert before.keys() == after.keys()
    for path, delta in before.items():
        torch.testing.assert_close(after[path], delta)


def test_rows_that_neither_flux_has_are_refused(tmp_path):
    source = comfyui(tmp_path / "x", FLUX2 | {"single_blocks.0.linear1": (8, 1)})
    with pytest.raises(UnsupportedError, match=r"linear1: Flux\.2, whose names the others are"):
        convert(read(source), format_named("diffusers"))
    assert len(convert(read(source), format_named("kohya"))) == len(FLUX2)  # where no name changes
