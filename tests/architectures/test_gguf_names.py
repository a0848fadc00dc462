"""gguf's own table of names, and llama.cpp's permutation of rows, judge GGUF's dialect."""

import re

import numpy as np
import pytest
from dialects import converted
from judges import judge

from lora_tools.architectures.families import FAMILIES, family
from lora_tools.architectures.index import Candidate
from lora_tools.architectures.layout import Dimensions
from lora_tools.architectures.translation import translate

BLOCK = "model.layers.1."
IN_GGUF = [known for known in FAMILIES if "gguf" in known.ids]


@pytest.mark.parametrize("known", IN_GGUF, ids=lambda known: known.name)
def test_names_are_those_of_gguf(known):
    """Every module of the table has the name that gguf gives to what transformers calls it."""
    gguf = judge("gguf")
    stated = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[known.ids["gguf"]]
    names = gguf.get_tensor_name_map(stated, 2)
    for rule in known.rules("gguf"):
        path = rule.path.replace("#", "1")
        numbers = {"heads": 4, "kv_heads": 4}
        here = Candidate(known, "gguf")
        there = translate({path: Dimensions(24, 8)}, here, "transformers", numbers)
        assert there.targets
        assert not there.unmatched
        for target in there.targets:
            name = re.sub(r"experts\.\d+\.", "experts.", target.path)  # its table has them merged
            assert names.get_name(name, try_suffixes=(".weight",)) == path


def test_rows_are_those_of_llama_cpp():
    random = np.random.default_rng(0)
    fine = {
        f"{BLOCK}self_attn.q_proj.weight": random.standard_normal((32, 8)),
        f"{BLOCK}self_attn.k_proj.weight": random.standard_normal((16, 8)),
    }
    numbers = {"heads": 4, "kv_heads": 2}
    found = converted(fine, family("Llama"), "transformers", "gguf", numbers)
    for part, heads in (("q", 4), ("k", 2)):
        weight = fine[f"{BLOCK}self_attn.{part}_proj.weight"]
        # convert_hf_to_gguf.py, LlamaModel.permute
        size = weight.shape[0] // heads // 2
        wanted = weight.reshape(heads, 2, size, 8).swapaxes(1, 2).reshape(weight.shape)
        assert np.array_equal(found[f"blk.1.attn_{part}.weight"], wanted)
