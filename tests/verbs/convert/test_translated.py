"""Conversions that lower ranks on the way, against dense float64 references of the source."""

import json
from math import sqrt

import numpy as np
import pytest
import torch
from reference import relative_error
from safetensors.torch import load_file, save_file

from lora_tools.adapter import read, write
from lora_tools.errors import BoundError
from lora_tools.formats.registry import format_named
from lora_tools.linalg.rank import Energy, Fixed, MaxBytes, MaxError, MaxParams
from lora_tools.verbs.convert import translate
from lora_tools.verbs.shrink import RewriteOptions, shrink

BLOCK = "down_blocks_0_attentions_0_transformer_blocks_0"
LOHA, LOKR, FULL, PAIR = (
    f"lora_unet_{BLOCK}_{end}" for end in ("attn1_to_q", "attn1_to_k", "ff_net_2", "attn2_to_v")
)


def name(key_prefix):
    path = key_prefix.removeprefix(f"lora_unet_{BLOCK}_")
    path = (
        path.replace("attn1_", "attn1.").replace("attn2_", "attn2.").replace("ff_net_", "ff.net.")
    )
    return f"unet.down_blocks.0.attentions.0.transformer_blocks.0.{path}"


@pytest.fixture
def lycoris(tmp_path):
    """A kohya file of a LoHa, a LoKr, a full-rank diff and a plain pair; its dense updates."""
    torch.manual_seed(0)
    draw = torch.randn
    tensors = {
        f"{LOHA}.hada_w1_a": draw(24, 3),
        f"{LOHA}.hada_w1_b": draw(3, 20),
        f"{LOHA}.hada_w2_a": draw(24, 3),
        f"{LOHA}.hada_w2_b": draw(3, 20),
        f"{LOHA}.alpha": torch.tensor(1.5),
        f"{LOKR}.lokr_w1": draw(4, 4),
        f"{LOKR}.lokr_w2_a": draw(6, 2),
        f"{LOKR}.lokr_w2_b": draw(2, 5),
        f"{LOKR}.alpha": torch.tensor(1.0),
        f"{FULL}.diff": draw(12, 16) @ torch.diag(0.5 ** torch.arange(16)),
        f"{PAIR}.lora_down.weight": draw(4, 20),
        f"{PAIR}.lora_up.weight": draw(24, 4),
        f"{PAIR}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "source.safetensors")
    t = {key: value.double() for key, value in tensors.items()}
    w1 = t[f"{LOHA}.hada_w1_a"] @ t[f"{LOHA}.hada_w1_b"]
    w2 = t[f"{LOHA}.hada_w2_a"] @ t[f"{LOHA}.hada_w2_b"]
    product = t[f"{LOKR}.lokr_w2_a"] @ t[f"{LOKR}.lokr_w2_b"]
    pair = t[f"{PAIR}.lora_up.weight"] @ t[f"{PAIR}.lora_down.weight"]
    dense = {
        name(LOHA): (w1 * w2) * 1.5 / 3,
        name(LOKR): torch.kron(t[f"{LOKR}.lokr_w1"], product) * 1 / 2,
        name(FULL): t[f"{FULL}.diff"],
        name(PAIR): pair * 2 / 4,
    }
    return read(tmp_path / "source.safetensors"), dense


def written(source, out, target, policy, **options):
    """Convert and shrink; return the report and the dense updates of the bytes on disk."""
    translated = translate(source, format_named(target))
    shrunk = shrink(translated, policy, RewriteOptions(scale="keep", **options))
    outcome = shrunk.report("convert", str(policy))
    rows = outcome.watch(shrunk)
    out.mkdir()
    write(out, shrunk.manifest, rows, like=source, format=translated.format)
    (file,) = out.glob("*.safetensors")
    assert outcome.nbytes[1] == file.stat().st_size
    return outcome, stored(file, target)


def stored(file, target):
    """Return the dense updates of a file, from its bytes and its alphas alone."""
    tensors, found = load_file(file), {}
    if target == "kohya":
        for key in tensors:
            if key_prefix := key.removesuffix(".lora_down.weight") if "lora_down" in key else None:
                a, b = tensors[key].double(), tensors[f"{key_prefix}.lora_up.weight"].double()
                alpha = tensors.get(f"{key_prefix}.alpha", torch.tensor(float(len(a))))
                found[name(key_prefix)] = alpha.double() / len(a) * (b @ a)
        return found
    if target == "mlx":
        config = json.loads((file.parent / "adapter_config.json").read_text())
        scale = config["lora_parameters"]["scale"]
        for key in tensors:
            if key_prefix := key.removesuffix(".lora_a") if key.endswith(".lora_a") else None:
                a, b = tensors[key].double(), tensors[f"{key_prefix}.lora_b"].double()
                found[f"unet.{key_prefix}"] = scale * (a @ b).T
        return found
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["lora_adapter_metadata"])
    for key in tensors:
        if key_prefix := key.removesuffix(".lora_A.weight") if "lora_A" in key else None:
            a, b = tensors[key].double(), tensors[f"{key_prefix}.lora_B.weight"].double()
            alphas = config["unet.alpha_pattern"]
            alpha = alphas.get(key_prefix.removeprefix("unet."), config["unet.lora_alpha"])
            found[key_prefix] = alpha / len(a) * (b @ a)
    return found


@pytest.mark.parametrize("target", ["kohya", "diffusers", "mlx"])
@pytest.mark.parametrize("dtype", [None, "F16", "BF16"])
def test_the_error_is_that_of_the_bytes_against_the_source(target, dtype, lycoris, tmp_path):
    source, dense = lycoris
    outcome, found = written(source, tmp_path / "out", target, Fixed(3), dtype=dtype)
    error = relative_error(dense, found)
    assert outcome.error == pytest.approx(error, rel=1e-6)
    least = sum(float(torch.linalg.svdvals(d)[3:].square().sum()) for d in dense.values())
    whole = sum(float(d.square().sum()) for d in dense.values())
    assert outcome.optimal_error == pytest.approx(sqrt(least / whole), rel=1e-9)
    assert outcome.error >= outcome.optimal_error * (1 - 1e-9)
    rounding = {None: 1e-9, "F16": 1e-5, "BF16": 1e-3}[dtype]
    assert outcome.error**2 - outcome.optimal_error**2 < rounding
    assert {row.rank_after for row in outcome.rows} == {3}
    for row in outcome.rows:
        lost = found[row.module] if target != "mlx" else found[f"unet.{row.module}"]
        delta = dense[row.module if target != "mlx" else f"unet.{row.module}"]
        each = float((delta - lost).norm() / delta.norm())
        assert row.error == pytest.approx(each, rel=1e-6)


def test_every_policy_keeps_its_promise(lycoris, tmp_path):
    source, dense = lycoris
    policies = [Energy(0.8), MaxError(0.3), MaxParams(400), MaxBytes(3000)]
    for number, policy in enumerate(policies):
        outcome, found = written(source, tmp_path / str(number), "diffusers", policy)
        file = next((tmp_path / str(number)).glob("*.safetensors"))
        params = sum(tensor.numel() for tensor in load_file(file).values())
        errors = {n: float((dense[n] - found[n]).norm() / dense[n].norm()) for n in dense}
        match policy:
            case Energy(share):
                assert all(1 - error**2 >= share - 1e-9 for error in errors.values())
            case MaxError(bound):
                assert relative_error(dense, found) <= bound
            case MaxParams(count):
                assert params <= count
            case MaxBytes(count):
                assert file.stat().st_size <= count
        assert outcome.policy == str(policy)


def test_a_module_whose_rank_does_not_fall_keeps_its_bits(lycoris, tmp_path):
    source, _ = lycoris
    outcome, _ = written(source, tmp_path / "out", "diffusers", Fixed(4))
    outcomes = {row.module: row.outcome for row in outcome.rows}
    assert outcomes.pop(name(PAIR)) == "kept"
    assert set(outcomes.values()) == {"shrunk"}
    before = load_file(source.path)
    after = load_file(next((tmp_path / "out").glob("*.safetensors")))
    assert torch.equal(after[f"{name(PAIR)}.lora_A.weight"], before[f"{PAIR}.lora_down.weight"])
    assert torch.equal(after[f"{name(PAIR)}.lora_B.weight"], before[f"{PAIR}.lora_up.weight"])


@pytest.mark.parametrize("policy", [MaxParams(300), MaxBytes(1900)])
def test_a_budget_that_zeros_would_break_is_refused(policy, tmp_path):
    tensors = {}
    for index, values in enumerate(([9.0, 8, 7, 6], [9.0, 0.1, 0.01, 0.001])):
        key_prefix = f"lora_te_text_model_encoder_layers_{index}_mlp_fc1"
        tensors[f"{key_prefix}.lora_down.weight"] = torch.eye(4, 20) * torch.tensor(values)[:, None]
        tensors[f"{key_prefix}.lora_up.weight"] = torch.eye(30, 4)
    save_file(tensors, tmp_path / "source.safetensors")
    source = read(tmp_path / "source.safetensors")
    kohya = shrink(translate(source, format_named("kohya")), policy, RewriteOptions(scale="keep"))
    ranks = [module.r for module in kohya.manifest.modules]
    assert ranks[0] > ranks[1]
    translated = translate(source, format_named("mlx"))
    with pytest.raises(BoundError, match="filled up to one rank for all"):
        shrink(translated, policy, RewriteOptions(scale="keep"))


def test_a_translated_adapter_has_the_updates_of_its_source(lycoris):
    source, dense = lycoris
    translated = translate(source, format_named("diffusers"))
    assert set(translated) == set(dense)
    for module in translated.manifest.modules:
        update = translated.update(module)
        assert np.allclose(update.dense("float64"), dense[module.name], rtol=1e-12, atol=1e-12)
