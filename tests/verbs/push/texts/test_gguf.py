"""Fields and names of a GGUF file, whatever its tensors are stored as."""

import numpy as np
import pytest
from judges import judge

from lora_tools.errors import CheckpointError
from lora_tools.verbs.push.texts import texts


@pytest.fixture
def written(tmp_path):
    gguf = judge("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_string("general.name", "a secret")
    writer.add_array("general.tags", ["lora", "another"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_float32("scale", 2.0)
    writer.add_bool("flag", val=True)
    writer.add_uint64("count", 7)
    quantised = gguf.quants.quantize(np.ones((4, 32), np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("q.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("w.weight", np.ones((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (tmp_path / "x.gguf").read_bytes()


def test_strings_of_fields_and_names_of_tensors(written):
    found = {text.text: text.place for text in texts("x.gguf", written)}
    assert found["general.name a secret"] == "field general.name"
    assert found["general.tags another"] == "field general.tags"
    assert found["q.weight"] == "the name of tensor q.weight"
    assert found["w.weight"] == "the name of tensor w.weight"
    assert {"numbers", "scale", "flag", "count"} < set(found)


def test_a_damaged_header_is_refused(written):
    header = written.index(b"w.weight") + 8
    for stop in range(8, header, 5):
        with pytest.raises(CheckpointError, match=r"x\.gguf: damaged"):
            list(texts("x.gguf", written[:stop]))


@pytest.mark.parametrize("kind", [9, 99])
def test_impossible_types_are_refused(kind):
    nested = (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
    data = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little")
    data += (1).to_bytes(8, "little") + b"k" + kind.to_bytes(4, "little") + nested * 9
    with pytest.raises(CheckpointError, match="damaged"):
        list(texts("x.gguf", data))
