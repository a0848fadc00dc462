"""What convert writes is what llama.cpp adds, whatever PEFT's adapter held."""

import numpy as np
import pytest
import torch
from gguf_adapters import (
    KINDS,
    LLAMA,
    MODULES,
    VOCABULARY,
    WIDTH,
    as_llama_cpp_applies,
    as_the_converter_writes,
    converted,
    expected_of,
    file_in,
    gguf,
    made_up,
    peft,
)
from reference import deltas, relative_error
from safetensors.torch import load_file

from lora_tools.adapter import read, write
from lora_tools.errors import UnsupportedError
from lora_tools.formats.registry import format_named
from lora_tools.linalg.rank import Fixed
from lora_tools.verbs.convert import convert
from lora_tools.verbs.shrink import shrink


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_llama_cpp_adds_what_peft_adds(tmp_path, dtype):
    source = peft(tmp_path / "peft", dtype=dtype)
    outcome = converted(source, tmp_path / "out")
    expected, found = expected_of(source), as_llama_cpp_applies(file_in(tmp_path / "out"))
    assert found.keys() == expected.keys()
    for path, (name, (out, inp)) in MODULES.items():
        delta, (ne0, ne1) = found[f"{name}.weight"]
        # llama.cpp's own check, for a base weight whose ne is the shape the other way round.
        assert (ne0, ne1) == (inp, out), path
        bound = 1e-14 if dtype != torch.float64 else 1e-6
        torch.testing.assert_close(delta, expected[f"{name}.weight"], rtol=bound, atol=bound)
    kept = {name: delta for name, (delta, _) in found.items()}
    error = relative_error(expected, kept)
    assert outcome.error == pytest.approx(error, rel=1e-6, abs=1e-8)  # below is noise
    if dtype == torch.float64:  # which llama.cpp has no kernels for
        assert 0 < error < 1e-7
        assert {s.dtype for s in read(tmp_path / "out").manifest.specs.values()} == {"F32"}
    else:
        assert error < 1e-15
        assert outcome.error == 0
        assert {row.outcome for row in outcome.rows} == {"kept"}


def test_the_keys_and_shapes_are_those_of_llama_cpps_loader(tmp_path):
    converted(peft(tmp_path / "peft"), tmp_path / "out")
    reader = gguf.GGUFReader(file_in(tmp_path / "out"))
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    expected = {}
    for name, (out, inp) in MODULES.values():
        a = (4, VOCABULARY) if name == "token_embd" else (inp, 4)
        expected[f"{name}.weight.lora_a"] = a
        expected[f"{name}.weight.lora_b"] = (4, WIDTH if name == "token_embd" else out)
    assert shapes == expected
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert {name: value for name, value in fields.items() if not name.startswith("GGUF.")} == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.base_model.count": 1,
        "general.base_model.0.name": "base",
        "general.base_model.0.organization": "org",
        "general.base_model.0.repo_url": "https://huggingface.co/org/base",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    }
    alpha = reader.fields["adapter.lora.alpha"]
    assert alpha.types == [gguf.GGUFValueType.FLOAT32]
    assert read(tmp_path / "out").base_model == "org/base"


MIXED = {
    "rank_pattern": {"v_proj": 2},
    "alpha_pattern": {"gate_proj": 3, "layers.11.mlp.down_proj": 0.7},
}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
@pytest.mark.parametrize("rslora", [False, True])
def test_one_alpha_for_all_keeps_the_update(tmp_path, rslora, dtype, bound):
    source = peft(tmp_path / "peft", dtype=dtype, use_rslora=rslora, **MIXED)
    outcome = converted(source, tmp_path / "out")
    kept = {name: d for name, (d, _) in as_llama_cpp_applies(file_in(tmp_path / "out")).items()}
    error = relative_error(expected_of(source), kept)
    assert error < bound
    assert outcome.error == pytest.approx(error, rel=1e-6, abs=1e-8)  # below is noise
    if not rslora:  # with sqrt(r), alpha / r is the same for the modules of one rank
        rescaled = [row.module for row in outcome.rows if row.outcome == "rescaled"]
        assert len(rescaled) == 3
        assert all("gate" in name or "11.mlp.down" in name for name in rescaled)
    converted(tmp_path / "out", tmp_path / "back", "peft")
    assert relative_error(deltas(source), deltas(tmp_path / "back")) < bound


def test_peft_to_gguf_and_back_keeps_every_bit(tmp_path):
    source = peft(tmp_path / "peft", rank_pattern={"v_proj": 2})
    outcome = converted(source, tmp_path / "out")
    back = converted(tmp_path / "out", tmp_path / "back", "peft")
    assert outcome.error == back.error == 0
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (source, tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    wanted, got = deltas(source), deltas(tmp_path / "back")
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert read(tmp_path / "back").base_model == "org/base"
    assert back.left_out.keys() >= {"header field general.architecture"}


def test_another_type_is_cast_and_reported(tmp_path):
    source = peft(tmp_path / "peft")
    outcome = converted(source, tmp_path / "out", dtype="BF16")
    kept = {name: d for name, (d, _) in as_llama_cpp_applies(file_in(tmp_path / "out")).items()}
    assert outcome.error == pytest.approx(relative_error(expected_of(source), kept), rel=1e-6)
    assert 1e-4 < outcome.error < 1e-2
    types = {
        tensor.tensor_type.name for tensor in gguf.GGUFReader(file_in(tmp_path / "out")).tensors
    }
    assert types == {"BF16"}


def test_norms_are_carried_over_and_said_to_be_skipped(tmp_path):
    tensors, _ = made_up()
    norm = np.arange(WIDTH, dtype=np.float32)
    tensors["blk.0.attn_norm.weight"] = (norm, KINDS.F32)
    as_the_converter_writes(tmp_path / "x.gguf", tensors)
    adapter = read(tmp_path / "x.gguf", base=LLAMA)
    assert [extra.key for extra in adapter.manifest.extras] == ["blk.0.attn_norm.weight"]
    assert adapter.manifest.notes == ("1 norms are replaced as a whole; llama.cpp skips them.",)
    with pytest.raises(UnsupportedError, match=r"full weight: blk\.0\.attn_norm\.weight"):
        convert(adapter, format_named("peft"))
    made = convert(adapter, format_named("peft"), drop=["full weight"])
    assert made.report("convert").dropped == {"full weight": ("blk.0.attn_norm.weight",)}
    small = shrink(adapter, Fixed(1))
    (tmp_path / "small").mkdir()
    write(tmp_path / "small", small.manifest, small.report("shrink").watch(small), like=adapter)
    kept = read(tmp_path / "small").tensors["blk.0.attn_norm.weight"]
    assert torch.equal(kept, torch.from_numpy(norm))
