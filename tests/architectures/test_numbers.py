"""Numbers that only a configuration says: of the language model, and whole, or none at all."""

import pytest

from lora_tools.architectures.numbers import language_model, numbers_of


def test_heads_are_those_of_the_language_model():
    text = {"model_type": "x", "num_attention_heads": 8, "num_key_value_heads": 2}
    whole = {"num_attention_heads": 3, "text_config": text}
    assert numbers_of(text) == numbers_of(whole) == {"heads": 8, "kv_heads": 2}
    assert numbers_of({"num_attention_heads": 8}) == {"heads": 8, "kv_heads": 8}
    assert language_model(whole) is text
    assert language_model(text) is text


@pytest.mark.parametrize(
    "silent",
    [
        None,
        {},
        {"num_attention_heads": "many"},
        {"num_attention_heads": 0},
        {"num_attention_heads": 8, "num_key_value_heads": "2"},
    ],
)
def test_a_count_that_is_no_number_is_not_guessed(silent):
    assert numbers_of(silent) == {}
