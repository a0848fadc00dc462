"""Adapters of peft by names and shapes alone."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.folding import factor_shapes
from lora_tools.formats.manifest import Manifest, Module, Part
from lora_tools.formats.peft import Peft
from lora_tools.formats.peft.keys import PREFIX, SUFFIX
from lora_tools.formats.sites import Convolution, Embedding, Linear, columns


def on_disk(config: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(config, sort_keys=True))


def pair(
    key_prefix: str, out: int = 4, inp: int = 3, r: int = 2, dtype: str = "F32"
) -> dict[str, Spec]:
    return {
        f"{PREFIX}{key_prefix}.lora_A.weight": Spec(dtype, (r, inp)),
        f"{PREFIX}{key_prefix}.lora_B.weight": Spec(dtype, (out, r)),
    }


CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q", "k"]}


def describe(specs: dict[str, Spec], **fields: Any) -> Manifest:
    return Peft().read(Contents(specs, CONFIG | fields, {}))


segments = st.text("abcxyz_0123", min_size=1, max_size=4)


names = st.lists(segments, min_size=1, max_size=3).map(".".join)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    config = {
        "target_modules": draw(st.sampled_from([".*", "all-linear"])),
        "fan_in_fan_out": draw(st.booleans()),
        "use_dora": draw(st.booleans()),
        "rank_pattern": {"stale": 3},
        "unknown": [1],
    }
    config["lora_bias"] = not config["use_dora"] and draw(st.booleans())
    rslora = draw(st.booleans())
    modules = []
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        site, inp = Linear(config["fan_in_fan_out"]), draw(st.integers(1, 5))
        kind = draw(st.sampled_from(["linear", "convolution", "embedding"]))
        if kind == "convolution":
            kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
            site = Convolution(draw(st.integers(1, 4)), kernel, draw(st.integers(1, 3)))
            inp = columns(site.channels, kernel)
        elif kind == "embedding" and not config["lora_bias"]:
            site = Embedding()
        out, rank = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        alpha = float(draw(st.integers(1, 40))) / 2
        key_prefix = PREFIX + name
        module = Module(name, site, out, inp, rank, alpha, rslora, {}, key_prefix, name)
        dtype = draw(st.sampled_from(["F16", "BF16", "F32", "F64"]))
        shapes = dict(zip(("b", "a"), factor_shapes(module), strict=True))
        if config["use_dora"]:
            shapes["magnitude"] = (out * module.groups,)
        if config["lora_bias"]:
            shapes["bias"] = (out * module.groups,)
        parts = {
            role: Part(key_prefix + SUFFIX[isinstance(site, Embedding), role], Spec(dtype, shape))
            for role, shape in shapes.items()
        }
        modules.append(replace(module, parts=parts))
    return Manifest("elsewhere", tuple(modules), config=config)
