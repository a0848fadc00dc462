"""What a judgement is: rules in order, the worst of them, versions, plain data."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import FIXTURES
from runtimes.craft import file_of, pair

from lora_tools import read, runtimes
from lora_tools.errors import CheckpointError, PolicyError
from lora_tools.runtimes import Breach, Rule, Runtime, Verdict, judge, named
from lora_tools.runtimes.base import order

PLAIN = FIXTURES / "minilm-plain"
LOADS, WRONG, NO_EFFECT, REFUSED = Verdict


def broken(subject):
    return Breach("it is", [pair.path for pair in subject.pairs])


def fine(subject):
    return None


def runtime(*rules, version="2.0"):
    return Runtime("runtime", version, "its code", rules)


def judged(*rules, version="2.0"):
    return judge(runtimes.subject(PLAIN), runtime(*rules, version=version))


def test_verdicts_go_from_best_to_worst():
    assert [str(verdict) for verdict in Verdict] == [
        "loads",
        "loads at the wrong strength",
        "loads but has no effect",
        "refused",
    ]


def test_the_verdict_is_the_worst_that_was_found():
    assert judged().verdict == LOADS
    assert judged(Rule("a", REFUSED, "", fine)).verdict == LOADS
    two = judged(Rule("a", WRONG, "", broken), Rule("b", REFUSED, "", broken))
    assert two.verdict == REFUSED
    assert [found.rule for found in two.findings] == ["b", "a"]


def test_a_whole_adapter_may_fare_worse_than_a_part():
    assert judged(Rule("a", WRONG, "", broken, whole=NO_EFFECT)).verdict == NO_EFFECT
    part = lambda subject: Breach("it is", [subject.pairs[0].path])  # noqa: E731
    assert judged(Rule("a", WRONG, "", part, whole=NO_EFFECT)).verdict == WRONG


def test_nothing_is_said_of_what_is_moot():
    first = Rule("a", REFUSED, "", broken, final=True)
    second = Rule("b", WRONG, "", broken)
    assert [found.rule for found in judged(first, second).findings] == ["a"]
    nothing = replace(first, verdict=NO_EFFECT, final=False)
    assert [found.rule for found in judged(nothing, second).findings] == ["a"]


def test_rules_belong_to_versions():
    old, new = Rule("a", WRONG, "", broken, until="2.0"), Rule("b", WRONG, "", broken, since="2.0")
    before = judged(old, new, version="1.9.3")
    assert (before.verdict, [found.rule for found in before.findings]) == (WRONG, ["a"])
    (remark,) = judged(old).findings
    assert remark.verdict == LOADS
    assert remark.why == "before runtime 2.0: loads at the wrong strength. it is"
    assert judged(new).verdict == WRONG
    assert order("0.9.1") < order("0.11")


def test_plain_data_is_that_of_the_schema():
    found = judged(Rule("a", REFUSED, "", broken, lambda _: "lora-tools fix")).to_dict()
    where = [module.name for module in read(PLAIN).manifest.modules]
    assert found == {
        "runtime": "runtime",
        "version": "2.0",
        "verdict": "refused",
        "findings": [
            {
                "rule": "a",
                "verdict": "refused",
                "reason": "it is",
                "where": where[:5],
                "count": 12,
                "fix": "lora-tools fix",
            }
        ],
    }
    json.dumps(found)


def test_engines_are_found_by_name_in_the_tables_order():
    names = ["peft", "vllm", "sglang", "llama.cpp", "diffusers", "comfyui", "mlx"]
    assert [runtime.name for runtime in named(["all"])] == names
    assert [runtime.name for runtime in named(["mlx", "peft", "mlx"])] == ["peft", "mlx"]
    assert [runtime.version for runtime in named(["vllm@0.30.1"])] == ["0.30.1"]


@pytest.mark.parametrize("name", ["ollama", "vllm@", "vllm@new", "all@1.0"])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(PolicyError, match="is no runtime"):
        named([name])


def test_an_adapter_and_its_path_make_the_same_subject():
    by_path, by_adapter = runtimes.subject(PLAIN), runtimes.subject(read(PLAIN))
    assert replace(by_path, scalars={}) == replace(by_adapter, scalars={})
    assert set(by_path.truths.values()) == {2.0}


def test_what_no_format_reads_is_a_subject_too(tmp_path):
    subject = runtimes.subject(
        file_of(tmp_path, "x.safetensors", {"a.w": pair("b")["b.lora_A.weight"]})
    )
    assert subject.manifest is None
    assert subject.config is None
    assert subject.rest == ("a.w",)
    with pytest.raises(CheckpointError):
        runtimes.subject(tmp_path / "nowhere")


ODD = [None, 0, -1, 1.5, "", "(", [], ["("], [1], {}, {"a": 1}, {"a": "b"}, {"(": 1}, True, [[1]]]


@pytest.mark.parametrize("name", ["minilm-patterns", "minilm-rslora", "moe-experts"])
def test_no_field_of_any_kind_brings_a_rule_down(name):
    sound = runtimes.subject(FIXTURES / name)
    assert sound.config is not None
    for field in (*sound.config, "lora_parameters", "num_layers", "fine_tune_type"):
        for value in ODD:
            for manifest in (sound.manifest, None):
                odd = replace(sound, config={**sound.config, field: value}, manifest=manifest)
                judgements = [judge(odd, runtime) for runtime in runtimes.RUNTIMES]
                assert runtimes.to_text(judgements)


def test_rules_have_names_of_their_own_and_sentences():
    for runtime in runtimes.RUNTIMES:
        for rules in (runtime.rules, *(runtime.own or ())[1:]):
            names = [rule.name for rule in rules]
            assert len(names) == len(set(names))
            assert all(rule.text.endswith(".") for rule in rules)
        assert runtime.source


def test_judging_needs_no_numbers():
    code = (
        "import sys; from lora_tools import runtimes as c;"
        f"s = c.subject({str(FIXTURES / 'minilm-patterns')!r});"
        "print(c.to_text([c.judge(s, k) for k in c.named(['all'])]));"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
