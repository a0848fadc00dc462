"""Metadata and names of a safetensors file."""

import numpy as np
from safetensors.numpy import save_file

from lora_tools.verbs.push.texts import texts


def test_metadata_and_names_are_texts_and_elements_are_not(tmp_path):
    data = np.frombuffer(b"the elements are not searched, 40 bytes.", np.uint8)
    save_file({"a.weight": data}, tmp_path / "x.safetensors", {"ss_note": "a\nb"})
    found = list(texts("x.safetensors", tmp_path / "x.safetensors"))
    assert [(text.text, text.place, text.entry) for text in found] == [
        ("ss_note a\nb", "metadata ss_note", "ss_note"),
        ("a.weight", "the name of tensor a.weight", None),
    ]
