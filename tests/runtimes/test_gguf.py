"""Each rule of llama.cpp's loader for GGUF files, broken and kept."""

import gguf
import numpy as np
import pytest

from lora_tools import runtimes
from lora_tools.runtimes import Verdict
from lora_tools.runtimes.llamacpp import LLAMACPP

Q, TABLE = "blk.0.attn_q.weight", "token_embd.weight"


def made(path, kind="adapter", **changes):
    """Write a GGUF adapter with the package's writer; None leaves a tensor out."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(kind)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 4.0)
    shapes = {f"{Q}.lora_a": (2, 8), f"{Q}.lora_b": (6, 2)}
    shapes |= {f"{TABLE}.lora_a": (10, 2), f"{TABLE}.lora_b": (8, 2)}
    for name, shape in (shapes | changes).items():
        if shape:
            writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def judged(path):
    return runtimes.judge(runtimes.subject(path), LLAMACPP)


def test_what_the_loader_reads_loads(tmp_path):
    judgement = judged(made(tmp_path / "x.gguf"))
    assert judgement.verdict == Verdict.LOADS
    assert not judgement.findings


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("kind", {"kind": "model"}),
        ("names", {f"{Q}.lora_c": (2, 2)}),
        ("incomplete", {f"{Q}.lora_b": None}),
        ("ranks", {f"{Q}.lora_b": (6, 3)}),
        ("ranks", {f"{TABLE}.lora_a": (2, 10)}),
    ],
)
def test_refused(rule, changes, tmp_path):
    judgement = judged(made(tmp_path / "x.gguf", **changes))
    assert judgement.verdict == Verdict.REFUSED
    assert [found.rule for found in judgement.findings] == [rule]


def test_norms_are_passed_over_with_a_remark(tmp_path):
    judgement = judged(made(tmp_path / "x.gguf", **{"blk.0.attn_norm.weight": (8,)}))
    assert judgement.verdict == Verdict.LOADS
    assert [found.rule for found in judgement.findings] == ["norms"]


def test_a_folder_is_judged_as_the_converter_would(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    made(folder / "x.gguf")
    assert not judged(folder).findings
