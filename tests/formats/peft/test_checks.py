"""What peft does not add, and what contradicts itself, is refused by name."""

import pytest
from peft_manifests import describe, pair

from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.manifest import MISFIT
from lora_tools.formats.peft import Peft
from lora_tools.formats.peft.keys import PREFIX


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"peft_type": "ADALORA"}, "peft_type is ADALORA"),
        ({"peft_type": "VERA"}, "peft_type is VERA"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    ],
)
def test_what_is_not_additive_is_refused_from_the_configuration(fields, reason):
    with pytest.raises(UnsupportedError, match=reason):
        describe(pair("q"), **fields)


def test_without_a_configuration_alpha_is_unknown():
    with pytest.raises(FormatError, match="alpha is unknown") as caught:
        Peft().read(Contents(pair("q"), None, {}))
    assert "adapter_config.json" in str(caught.value)
    assert "--alpha N" in caught.value.__notes__[0]


def test_without_factors_there_is_no_adapter():
    with pytest.raises(FormatError, match="no tensor is named like a LoRA factor"):
        describe({f"{PREFIX}head.weight": Spec("F32", (2, 2))})


def without(specs: dict[str, Spec], end: str) -> dict[str, Spec]:
    return {key: spec for key, spec in specs.items() if not key.endswith(end)}


MAGNITUDE = {f"{PREFIX}q.lora_magnitude_vector": Spec("F32", (4,))}


BIAS = {f"{PREFIX}q.lora_B.bias": Spec("F32", (4,))}


EMBEDDING = {
    f"{PREFIX}q.lora_embedding_A": Spec("F32", (2, 9)),
    f"{PREFIX}q.lora_embedding_B": Spec("F32", (3, 2)),
}


CONVOLUTION = {
    f"{PREFIX}q.lora_A.weight": Spec("F32", (2, 3, 5, 5)),
    f"{PREFIX}q.lora_B.weight": Spec("F32", (4, 2, 1, 1)),
}


STACKED = {
    f"{PREFIX}m.experts.lora_A.weight": Spec("F32", (6, 5)),
    f"{PREFIX}m.experts.lora_B.weight": Spec("F32", (7, 6)),
}


CONTRADICTIONS = {
    "r": (pair("q", r=3), {}, "q: B [4, 3] and A [3, 3] do not make rank 2"),
    "r of B": (
        pair("q") | {f"{PREFIX}q.lora_B.weight": Spec("F32", (4, 3))},
        {},
        "q: B [4, 3] and",
    ),
    "r of a pattern": (pair("q"), {"rank_pattern": {"q": 5}}, "do not make rank 5"),
    "no A": (without(pair("q"), "A.weight"), {}, "q has no lora_A"),
    "no B": (without(pair("q"), "B.weight"), {}, "q has no lora_B"),
    "no embedding B": (without(EMBEDDING, "_B"), {}, "q has no lora_B"),
    "not a target": (pair("q") | pair("v"), {}, "v is not among the configuration's targets"),
    "excluded": (pair("q"), {"exclude_modules": ["q"]}, "q is not among the configuration's"),
    "another layer": (
        pair("h.0.q"),
        {"layers_to_transform": [1]},
        "h.0.q is not among the configuration's targets",
    ),
    "no magnitude": (pair("q"), {"use_dora": True}, "q has no magnitude vector, but use_dora"),
    "a magnitude": (pair("q") | MAGNITUDE, {}, "q has a magnitude vector, but use_dora is false"),
    "short magnitude": (
        pair("q", out=5) | MAGNITUDE,
        {"use_dora": True},
        "q: magnitude [4] does not fit B [5, 2]",
    ),
    "no bias": (pair("q"), {"lora_bias": True}, "q has no lora_B.bias, but lora_bias is true"),
    "a bias": (pair("q") | BIAS, {}, "q has a lora_B.bias, but lora_bias is false"),
    "short bias": (
        pair("q", out=5) | BIAS,
        {"lora_bias": True},
        "q: bias [4] does not fit B [5, 2]",
    ),
    "bias of an embedding": (
        EMBEDDING | BIAS,
        {"lora_bias": True},
        "an embedding with a lora_B.bias",
    ),
    "no factors' type": (pair("q", dtype="I8"), {}, "lora_A.weight has elements of type I8"),
    "an f8 type": (pair("q", dtype="F8_E4M3"), {}, "has elements of type F8_E4M3"),
    "one dimension": (
        {f"{PREFIX}q.lora_{x}.weight": Spec("F32", (2,)) for x in "AB"},
        {},
        "q: B [2] and A [2] are not a pair of factors",
    ),
    "nothing in it": (pair("q", inp=0), {}, "q: B [4, 2] and A [2, 0] are not a pair of factors"),
    "rank 0": (pair("q"), {"r": 0}, "q: B [4, 2] and A [2, 3] are not a pair of factors"),
    "a kernel in one": (
        CONVOLUTION | {f"{PREFIX}q.lora_B.weight": Spec("F32", (4, 2))},
        {},
        "q: B [4, 2] and A [2, 3, 5, 5] are not a pair",
    ),
    "a kernel in B": (
        CONVOLUTION | {f"{PREFIX}q.lora_B.weight": Spec("F32", (4, 2, 3, 3))},
        {},
        "q: B [4, 2, 3, 3] and A [2, 3, 5, 5] do not make rank 2",
    ),
    "groups that do not divide": (
        CONVOLUTION | {f"{PREFIX}q.lora_B.weight": Spec("F32", (5, 1, 1, 1))},
        {},
        "q: B [5, 1, 1, 1] and A [2, 3, 5, 5] do not make rank 2",
    ),
    "experts that do not divide": (
        STACKED,
        {"r": 4, "target_parameters": ["m.experts.w1"]},
        "m.experts: B [7, 6] and A [6, 5] do not make rank 4",
    ),
    "experts twice": (
        STACKED,
        {"target_parameters": ["m.experts.w1", "m.experts.w2"]},
        "m.experts is not among the configuration's targets",
    ),
    "two key prefixes of one module": (
        pair("q") | {key.removeprefix(PREFIX): spec for key, spec in pair("q").items()},
        {},
        "q has two pairs of factors",
    ),
    "a LoRA tensor of no kind": (
        pair("q") | {f"{PREFIX}q.lora_C.weight": Spec("F32", (1,))},
        {},
        "lora_C.weight is not understood",
    ),
    "a bias of A": (
        pair("q") | {f"{PREFIX}q.lora_A.bias": Spec("F32", (2,))},
        {},
        "lora_A.bias is not understood",
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_a_contradiction_is_named(kind):
    specs, fields, fault = CONTRADICTIONS[kind]
    manifest = describe(specs, **fields)
    assert any(fault in problem for problem in manifest.problems)
    assert manifest.specs.keys() == specs.keys()  # nothing is lost from sight


def test_contradictions_are_listed_together():
    specs = (
        pair("h.0.q")
        | pair("h.1.q", r=3)
        | without(pair("h.2.q"), "B.weight")
        | pair("h.3.v")
        | {f"{PREFIX}h.4.lora_C": Spec("F32", (1,))}
    )
    manifest = describe(specs)
    assert [line.split()[0].rstrip(":") for line in manifest.problems] == [
        "h.1.q",
        "h.2.q",
        "h.3.v",
        f"{PREFIX}h.4.lora_C",
    ]
    assert [module.name for module in manifest.modules] == ["h.0.q"]
    assert {extra.kind for extra in manifest.extras} == {MISFIT}


def test_two_adapters_in_one_file_are_an_error():
    specs = {
        f"{PREFIX}q.lora_A.{name}.weight": Spec("F32", (2, 3)) for name in ("default", "other")
    }
    with pytest.raises(FormatError, match="are the same factor") as caught:
        describe(specs)
    assert "more than one adapter" in caught.value.__notes__[0]


def test_parameters_of_unknown_order_are_an_error():
    specs = STACKED | {
        key.replace("experts.", "experts.base_layer."): spec for key, spec in STACKED.items()
    }
    with pytest.raises(FormatError, match="cannot tell which tensors belong to which of"):
        describe(specs, target_parameters=["experts.alpha", "experts.beta"])


def test_a_parameter_that_is_targeted_twice_is_one():
    manifest = describe(STACKED, target_parameters=["experts.w1", "m.experts.w1"])
    assert [module.name for module in manifest.modules] == ["m.experts.w1"]
