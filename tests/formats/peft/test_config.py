import json
import re
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from peft import LoraConfig, PeftType
from peft.tuners.lora.config import (
    ArrowConfig,
    BdLoraConfig,
    KasaConfig,
    MontecloraConfig,
    VeloraConfig,
)
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.formats.patterns import Patterns
from lora_tools.formats.peft.checks import check_types, check_variant
from lora_tools.formats.peft.config import (
    PeftConfig,
    base_model,
    write_config,
    write_pattern,
)

segments = st.sampled_from(["model", "layers", "h", "attn", "q", "k", "q_proj", "0", "1", "12"])
paths = st.lists(segments, min_size=1, max_size=6).map(".".join)
odd_paths = st.text("ab.01_-*+?()[]{}^$|\\", min_size=1, max_size=6)


def compiles(expression: str) -> bool:
    try:
        re.compile(expression)
        re.compile(f"({expression})")
    except re.error:
        return False
    return True


expressions = st.one_of(
    paths,
    st.lists(
        st.one_of(
            segments, st.sampled_from([r"\.", ".", ".*", r"\d+", "[01]", "|", "^", "$", "?"])
        ),
        min_size=1,
        max_size=5,
    ).map("".join),
    odd_paths,
).filter(compiles)


@given(st.dictionaries(expressions, st.integers(1, 64), max_size=4), st.one_of(paths, odd_paths))
@example({"q": 1, "attn.q": 2}, "layers.0.attn.q")
@example({"q|k": 1}, "attn.k")
@example({"^q": 1}, "attn.q")
@example({"a+b": 1}, "a+b")
def test_a_pattern_gives_the_value_that_peft_gives(pattern, path):
    assert Patterns(pattern).value(path) == pattern.get(get_pattern_key(pattern.keys(), path))


def test_no_pattern_gives_no_value():
    assert Patterns(None).value("q") is None


@given(
    values=st.dictionaries(st.one_of(paths, odd_paths), st.integers(1, 4), min_size=1),
    default=st.integers(1, 4),
)
@example({"q": 1, "attn.q": 2}, 3)
@example({"q": 1, "z.q": 2}, 3)
@example({"z.q": 2, "q": 1}, 2)
@example({"a(": 1}, 2)
def test_a_written_pattern_gives_peft_every_value(values, default):
    text = json.dumps(write_pattern(values, default), sort_keys=True)  # as it goes to the disk
    pattern = json.loads(text)
    assert {path: pattern.get(get_pattern_key(pattern, path), default) for path in values} == values


def test_a_written_pattern_is_plain_where_that_is_right():
    values = {"h.0.q": 4, "h.1.q": 8, "h.0.k": 2.5}
    assert write_pattern(values, 8) == {"h.0.k": 2.5, "h.0.q": 4}


def test_a_written_pattern_is_anchored_where_a_name_ends_another():
    assert write_pattern({"q": 1, "z.q": 2}, 3) == {"^q": 1, r"^z\.q": 2}


lists = st.lists(paths, max_size=4)


@given(
    path=paths,
    target=st.one_of(lists, expressions),
    exclude=st.one_of(st.none(), lists, expressions),
    layers=st.one_of(st.none(), st.integers(0, 12), st.lists(st.integers(0, 12), max_size=3)),
    layers_pattern=st.one_of(st.none(), st.just("h"), st.lists(st.sampled_from(["h", "layers"]))),
    saved=st.one_of(st.none(), st.lists(segments, max_size=2)),
    own=st.sampled_from([None, "last", "full"]),
)
def test_targets_are_those_of_peft(path, target, exclude, layers, layers_pattern, saved, own):
    if own and isinstance(target, list):
        target = [*target, path if own == "full" else path.rpartition(".")[2]]
    config = {
        "target_modules": target,
        "exclude_modules": exclude,
        "layers_to_transform": layers,
        "layers_pattern": layers_pattern,
        "modules_to_save": saved,
    }
    theirs = check_target_module_exists(SimpleNamespace(**config, target_parameters=None), path)
    assert PeftConfig(config).targets(path) == bool(theirs)


@pytest.mark.parametrize(
    ("config", "path", "targeted"),
    [
        ({"target_modules": ["q"], "layers_to_transform": [1]}, "model.layers.0.q", False),
        ({"target_modules": ["q"], "layers_to_transform": 1}, "model.layers.1.q", True),
        ({"target_modules": ["model.h.0.q"], "layers_to_transform": [1]}, "model.h.0.q", True),
        ({"target_modules": ["q"], "modules_to_save": ["head"]}, "head.q", False),
        ({"target_modules": ["q"], "exclude_modules": ["a.q"]}, "b.a.q", False),
        ({"target_modules": ["q"], "exclude_modules": r".*\.0\.q"}, "h.0.q", False),
        ({"target_modules": r"h\.\d\.q"}, "h.3.q", True),
        ({"target_modules": r"h\.\d\.q"}, "model.h.3.q", False),
        ({"target_modules": ["proj"]}, "q_proj", False),
    ],
)
def test_targets_that_hypothesis_may_miss(config, path, targeted):
    fields = ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
    theirs = SimpleNamespace(**(dict.fromkeys(fields) | config), target_parameters=None)
    assert bool(check_target_module_exists(theirs, path)) is targeted
    assert PeftConfig(config).targets(path) is targeted


@pytest.mark.parametrize("config", [{}, {"target_modules": None}, {"target_modules": "all-linear"}])
def test_targets_that_the_architecture_decides_are_all(config):
    assert PeftConfig(config).targets("anything.at.all")


def test_parameters_alone_target_no_module():
    config = {"target_modules": None, "target_parameters": ["experts.w1"]}
    assert not PeftConfig(config).targets("experts")


def stored(config: LoraConfig) -> dict:
    """Return what peft would write to disk."""
    return json.loads(json.dumps(config.to_dict(), default=list))


def test_absent_fields_have_the_defaults_of_peft():
    theirs = LoraConfig()
    ours = PeftConfig({})
    assert ours.rank("q") == theirs.r
    assert ours.alpha("q") == theirs.lora_alpha
    assert ours.rslora == theirs.use_rslora
    assert ours.dora == theirs.use_dora
    assert ours.transposed == theirs.fan_in_fan_out
    assert ours.lora_bias == theirs.lora_bias
    assert ours.target_parameters == []


@pytest.mark.parametrize("name", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_plain_initialisations_are_read(name):
    check_variant(stored(LoraConfig()) | {"init_lora_weights": name})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"r": 4, "lora_alpha": 1.5, "use_rslora": True, "lora_bias": True},
        {"target_modules": ["q"], "modules_to_save": ["head"], "bias": "all"},
        {"target_modules": ".*q", "exclude_modules": ".*0.*", "rank_pattern": {"q": 1}},
        {"target_parameters": ["experts.w1"], "trainable_token_indices": [1, 2]},
        {"layers_to_transform": [0, 1], "layers_pattern": ["h"], "target_modules": ["q"]},
        {"target_modules": ["q"], "ensure_weight_tying": True, "layer_replication": [(0, 2)]},
    ],
)
def test_everything_that_peft_stores_for_plain_lora_is_read(fields):
    config = stored(LoraConfig(**fields))
    check_types(config)
    check_variant(config)


VARIANTS = {
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "aLoRA is switched on by tokens"),
    "QA-LoRA": ({"use_qalora": True}, "QA-LoRA pools its inputs"),
    "BD-LoRA": ({"use_bdlora": BdLoraConfig(target_modules_bd_a=["q"])}, "BD-LoRA stores block"),
    "KaSA": ({"kasa_config": KasaConfig()}, "KaSA truncates the base weight"),
    "MonteCLoRA": ({"monteclora_config": MontecloraConfig()}, "MonteCLoRA samples"),
    "VeLoRA": ({"velora_config": VeloraConfig()}, "VeLoRA changes what its layers compute"),
    "Arrow": ({"arrow_config": ArrowConfig()}, "Arrow routes tokens"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_that_is_not_additive_is_refused_with_the_reason(variant):
    fields, reason = VARIANTS[variant]
    config = stored_with(fields)
    with pytest.raises(UnsupportedError) as caught:
        check_variant(config)
    assert f"{next(iter(fields))} is set" in str(caught.value)
    assert reason in str(caught.value)


def stored_with(fields: dict) -> dict:
    """Return a stored configuration with fields that peft may check against each other."""
    plain = {
        key: vars(value) if hasattr(value, "__dataclass_fields__") else value
        for key, value in fields.items()
    }
    return stored(LoraConfig()) | json.loads(json.dumps(plain))


@pytest.mark.parametrize(
    "name", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga"]
)
def test_an_altered_base_is_refused_by_name(name):
    with pytest.raises(UnsupportedError, match=f"init_lora_weights is '{name}'") as caught:
        check_variant(stored(LoraConfig()) | {"init_lora_weights": name})
    assert "path_initial_model_for_weight_conversion" in caught.value.__notes__[0]


@pytest.mark.parametrize("kind", [kind.value for kind in PeftType if kind != PeftType.LORA])
def test_every_other_method_of_peft_is_refused_by_name(kind):
    with pytest.raises(UnsupportedError, match=rf"peft_type is {kind}, not LORA"):
        check_variant({"peft_type": kind, "r": 8})


def test_a_configuration_without_a_type_is_lora():
    check_variant({"r": 8, "lora_alpha": 16})


@pytest.mark.parametrize("field", ["use_something", "something_config"])
def test_a_variant_of_the_future_is_refused_by_name(field):
    config = stored(LoraConfig())
    with pytest.raises(UnsupportedError, match=f"unknown fields .*: {field}"):
        check_variant(config | {field: {"on": 1}})
    check_variant(config | {field: None})
    check_variant(config | {"something": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", None),
        ("r", "8"),
        ("r", True),
        ("r", 8.5),
        ("r", float("nan")),
        ("r", float("inf")),
        ("lora_alpha", None),
        ("lora_alpha", "16"),
        ("lora_alpha", [16]),
        ("lora_alpha", float("nan")),
        ("lora_alpha", float("inf")),
        ("rank_pattern", [1]),
        ("rank_pattern", {"q": "4"}),
        ("rank_pattern", {"q": 4.5}),
        ("rank_pattern", {"q(": 4}),
        ("alpha_pattern", "q"),
        ("alpha_pattern", {"q": None}),
        ("alpha_pattern", {"*": 4}),
        ("target_modules", 5),
        ("target_modules", "(q"),
        ("target_modules", ["q", 1]),
        ("exclude_modules", "[q"),
        ("modules_to_save", ["head("]),
        ("layers_pattern", ["h)"]),
        ("layers_to_transform", "0"),
        ("layers_to_transform", ["0"]),
        ("target_parameters", "experts.w1"),
    ],
)
def test_unreadable_fields_are_refused(field, value):
    with pytest.raises(FormatError, match=r"adapter_config\.json: "):
        check_types({"r": 8, "lora_alpha": 16, field: value})


def test_plain_names_need_not_be_expressions():
    check_types({"target_modules": ["a(b", "*"], "target_parameters": ["a(b.w"]})


def test_alpha_may_be_a_fraction():
    config = {"lora_alpha": 0.5, "alpha_pattern": {"q": 2.5}}
    check_types(config)
    assert (PeftConfig(config).alpha("k"), PeftConfig(config).alpha("q")) == (0.5, 2.5)


@given(
    ranks=st.dictionaries(paths, st.integers(1, 9), min_size=1, max_size=6),
    alphas=st.lists(st.integers(1, 9).map(lambda n: n / 2), min_size=6, max_size=6),
    rslora=st.booleans(),
)
def test_a_written_configuration_gives_every_module_its_rank_and_alpha(ranks, alphas, rslora):
    expected = dict(zip(ranks, alphas, strict=False))
    old = {"r": 99, "lora_alpha": 7, "rank_pattern": {"q": 3}, "alpha_pattern": {".*": 1}, "x": 1}
    text = json.dumps(write_config(old, ranks, expected, rslora=rslora), sort_keys=True)
    config = LoraConfig(
        **{k: v for k, v in json.loads(text).items() if k not in ("peft_type", "x")}
    )
    for path in ranks:  # as peft's LoraModel does
        r_key = get_pattern_key(config.rank_pattern.keys(), path)
        alpha_key = get_pattern_key(config.alpha_pattern.keys(), path)
        assert config.rank_pattern.get(r_key, config.r) == ranks[path]
        assert config.alpha_pattern.get(alpha_key, config.lora_alpha) == expected[path]
    assert config.use_rslora == rslora
    assert config.r == max(ranks.values())  # servers size their buffers by it


def test_everything_else_in_a_configuration_is_kept():
    old = {
        "unknown": {"a": [1]},
        "peft_version": "9.9",
        "target_modules": ["q"],
        "lora_dropout": 0.1,
    }
    new = write_config(old, {"q": 4}, {"q": 8.0}, rslora=False)
    assert old.items() <= new.items()
    assert (new["r"], new["lora_alpha"]) == (4, 8)
    assert type(new["lora_alpha"]) is int
    assert (new["rank_pattern"], new["alpha_pattern"]) == ({}, {})


@pytest.mark.parametrize(
    ("before", "after"),
    [("eva", True), ("gaussian", True), (True, True), (False, False)],
)
def test_initialisers_that_would_run_again_are_switched_off(before, after):
    config = {"init_lora_weights": before, "eva_config": {"rho": 2.0} if before == "eva" else None}
    new = write_config(config, {"q": 1}, {"q": 1.0}, rslora=False)
    assert new["init_lora_weights"] is after
    assert new["eva_config"] is None


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"base_model_name_or_path": "a/b"}, "a/b"),
        ({"base_model_name_or_path": ""}, None),
        ({}, None),
    ],
)
def test_base_model(config, name):
    assert base_model(config) == name
