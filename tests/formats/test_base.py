import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_tools.files.header import Spec
from lora_tools.formats.folding import factor_shapes, fold, unfold
from lora_tools.formats.manifest import Extra, Manifest, Module, Part
from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear, Site, columns


def module(site: Site, out: int, inp: int, rank: int, alpha: float | None = 8.0) -> Module:
    empty = Module("m", site, out, inp, rank, alpha, False, {}, "m", "m")
    b, a = factor_shapes(empty)
    parts = {"a": Part("m.a", Spec("F32", a)), "b": Part("m.b", Spec("F32", b))}
    return replace(empty, parts=parts)


sizes = st.integers(1, 5)


@st.composite
def modules(draw: st.DrawFn) -> Module:
    match draw(st.sampled_from(["linear", "embedding", "convolution", "experts"])):
        case "linear":
            site, inp = Linear(draw(st.booleans())), draw(sizes)
        case "embedding":
            site, inp = Embedding(), draw(sizes)
        case "convolution":
            kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
            groups, each = draw(st.integers(1, 3)), draw(st.integers(1, 3))
            site = Convolution(groups * each, kernel, groups)
            inp = columns(groups * each, kernel)
        case "experts":
            site, inp = Experts("w", draw(sizes)), draw(sizes)
    return module(site, draw(sizes), inp, draw(sizes))


@given(modules())
def test_fold_is_the_inverse_of_unfold(m):
    b, a = (torch.randn(shape) for shape in factor_shapes(m))
    ub, ua = unfold(m, b, a)
    stack = () if m.stack == 1 and not isinstance(m.site, Experts) else (m.stack,)
    assert ub.shape == (*stack, m.out, m.rank)
    assert ua.shape == (*stack, m.rank, m.inp)
    fb, fa = fold(m, ub, ua)
    assert torch.equal(fb, b)
    assert torch.equal(fa, a)


@given(modules(), st.integers(1, 6))
def test_a_resized_module_has_the_shapes_of_its_rank(m, times):
    r = times * m.groups
    resized = m.resized(r, "F16")
    assert resized.r == r
    b, a = factor_shapes(resized)
    assert resized.parts["b"] == Part("m.b", Spec("F16", b))
    assert resized.parts["a"] == Part("m.a", Spec("F16", a))
    assert resized.params == torch.Size(b).numel() + torch.Size(a).numel()
    assert resized.params == m.cost * r
    assert resized.nbytes == 2 * resized.params
    assert m.resized(m.r) == m


def test_resizing_keeps_other_parts():
    m = module(Linear(), 4, 3, 2)
    bias = Part("m.bias", Spec("F32", (4,)))
    m = replace(m, parts={**m.parts, "bias": bias})
    assert m.resized(1, "BF16").parts["bias"] == bias


class Holder(nn.Module):
    """A model of one layer, as peft wants it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.m = layer


class Stack(nn.Module):
    """Experts' matrices in one parameter; ``is_transposed`` is how peft asks for their order."""

    def __init__(self, *shape: int, is_transposed: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape))
        self.is_transposed = is_transposed


def adapted(layer: nn.Module, r: int, **fields: object) -> LoraLayer:
    """Return the layer as the real peft adapts it, with random factors."""
    fields = {"target_modules": ["m"]} | fields
    config = LoraConfig(r=r, lora_alpha=8, init_lora_weights=False, **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = get_peft_model(Holder(layer), config).base_model.model.m
    assert isinstance(layer, LoraLayer)
    return layer


def stored(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """Return B and A as the file would hold them."""
    if layer.lora_embedding_A:
        return layer.lora_embedding_B["default"].data, layer.lora_embedding_A["default"].data
    return layer.lora_B["default"].weight.data, layer.lora_A["default"].weight.data


def dense(m: Module, layer: LoraLayer) -> Tensor:
    """Multiply the update of a module out as our matrices say it is."""
    b, a = unfold(m, *stored(layer))
    return m.scale * (b.double() @ a.double())


LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), {}, module(Linear(), 7, 5, 4)),
    "transposed": (
        lambda: Conv1D(7, 5),
        {"fan_in_fan_out": True},
        module(Linear(transposed=True), 7, 5, 4),
    ),
    "embedding": (lambda: nn.Embedding(11, 3), {}, module(Embedding(), 3, 11, 4)),
    "conv1d": (lambda: nn.Conv1d(3, 6, 5), {}, module(Convolution(3, (5,)), 6, 15, 4)),
    "conv2d": (lambda: nn.Conv2d(3, 6, (2, 5)), {}, module(Convolution(3, (2, 5)), 6, 30, 4)),
    "point": (lambda: nn.Conv2d(3, 6, 1), {}, module(Convolution(3, (1, 1)), 6, 3, 4)),
    "conv3d": (lambda: nn.Conv3d(2, 6, (1, 2, 3)), {}, module(Convolution(2, (1, 2, 3)), 6, 12, 4)),
}
STACKS = {
    "experts": (lambda: Stack(3, 7, 5), module(Experts("w", 3), 7, 5, 4)),
    "transposed experts": (
        lambda: Stack(3, 5, 7, is_transposed=True),
        module(Experts("w", 3), 7, 5, 4),
    ),
    "a matrix": (lambda: Stack(7, 5), module(Experts("w", 1), 7, 5, 4)),
}
BY_PARAMETER = {"target_modules": [], "target_parameters": ["m.w"]}


@pytest.mark.parametrize("kind", LAYERS)
def test_factors_have_the_shapes_of_peft(kind):
    make, fields, m = LAYERS[kind]
    b, a = stored(adapted(make(), 4, **fields))
    assert factor_shapes(m) == (tuple(b.shape), tuple(a.shape))


@pytest.mark.parametrize("kind", LAYERS)
def test_an_update_is_that_of_peft(kind):
    make, fields, m = LAYERS[kind]
    layer = adapted(make().double(), 4, **fields)
    expected = layer.get_delta_weight("default").detach()
    assert m.shape == tuple(layer.get_base_layer().weight.shape) == tuple(expected.shape)
    ours = dense(m, layer)
    if m.shape[0] != m.out:
        ours = ours.T  # stored as (in, out)
    assert torch.allclose(ours.reshape(m.shape), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", STACKS)
def test_experts_are_those_of_peft(kind):
    make, m = STACKS[kind]
    layer = adapted(make().double(), 4, **BY_PARAMETER)
    b, a = stored(layer)
    assert factor_shapes(m) == (tuple(b.shape), tuple(a.shape))
    expected = layer.get_delta_weight("default").detach().reshape(-1, *layer.get_param().shape[-2:])
    ours = dense(m, layer)
    if kind == "transposed experts":
        ours = ours.transpose(-2, -1)
    assert torch.allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("groups", [2, 3])
def test_a_grouped_convolution_computes_what_peft_computes(groups):
    base = nn.Conv2d(6, 12, (2, 3), groups=groups, padding=1, bias=False).double()
    layer = adapted(base, 6)
    m = module(Convolution(6, (2, 3), groups), 12 // groups, 36, 6 // groups)
    b, a = stored(layer)
    assert factor_shapes(m) == (tuple(b.shape), tuple(a.shape))
    assert m.shape == tuple(base.weight.shape)
    assert m.scale == layer.scaling["default"]
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    kernel = dense(m, layer).reshape(12, 6, 2, 3)  # each group sees every channel
    expected = layer(x) - layer.get_base_layer()(x)
    assert torch.allclose(nn.functional.conv2d(x, kernel, padding=1), expected, rtol=1e-6)


def test_a_manifest_lists_every_tensor():
    m = module(Linear(), 4, 3, 2)
    manifest = Manifest("x", (m,), (Extra("head", Spec("F32", (7,)), "full weight"),))
    assert manifest.specs == {
        "m.a": Spec("F32", (2, 3)),
        "m.b": Spec("F32", (4, 2)),
        "head": Spec("F32", (7,)),
    }
