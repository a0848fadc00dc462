"""What servers accept."""

from lora_tools.consumer import VLLM


def test_vllms_ranks_are_those_of_its_configuration():
    assert VLLM.ranks == (1, 8, 16, 32, 64, 128, 256, 320, 512)
    assert "modules_to_save" in VLLM.refuses
