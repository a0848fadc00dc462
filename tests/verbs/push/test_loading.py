"""How to load what is published: told for runtimes that load it rightly, and for no others."""

import pytest
from conftest import FIXTURES
from hub_person import make_adapter

from lora_tools import read
from lora_tools.verbs.push.loading import loading


def lines(folder, base="org/base") -> str:
    return "\n".join(loading(read(folder), "me/cat", base))


def named(tmp_path, **config):
    return make_adapter(tmp_path / "mine", task_type="CAUSAL_LM", **config)


def test_a_language_models_adapter_is_served_by_vllm_at_a_rank_that_it_allows(tmp_path):
    text = lines(named(tmp_path, rank=12))
    assert 'AutoPeftModelForCausalLM.from_pretrained("me/cat")' in text
    assert "vllm serve org/base --enable-lora --max-lora-rank 16 --lora-modules cat=me/cat" in text


def test_vllm_is_not_told_of_what_it_would_load_at_the_wrong_strength(tmp_path):
    text = lines(named(tmp_path, alpha_pattern={"layers.0.self_attn.q_proj": 64}))
    assert "AutoPeftModelForCausalLM" in text
    assert "vllm" not in text


@pytest.mark.parametrize("name", ["minilm-plain", "minilm-dora"])
def test_an_encoders_adapter_is_loaded_onto_its_base(name):
    text = lines(FIXTURES / name)
    assert 'base = AutoModel.from_pretrained("org/base")' in text
    assert 'PeftModel.from_pretrained(base, "me/cat")' in text
    assert "vllm" not in text
