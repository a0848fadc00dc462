"""Expressions of strangers: the verdicts of `re` and of PEFT, in time that ends."""

import re
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from lora_tools.errors import FormatError
from lora_tools.formats import expressions
from lora_tools.formats.expressions import Clock, Expression, literal
from lora_tools.formats.patterns import Patterns, Segments, write_pattern
from lora_tools.formats.peft.config import PeftConfig

UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)"
    r".*?(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))"
)
WRITTEN = (
    UNSLOTH,
    r"^(?!.*lm_head).*(q|k|v)_proj$",
    r"^(?!.*visual).*(?:q_proj|v_proj).*",
    r".*\.(to_q|to_k|to_v|to_out\.0)",
    r"blocks\.\d+\.(self_attn|cross_attn)\.(q|k|v|o)",
    r"(?i).*Q_PROJ",
    r"(transformer_blocks|single_transformer_blocks)\.(\d|1[0-8])\.attn\.to_[qkv]",
    r"model\.layers\.(?P<n>[0-9]+)\..*",
    r"[[:alpha:]]+q",
    r"q{e<=1}",
    r"a{,3}",
    "q_proj",
    "model.layers.0.self_attn.q_proj",
)
PATHS = (
    "model.layers.0.self_attn.q_proj",
    "model.language_model.layers.11.mlp.up_proj",
    "model.visual.blocks.3.attn.qkv",
    "lm_head.q_proj",
    "blocks.12.cross_attn.o",
    "transformer_blocks.17.attn.to_q",
    "single_transformer_blocks.19.attn.to_k",
    "x.to_out.0",
    "modelxlayersx0xself_attn.q_proj",
    "q_proj\n",
    "aa",
    ":q",
)
EVIL = (r"(a|a)+(a|a)+$", r"(a|aa)+(a|aa)*!|(a|a)+$", r"((a*)*)*$", r"(a|a|a)*(b|$)x")
LONG = "a" * 3000 + "."
pieces = st.sampled_from(
    ["q", "k", "layers", ".", r"\.", r"\d+", ".*", "^", "$", "|", "?", "[01]", "0", "(?:a|b)", "\n"]
)


@pytest.mark.parametrize("text", WRITTEN)
def test_what_people_write_has_the_verdict_of_re(text):
    for path in PATHS:
        found = Expression(text, Clock("x")).is_whole(path)
        assert found is (re.fullmatch(text, path) is not None), path


@given(st.lists(pieces, max_size=6).map("".join), st.lists(pieces, max_size=6).map("".join))
@example("q.k", "qxk")
@example("q", "a.q\n")
@example("a.b", "a\nb")
@example("", "a.")
def test_verdicts_are_those_of_re_and_of_peft(text, path):
    try:
        re.compile(rf"(.*\.)?({text})$")
    except re.error:
        with pytest.raises(FormatError, match="x: "):
            Patterns({text: 1}, "x").check()
        return
    pattern = {text: 1, "k": 2}
    assert Patterns(pattern).value(path) == pattern.get(get_pattern_key(pattern, path))
    wanted = re.match(rf"(^|.*\.){text}($|\..*)", path)
    assert Segments([text]).match(path) == bool(wanted)


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize(
    "field",
    [
        "target_modules",
        "exclude_modules",
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "layers_pattern",
    ],
)
def test_no_field_hangs(field, evil, monkeypatch):
    monkeypatch.setattr(expressions, "SECONDS", 0.05)
    value = {"rank_pattern": {evil: 1}, "alpha_pattern": {evil: 1}}.get(field)
    lists = {"modules_to_save": [evil], "layers_pattern": [evil]}
    config = {"target_modules": ["q"], "layers_to_transform": [0]}
    config |= {field: value or lists.get(field, evil)}
    peft = PeftConfig(config)
    paths = ("a" * 3000 + "-", f"{LONG}0.{'a' * 50}-q", "a" * 50 + ".1.q")
    asked = (ask(path) for path in paths for ask in (peft.targets, peft.rank, peft.alpha))
    try:
        list(asked)
        stated = ""
    except FormatError as error:
        stated = str(error)
    assert not stated or stated.startswith(f"adapter_config.json: {field}: ")


def test_an_expression_without_end_is_refused_by_file_field_and_pattern(monkeypatch):
    monkeypatch.setattr(expressions, "SECONDS", 0.05)
    peft = PeftConfig({"target_modules": r"(a|a)+(a|a)+-?$"})
    with pytest.raises(FormatError, match=r"adapter_config\.json: target_modules: '\(a\|a") as info:
        peft.targets("a" * 4000 + "!")
    assert "takes too long" in str(info.value)


def test_over_long_expressions_and_names_are_refused():
    with pytest.raises(FormatError, match="x: an expression of 70,000 characters"):
        Patterns({"(a)" + "b" * 69_997: 1}, "x").check()
    with pytest.raises(FormatError, match="x: held against a name of 5,000 characters"):
        Patterns({"q": 1}, "x").value("a" * 5000)


def test_nesting_is_no_crash():
    with pytest.raises(FormatError, match="is not a regular expression"):
        Patterns({"(" * 20_000 + ")" * 20_000: 1}, "x").check()


def test_plain_names_need_no_engine():
    code = (
        "import sys; from lora_tools.formats.patterns import Patterns\n"
        "Patterns({'model.layers.0.q': 1, r'^a\\.b': 2}).value('model.layers.0.q')\n"
        "assert 'regex' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Counting(dict):
    """A table that counts its look-ups."""

    looks = 0

    def get(self, *key):
        Counting.looks += 1
        return super().get(*key)


@pytest.mark.parametrize("count", [600, 6000])
def test_a_lookup_does_not_count_the_keys(count, monkeypatch):
    names = [f"model.layers.{n // 7}.mlp.p{n % 7}" for n in range(count)]
    compiled = []
    monkeypatch.setattr(expressions, "compiled", lambda *text: compiled.append(text))
    patterns = Patterns({name: number for number, name in enumerate(names)})
    masks = []
    monkeypatch.setattr(
        expressions, "_masked", lambda text, wild: masks.append(text) or plain(text, wild)
    )
    assert [patterns.value(name) for name in names] == list(range(count))
    assert len(masks) <= 12 * count
    assert not compiled
    assert write_pattern({name: n % 3 + 1 for n, name in enumerate(names)}, 1)
    assert not compiled


plain = expressions._masked


def test_a_plain_expression_knows_its_escapes():
    assert literal(r"^model\.layers.0") == ("model.layers.0", (12,), True)
