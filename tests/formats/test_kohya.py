"""kohya and LyCORIS: files that LyCORIS wrote are read here, and it reads what is written here."""

import json
import math

import numpy as np
import pytest
import torch
from judges import judge
from safetensors.torch import load_file, save_file
from torch import nn

from lora_tools.adapter import read, write
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.registry import format_named
from lora_tools.formats.sites import Convolution
from lora_tools.linalg.rank import Fixed
from lora_tools.update import DoRA, factors
from lora_tools.verbs.convert import convert
from lora_tools.verbs.shrink import shrink

KOHYA = format_named("kohya")


class Net(nn.Module):
    """A linear layer and a convolution, under names that only LyCORIS' own prefix fits."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(12, 20)
        self.conv = nn.Conv2d(6, 10, 3)


ALGORITHMS = {
    "locon": {"algo": "locon"},
    "locon-tucker": {"algo": "locon", "use_tucker": True},
    "loha": {"algo": "loha"},
    "loha-tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 2},
    "lokr-tucker": {"algo": "lokr", "factor": 2, "use_tucker": True},
    "lokr-both": {"algo": "lokr", "factor": 2, "decompose_both": True},
    "lokr-full": {"algo": "lokr", "factor": 2, "full_matrix": True},
    "full": {"algo": "full"},
    "rslora": {"algo": "locon", "rs_lora": True},
}


def trained(options, **more):
    """Return LyCORIS' own network on a small model, with random numbers where it starts at 0."""
    lycoris = judge("lycoris")
    torch.manual_seed(0)
    model = Net()
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Linear", "Conv2d"]})
    sizes = {"linear_dim": 3, "linear_alpha": 2, "conv_dim": 3, "conv_alpha": 2}
    network = lycoris.create_lycoris(model, 1.0, **sizes, **options, **more)
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model, network


def merged(model, network):
    """Return what LyCORIS adds to each weight in use, as its own forward pass sees it."""
    found = {}
    with torch.no_grad():
        for module in network.loras:
            name = module.lora_name.removeprefix("lycoris_")
            x = torch.eye(12) if name == "proj" else None
            layer = module.org_module[0]
            if x is not None:
                base = x @ layer.weight.T + layer.bias
                found[name] = (model.proj(x) - base).T
            else:
                columns = torch.eye(6 * 9).reshape(54, 6, 3, 3)
                base = nn.functional.conv2d(columns, layer.weight, layer.bias)
                found[name] = (model.conv(columns) - base).reshape(54, 10).T
    return found


def saved(network, tmp_path, name="made.safetensors"):
    file = tmp_path / name
    tensors = {key: value.contiguous().clone() for key, value in network.state_dict().items()}
    save_file(tensors, file)
    return file


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "full"])
def test_what_lycoris_wrote_means_what_lycoris_computes(name, tmp_path):
    model, network = trained(ALGORITHMS[name])
    adapter = read(saved(network, tmp_path))
    wanted = merged(model, network)
    assert {each.removeprefix("lycoris_") for each in adapter} == wanted.keys()
    for each in adapter:
        seen = torch.as_tensor(adapter[each].dense("float64")).float()
        delta = wanted[each.removeprefix("lycoris_")]
        torch.testing.assert_close(seen, delta, rtol=1e-4, atol=1e-4)


def test_a_full_difference_is_added_as_it_is(tmp_path):
    _, network = trained(ALGORITHMS["full"])
    file = saved(network, tmp_path)
    adapter = read(file)
    tensors = load_file(file)
    for name in adapter:
        wanted = tensors[f"{name}.diff"].flatten(1)
        assert np.array_equal(adapter[name].dense("float32"), wanted)
    assert [extra.kind for extra in adapter.manifest.extras] == ["bias difference"] * 2


@pytest.mark.parametrize("name", ["locon", "locon-tucker", "rslora", "loha-tucker", "lokr-tucker"])
def test_lycoris_reads_what_is_written_here(name, tmp_path):
    model, network = trained(ALGORITHMS[name])
    adapter = read(saved(network, tmp_path))
    plan = convert(adapter, KOHYA)
    (tmp_path / "out").mkdir()
    outcome = plan.report("convert")
    write(tmp_path / "out", plan.manifest, outcome.watch(plan), like=adapter, format=KOHYA)
    assert outcome.error < 1e-6
    fresh = Net()
    fresh.load_state_dict(model.state_dict())
    file = tmp_path / "out" / "made.safetensors"
    again, _ = judge("lycoris").create_lycoris_from_weights(1.0, str(file), fresh)
    again.apply_to()
    wanted, seen = merged(model, network), merged(fresh, again)
    assert seen.keys() == wanted.keys()
    for each, delta in wanted.items():
        torch.testing.assert_close(seen[each], delta, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("on_output", [True, False])
def test_dora_has_its_axis(on_output, tmp_path):
    _, network = trained({"algo": "locon"}, dora_wd=True, wd_on_output=on_output)
    adapter = read(saved(network, tmp_path))
    for name in adapter:
        update = adapter[name]
        assert isinstance(update, DoRA)
        assert update.axis == ("out" if on_output else "in")
    peft = format_named("peft")
    if on_output:
        modules = convert(adapter, peft).manifest.modules
        shapes = [module.parts["magnitude"].spec.shape for module in modules]
        assert sorted(shapes) == [(1, 10, 1, 1), (20,)]
    else:
        with pytest.raises(UnsupportedError, match=r"DoRA by column: lycoris_"):
            convert(adapter, peft)


def weights(model, network):
    """Return the weights that a network leaves a model with in use, DoRA's norms and all."""
    found = {}
    with torch.no_grad():
        found["proj"] = (model.proj(torch.eye(12)) - model.proj.bias).T
        columns = torch.eye(6 * 9).reshape(54, 6, 3, 3)
        flat = model.conv(columns) - model.conv.bias[:, None, None]
        found["conv"] = flat.reshape(54, 10).T
    return found


@pytest.mark.parametrize("on_output", [True, False])
def test_lycoris_and_we_merge_its_dora_alike(on_output, tmp_path):
    """Magnitudes per output or per input, of W + dW, as the definition and its own forward say."""
    model, network = trained({"algo": "locon"}, dora_wd=True, wd_on_output=on_output)
    wanted, adapter = weights(model, network), read(saved(network, tmp_path))
    for name in adapter:
        update, path = adapter[name], name.removeprefix("lycoris_")
        base = next(m.org_module[0] for m in network.loras if m.lora_name == name)
        delta = torch.as_tensor(update.direction.dense("float64")).reshape(base.weight.shape)
        whole = base.weight.detach().double() + delta
        axes = [d for d in range(whole.ndim) if d != (0 if on_output else 1)]
        norm = whole.square().sum(axes, keepdim=True).sqrt()
        magnitude = torch.as_tensor(update.magnitude).double().reshape(norm.shape)
        seen = (magnitude * whole / norm).flatten(1).float()
        torch.testing.assert_close(seen, wanted[path], rtol=1e-3, atol=1e-3)


def test_lycoris_reads_the_dora_that_is_written_here(tmp_path):
    """Norms of rows: its loader makes room for no others, not for those of its own files either."""
    model, network = trained({"algo": "locon"}, dora_wd=True, wd_on_output=True)
    adapter = read(saved(network, tmp_path))
    plan = convert(adapter, KOHYA, dtype="F32")
    (tmp_path / "out").mkdir()
    write(
        tmp_path / "out",
        plan.manifest,
        plan.report("convert").watch(plan),
        like=adapter,
        format=KOHYA,
    )
    file = tmp_path / "out" / "made.safetensors"
    before, after = load_file(adapter.path), load_file(file)
    scales = [key for key in before if key.endswith("dora_scale")]
    assert len(scales) == 2
    assert all(torch.equal(before[key], after[key]) for key in scales)
    fresh = Net()
    fresh.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k in dict(fresh.named_parameters())}
    )
    again, _ = judge("lycoris").create_lycoris_from_weights(1.0, str(file), fresh)
    again.apply_to()
    wanted, seen = weights(model, network), weights(fresh, again)
    for path, weight in wanted.items():
        torch.testing.assert_close(seen[path], weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["locon", "locon-tucker", "loha", "lokr", "lokr-full", "full"])
def test_a_shrink_writes_kohya_with_the_right_alphas(name, tmp_path):
    _, network = trained(ALGORITHMS[name])
    adapter = read(saved(network, tmp_path))
    result = shrink(adapter, Fixed(2))
    (tmp_path / "out").mkdir()
    report = result.report("shrink", "rank 2")
    write(tmp_path / "out", result.manifest, report.watch(result), like=adapter)
    tensors = load_file(tmp_path / "out" / "made.safetensors")
    ends = {key.split(".", 1)[1] for key in tensors}
    beside = {"diff_b"} if name == "full" else set()
    assert ends == {"lora_down.weight", "lora_up.weight", "alpha"} | beside
    again = read(tmp_path / "out")
    lost = whole = 0.0
    for each in adapter:
        before, after = (factors(x[each]).dense("float64") for x in (adapter, again))
        s = np.linalg.svd(before, compute_uv=False)
        assert np.linalg.norm(before - after) == pytest.approx(np.linalg.norm(s[2:]), rel=1e-4)
        lost += np.linalg.norm(before - after) ** 2
        whole += np.linalg.norm(before) ** 2
    assert report.error == pytest.approx(math.sqrt(lost / whole), rel=1e-6)


def pair(key_prefix, r=4, out=5, inp=6, dtype="F16"):
    return {
        f"{key_prefix}.lora_down.weight": Spec(dtype, (r, inp)),
        f"{key_prefix}.lora_up.weight": Spec(dtype, (out, r)),
        f"{key_prefix}.alpha": Spec(dtype, ()),
    }


Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(("alpha", "scale"), [(2.0, 0.5), (4.0, 1.0), (0.0, 1.0), (None, 1.0)])
def test_a_missing_alpha_and_one_of_0_are_a_scale_of_1(alpha, scale):
    specs = pair(Q)
    if alpha is None:
        del specs[f"{Q}.alpha"]
    manifest = KOHYA.read(Contents(specs, None, {}, {f"{Q}.alpha": alpha}))
    assert [module.scale for module in manifest.modules] == [scale]


PATHS = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": Q,
    "text_encoder.text_model.encoder.layers.3.mlp.fc1": (
        "lora_te_text_model_encoder_layers_3_mlp_fc1"
    ),
    "text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj": (
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj"
    ),
    "diffusion_model.input_blocks.4.1.transformer_blocks.0.ff.net.0.proj": (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_ff_net_0_proj"
    ),
    "diffusion_model.double_blocks.0.img_attn.qkv": "lora_unet_double_blocks_0_img_attn_qkv",
    "diffusion_model.joint_blocks.3.x_block.attn.qkv": "lora_unet_joint_blocks_3_x_block_attn_qkv",
    "lora_unet_somebodys_own_layer_3": "lora_unet_somebodys_own_layer_3",
}


@pytest.mark.parametrize("name", PATHS)
def test_paths_get_their_dots_back_where_a_model_is_known(name):
    key_prefix = PATHS[name]
    manifest = KOHYA.read(Contents(pair(key_prefix), None, {}, {f"{key_prefix}.alpha": 4.0}))
    (module,) = manifest.modules
    assert module.name == name
    flat = [note for note in manifest.notes if "taken for" not in note]
    assert bool(flat) == (name == key_prefix)
    assert KOHYA.write(manifest).specs == pair(key_prefix)


def test_t5_is_the_third_encoder_of_kohyas_flux():
    t5 = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    specs = pair("lora_unet_double_blocks_0_img_attn_qkv") | pair(t5)
    scalars = {key: 4.0 for key in specs if key.endswith("alpha")}
    manifest = KOHYA.read(Contents(specs, None, {}, scalars))
    assert manifest.modules[1].name == "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"
    fresh = [module.name for module in KOHYA.write(manifest).modules]
    assert fresh == [module.name for module in manifest.modules]


def test_the_header_is_kept_but_for_what_has_changed():
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "32",
        "ss_network_alpha": "16.0",
        "ss_tag_frequency": "{}",
        "sshs_model_hash": "0123",
    }
    manifest = KOHYA.read(Contents(pair(Q), None, metadata, {f"{Q}.alpha": 2.0}))
    assert KOHYA.write(manifest).metadata == {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_tag_frequency": "{}",
        "sshs_model_hash": "0" * 64,  # room for those of the tensors, once they are written
        "sshs_legacy_hash": "0" * 8,
    }


def test_a_tucker_core_is_folded_into_down(tmp_path):
    torch.manual_seed(0)
    key_prefix = "lora_unet_mid_block_resnets_0_conv1"
    down, up = torch.randn(4, 6, 1, 1), torch.randn(5, 4, 1, 1)
    mid = torch.randn(4, 4, 3, 3)
    tensors = {
        f"{key_prefix}.lora_down.weight": down,
        f"{key_prefix}.lora_up.weight": up,
        f"{key_prefix}.lora_mid.weight": mid,
        f"{key_prefix}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    (update,) = read(tmp_path / "x.safetensors").values()
    dense = torch.einsum("mnkl,im,nj->ijkl", mid, up[..., 0, 0], down[..., 0, 0]) / 2
    seen = torch.as_tensor(update.dense("float64")).float()
    torch.testing.assert_close(seen.reshape(dense.shape), dense, rtol=1e-5, atol=1e-5)
    (module,) = read(tmp_path / "x.safetensors").manifest.modules
    assert module.site == Convolution(6, (3, 3))


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("oft_blocks", "OFT multiplies"),
        ("on_input", "IA3 multiplies"),
        ("a1.weight", "GLoRA multiplies"),
        ("bias_indices", "sparse residual"),
    ],
)
def test_what_is_no_sum_of_matrices_is_refused_by_name(key, reason):
    with pytest.raises(UnsupportedError, match=f"{reason}.*{Q}.{key}"):
        KOHYA.read(
            Contents({f"{Q}.{key}": Spec("F32", (2, 2))} | pair(Q), None, {}, {f"{Q}.alpha": 1.0})
        )


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({f"{Q}.lora_down.weight": Spec("F32", (2, 3))}, "make no update"),
        (pair(Q) | {f"{Q}.lora_up.weight": Spec("F32", (5, 3))}, "make no update"),
        (pair(Q) | {f"{Q}.lora_up.weight": Spec("I32", (5, 4))}, "elements of type I32"),
        (pair(Q) | {f"{Q}.dora_scale": Spec("F32", (7, 1))}, "fits neither axis"),
        (pair(Q) | pair("unet.conv_in"), "not in this naming: unet.conv_in"),
        (pair(Q) | {"something": Spec("F32", (1,))}, "not understood: something"),
        (pair(Q, r=0), "empty factors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(specs, message):
    scalars = {key: 4.0 for key in specs if key.endswith(".alpha")}
    with pytest.raises(FormatError, match=message):
        KOHYA.read(Contents(specs, None, {}, scalars))


def test_an_alpha_that_is_infinite_is_refused():
    with pytest.raises(FormatError, match="alpha is inf"):
        KOHYA.read(Contents(pair(Q), None, {}, {f"{Q}.alpha": math.inf}))


def test_names_of_an_unknown_model_are_kept_in_our_own_field(tmp_path):
    metadata = {"lora_tools.names": json.dumps({"lycoris_a_b_c": "a.b_c"})}
    manifest = KOHYA.read(
        Contents(pair("lycoris_a_b_c"), None, metadata, {"lycoris_a_b_c.alpha": 4.0})
    )
    assert [module.name for module in manifest.modules] == ["a.b_c"]
    assert json.loads(KOHYA.write(manifest).metadata["lora_tools.names"]) == {
        "lycoris_a_b_c": "a.b_c"
    }
    with pytest.raises(FormatError, match=r"lora_tools\.names: not valid JSON"):
        KOHYA.read(Contents(pair(Q), None, {"lora_tools.names": "["}, {f"{Q}.alpha": 4.0}))


def test_the_header_names_the_algorithm_that_is_written():
    old = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "loha", "x": 1}'}
    manifest = KOHYA.read(Contents(pair(Q), None, old, {f"{Q}.alpha": 4.0}))
    assert json.loads(KOHYA.write(manifest).metadata["ss_network_args"]) == {
        "algo": "locon",
        "x": 1,
    }


def test_a_convolution_that_does_not_say_its_kernel_is_not_converted(tmp_path):
    key_prefix = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {
        f"{key_prefix}.hada_w1_a": torch.randn(5, 2),
        f"{key_prefix}.hada_w1_b": torch.randn(2, 27),
        f"{key_prefix}.hada_w2_a": torch.randn(5, 2),
        f"{key_prefix}.hada_w2_b": torch.randn(2, 27),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = read(tmp_path / "x.safetensors")
    assert "do not say their kernel" in adapter.manifest.notes[-1]
    with pytest.raises(UnsupportedError, match=r"kernel: unet\.mid_block\.resnets\.0\.conv1"):
        convert(adapter, format_named("diffusers"))


SHAPES = {
    "lora_down.weight": (2, 8),
    "lora_up.weight": (8, 2),
    "lora_mid.weight": (2, 2),
    "diff": (8, 8),
    **{f"hada_w{n}_{end}": shape for n in "12" for end, shape in (("a", (8, 2)), ("b", (2, 8)))},
    "hada_t1": (2, 2),
    "hada_t2": (2, 2),
    "lokr_w1": (2, 2),
    "lokr_w1_a": (2, 2),
    "lokr_w1_b": (2, 2),
    "lokr_w2": (4, 4),
    "lokr_w2_a": (4, 2),
    "lokr_w2_b": (2, 4),
    "lokr_t2": (2, 2),
}
UPDATES = [
    {"lora_down.weight", "lora_up.weight"},
    {"diff"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
    {"lokr_w1", "lokr_w2"},
    {"lokr_w1", "lokr_w2_a", "lokr_w2_b"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2"},
    {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"},
]


@pytest.mark.parametrize("names", UPDATES, ids=lambda names: " ".join(sorted(names)))
def test_a_tensor_that_an_update_has_no_use_for_is_not_dropped(names):
    """Of a full-rank diff and a LoKr of one module, either would be the whole update."""

    def read_with(*more: str):
        specs = {f"{Q}.{name}": Spec("F32", SHAPES[name]) for name in (*sorted(names), *more)}
        return KOHYA.read(Contents(specs, None, {}, {}))

    assert len(read_with().modules) == 1
    for name in SHAPES.keys() - names - {"lora_mid.weight", "lokr_t2"}:
        with pytest.raises(FormatError, match="make no update"):
            read_with(name)
