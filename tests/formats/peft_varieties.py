"""Adapters of every kind, trained by the real peft, and what it computes with them."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_tools.formats.manifest import Module
from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear, Site

FIXTURES = Path(__file__).parents[2] / "fixtures"


class Experts3D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 10, 6))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 5))


class Block(nn.Module):
    """One layer of every kind that peft adapts, no two sizes alike."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(6, 8)
        self.v = nn.Linear(6, 4)
        self.c_attn = Conv1D(9, 6)
        self.tokens = nn.Embedding(13, 6)
        self.line = nn.Conv1d(3, 6, 5)
        self.plane = nn.Conv2d(3, 6, (2, 3))
        self.space = nn.Conv3d(2, 6, (1, 2, 3))
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.attention = nn.MultiheadAttention(8, 2)
        self.experts = Experts3D()
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])


@dataclass(frozen=True)
class Variety:
    """A configuration of peft, and where each adapted module should be found to belong."""

    config: dict[str, Any]
    sites: Mapping[str, Site]
    """By the module's name within its block."""
    extras: Mapping[str, str] = field(default_factory=dict)
    """Kinds of other tensors, by what their keys end with."""


CONV2D = {"target_modules": ["plane", "line", "space"]}


CONV2D_SITES = {
    "line": Convolution(3, (5,)),
    "plane": Convolution(3, (2, 3)),
    "space": Convolution(2, (1, 2, 3)),
}


QV = {"q": Linear(), "v": Linear()}


VARIETIES = {
    "linear": Variety({"target_modules": ["q", "v"]}, QV),
    "one layer": Variety({"target_modules": r"layers\.0\.(q|v)"}, QV),
    "layers": Variety(
        {"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": "layers"},
        {"q": Linear()},
    ),
    "excluded": Variety({"target_modules": ["q", "v"], "exclude_modules": ["v"]}, {"q": Linear()}),
    "Conv1D": Variety(
        {"target_modules": ["c_attn"], "fan_in_fan_out": True}, {"c_attn": Linear(transposed=True)}
    ),
    "embedding": Variety(
        {"target_modules": ["tokens", "q"]}, {"tokens": Embedding(), "q": Linear()}
    ),
    "convolutions": Variety(CONV2D, CONV2D_SITES),
    "grouped": Variety({"target_modules": ["grouped"]}, {"grouped": Convolution(4, (3, 3), 2)}),
    "experts": Variety(
        {
            "target_modules": ["q"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        },
        {
            "q": Linear(),
            "experts.gate_up_proj": Experts("gate_up_proj", 3),
            "experts.down_proj": Experts("down_proj", 3),
        },
    ),
    "one parameter": Variety(
        {"target_modules": [], "target_parameters": ["layers.1.experts.down_proj"]},
        {"experts.down_proj": Experts("down_proj", 3)},
    ),
    "attention": Variety(
        {"target_modules": ["attention"], "rank_pattern": {"attention": 2}},
        {"attention": Linear(), "attention.out_proj": Linear()},
    ),
    "attention by expression": Variety(
        {"target_modules": r".*\.attention"},
        {"attention": Linear(), "attention.out_proj": Linear()},
    ),
    "DoRA": Variety({"target_modules": ["q", "v"], "use_dora": True}, QV),
    "DoRA embedding": Variety(
        {"target_modules": ["tokens"], "use_dora": True}, {"tokens": Embedding()}
    ),
    "DoRA convolutions": Variety(CONV2D | {"use_dora": True}, CONV2D_SITES),
    "lora_bias": Variety({"target_modules": ["q", "v"], "lora_bias": True}, QV),
    "lora_bias convolutions": Variety(CONV2D | {"lora_bias": True}, CONV2D_SITES),
    "bias of lora": Variety(
        {"target_modules": ["q", "v"], "bias": "lora_only"}, QV, {"bias": "bias"}
    ),
    "all biases": Variety(
        {"target_modules": ["q"], "bias": "all"}, {"q": Linear()}, {"bias": "bias"}
    ),
    "modules_to_save": Variety(
        {"target_modules": ["q"], "modules_to_save": ["head", "norm"]},
        {"q": Linear()},
        {
            "head.weight": "modules_to_save",
            "head.bias": "modules_to_save",
            "norm.weight": "modules_to_save",
            "norm.bias": "modules_to_save",
        },
    ),
    "trainable tokens": Variety(
        {"target_modules": ["q"], "trainable_token_indices": {"tokens": [1, 5, 7]}},
        {"q": Linear()},
        {"trainable_tokens_delta": "trainable tokens"},
    ),
    "rsLoRA": Variety({"target_modules": ["q", "v"], "use_rslora": True}, QV),
    "rsLoRA grouped": Variety(
        {"target_modules": ["grouped"], "use_rslora": True}, {"grouped": Convolution(4, (3, 3), 2)}
    ),
    "patterns": Variety(
        {
            "target_modules": ["q", "v", "plane"],
            "rank_pattern": {"layers.0.q": 2, "q": 6, r"layers\.\d\.plane": 1},
            "alpha_pattern": {"^layers.1.q": 3, "v|plane": 2.5},
        },
        QV | {"plane": Convolution(3, (2, 3))},
    ),
    "patterns of experts": Variety(
        {
            "target_modules": [],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
            "rank_pattern": {"experts.down_proj": 1},
            "alpha_pattern": {"experts.gate_up_proj": 3},
        },
        {
            "experts.gate_up_proj": Experts("gate_up_proj", 3),
            "experts.down_proj": Experts("down_proj", 3),
        },
    ),
}


def trained(fields: dict[str, Any]) -> PeftModel:
    """Return a model that the real peft adapts, every weight of the adapter random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(**({"r": 4, "lora_alpha": 6} | fields))
        model = get_peft_model(Model(), config)
    for weight in model.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight)
    return model


def save(model: PeftModel, folder: Path, *, pickled: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, safe_serialization=not pickled, save_embedding_layers=False)
    return folder


def layer_of(model: PeftModel, module: Module) -> LoraLayer:
    """Return peft's own layer for a module."""
    path = module.name
    if isinstance(module.site, Experts):
        path = path.removesuffix(f".{module.site.parameter}")
    layer = model.base_model.model
    for part in path.split("."):
        layer = getattr(layer.get_base_layer() if isinstance(layer, LoraLayer) else layer, part)
    while isinstance(module.site, Experts) and layer.parameter_name != module.site.parameter:
        layer = layer.base_layer
    return layer


def expected_update(layer: LoraLayer, module: Module) -> Tensor:
    """Multiply out what peft's layer holds, in float64."""
    layer = layer.double()
    if module.groups > 1:  # which peft cannot multiply out: through its own convolutions
        x = torch.eye(module.inp, dtype=torch.float64).reshape(module.inp, -1, *module.site.kernel)
        a, b = layer.lora_A["default"], layer.lora_B["default"]
        y = nn.functional.conv2d(x, a.weight)
        return layer.scaling["default"] * nn.functional.conv2d(y, b.weight, groups=2).flatten(1).T
    if isinstance(layer.get_base_layer(), nn.MultiheadAttention):
        return layer.get_delta_weight("default")
    delta = layer.get_delta_weight("default")
    if isinstance(module.site, Experts):
        return delta
    delta = delta.flatten(1)
    stored_in_out = isinstance(module.site, Embedding) or module.site == Linear(transposed=True)
    return delta.T if stored_in_out else delta


def assert_is(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-6)
