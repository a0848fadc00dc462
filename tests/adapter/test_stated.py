from lora_tools.adapter.stated import stated, unpacked

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 8,
    "rope_theta": 1e4,
    "text_config": {"num_attention_heads": 4, "id2label": {"0": "a"}},
    "id2label": {str(i): "x" * 20 for i in range(1000)},
    "quantization_config": {"modules_to_not_convert": ["lm_head"] * 1000},
}


def test_numbers_and_models_within_are_kept_and_tables_are_not():
    kept = unpacked(stated(CONFIG))
    assert kept == {
        "architectures": ["LlamaForCausalLM"],
        "num_attention_heads": 8,
        "rope_theta": 1e4,
        "text_config": {"num_attention_heads": 4},
    }
    assert len(stated(CONFIG)) < 300


def test_no_configuration_stays_none():
    assert unpacked(stated(None)) is None


def test_one_configuration_is_one_object():
    assert stated(dict(CONFIG)) is stated(dict(CONFIG))
