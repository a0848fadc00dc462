"""Rules that several tables share say what each table asks of them."""

from dataclasses import replace
from pathlib import Path

from lora_tools import runtimes
from lora_tools.files.header import Spec
from lora_tools.runtimes import RUNTIMES, rules
from lora_tools.runtimes.checks import breach, has_only

PLAIN = runtimes.subject(Path(__file__).parents[2] / "fixtures" / "minilm-plain")


def test_no_offenders_are_no_breach():
    assert breach([], "0 of them") is None
    assert breach(["a"], "1 of them") == ("1 of them", ["a"])


def test_fields_are_listed_in_words():
    assert rules.fields("r").text == "The configuration must have r."
    assert rules.fields("r", "a", "b").text == "The configuration must have r, a and b."
    lacking = replace(PLAIN, config={"r": 1})
    assert rules.fields("r", "a", "b").check(lacking).where == ["a", "b"]
    assert rules.fields("r").check(lacking) is None


def test_names_are_mended_only_if_all_of_them_hold_the_adapters_own():
    check = has_only(lambda _, key: key.endswith((".lora_A.weight", ".lora_B.weight")), "are odd")
    rule = rules.keys("Names are known.", check)
    assert check(PLAIN) is None
    assert rule.fix(PLAIN) is None
    spec = Spec("F32", (1,))
    other = replace(PLAIN, specs={**PLAIN.specs, "norm.weight": spec})
    assert check(other) == ("1 tensors are odd", ["norm.weight"])
    assert rule.fix(other) is None
    pairs = [
        pair._replace(naming="peft, named", down=pair.down._replace(key=f"{pair.key_prefix}.A"))
        for pair in PLAIN.pairs
    ]
    named = {key: spec for pair in pairs for key in pair.keys}
    assert "--for vllm" in rule.fix(replace(PLAIN, pairs=tuple(pairs), specs=named))


def test_a_rule_of_the_same_name_and_sentence_is_the_same_demand():
    config = [rule for runtime in RUNTIMES for rule in runtime.rules if rule.name == "config"]
    assert len(config) == 5
    assert all(rule is rules.CONFIG for rule in config)
