"""What llama.cpp's converter writes is read right, of every model that it permutes or does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf_adapters import (
    GGUF,
    HEADLESS,
    HEADS,
    KINDS,
    LAYERS,
    LLAMA,
    MODELS,
    MODULES,
    PERMUTED,
    TORCH,
    WIDTH,
    as_the_converter_writes,
    converted,
    dense,
    file_in,
    gguf,
    made_up,
    peft,
    to_llama_cpp,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lora_tools.adapter import read, write
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.manifest import Manifest, Module, Part
from lora_tools.formats.registry import FORMATS
from lora_tools.formats.rotary import Paired
from lora_tools.formats.sites import Embedding, Linear
from lora_tools.linalg.rank import Fixed
from lora_tools.verbs.convert import convert
from lora_tools.verbs.shrink import shrink


@pytest.mark.parametrize("kind", [KINDS.F32, KINDS.F16, KINDS.BF16])
@pytest.mark.parametrize("alpha", [8.0, 0.0, 0.3])
def test_what_the_converter_writes_is_read_right(tmp_path, kind, alpha):
    tensors, expected = made_up(kind=kind)
    as_the_converter_writes(tmp_path / "x.gguf", tensors, alpha=alpha)
    adapter = read(tmp_path, base=LLAMA)
    scale = float(np.float32(alpha)) / 4 if alpha else 1.0
    found = dense(adapter)
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert np.allclose(found[name], scale * delta, rtol=1e-12, atol=1e-12)


def test_a_quantised_adapter_is_read_as_it_is_dequantised(tmp_path):
    modules = {path: found for path, found in MODULES.items() if path.endswith("o_proj")}
    tensors, expected = made_up(modules, KINDS.Q8_0, rank=32)
    kinds = {"general.file_type": 7, "general.quantization_version": 2}
    as_the_converter_writes(tmp_path / "x.gguf", tensors, alpha=32, **kinds)
    adapter = read(tmp_path / "x.gguf")
    for name, delta in dense(adapter).items():
        assert np.allclose(delta, expected[name], rtol=1e-12, atol=1e-12)
    assert "stored as Q8_0" in adapter.manifest.notes[0]
    (tmp_path / "small").mkdir()
    small = shrink(adapter, Fixed(2))
    write(tmp_path / "small", small.manifest, small.report("shrink").watch(small), like=adapter)
    reader = gguf.GGUFReader(file_in(tmp_path / "small"))
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32"}
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.ALL_F32
    assert "general.quantization_version" not in reader.fields


@pytest.mark.parametrize("arch", MODELS)
def test_only_models_that_llama_cpp_permutes_are_permuted(tmp_path, arch):
    path = "self_attn.qkv_proj" if arch == "phi3" else "self_attn.q_proj"
    source = peft(tmp_path / "peft", {f"model.layers.3.{path}": ("", (96, WIDTH))})
    (before,) = (v for k, v in load_file(source / "adapter_model.safetensors").items() if "_B" in k)
    for number, base in enumerate(MODELS[arch]):
        out = tmp_path / f"out{number}"
        converted(source, out, base=base)
        reader = gguf.GGUFReader(file_in(out))
        assert reader.fields["general.architecture"].contents() == arch
        (b,) = (t.data.copy() for t in reader.tensors if t.name.endswith(".lora_b"))
        permuted = arch in PERMUTED
        assert np.array_equal(b, before.numpy()) is not permuted
        expected = to_llama_cpp(before, "blk.3.attn_q") if permuted else before
        assert np.array_equal(b, expected.numpy())
        (module,) = read(out).manifest.modules
        assert module.rows == (Paired(None) if permuted else None)
        converted(out, tmp_path / f"back{number}", "peft", base=base)
        again = load_file(tmp_path / f"back{number}" / "adapter_model.safetensors")
        assert any(torch.equal(value, before) for value in again.values())


@st.composite
def manifests(draw):
    arch, configs = draw(st.sampled_from(sorted(MODELS.items())))
    paths = [f"model.layers.{draw(st.integers(0, 99))}.{name}" for name in LAYERS[arch]]
    paths += ["model.embed_tokens"] + ["lm_head"] * (arch not in HEADLESS)
    found = draw(st.lists(st.sampled_from(paths), min_size=1, unique=True))
    types = st.sampled_from(["F16", "BF16", "F32"])
    alphas = st.one_of(st.none(), st.floats(0.0078125, 100, width=32))
    uniform = draw(st.booleans())
    one, modules = draw(alphas), []
    for path in found:
        rank, inp, out = (draw(st.integers(1, 5)) for _ in range(3))
        out *= 2 * HEADS
        parts = {
            "b": Part("b", Spec(draw(types), (out, rank))),
            "a": Part("a", Spec(draw(types), (rank, inp))),
        }
        site = Embedding() if "embed" in path else Linear()
        alpha = one if uniform else draw(alphas)
        modules.append(Module(path, site, out, inp, rank, alpha, False, parts, path, path))
    return Manifest("elsewhere", tuple(modules), base=configs[0], base_model="org/base")


@settings(deadline=None, max_examples=80)
@given(manifests(), st.randoms())
def test_what_is_written_is_read_again_bit_for_bit(tmp_path_factory, manifest, random):
    folder = tmp_path_factory.mktemp("gguf")
    written = GGUF.write(manifest)
    assert [f.name for f in FORMATS if f.detect(written.specs, None)] == ["gguf"]
    again = GGUF.read(Contents(written.specs, None, written.metadata, base=manifest.base))
    assert again.modules == written.modules
    assert GGUF.write(again) == replace(again, notes=again.notes)
    one = {module.alpha for module in manifest.modules}
    if len(one) == 1:
        assert [m.scale for m in again.modules] == [m.scale for m in manifest.modules]
    # Through files: the same bytes, header and all, with the heads known or not.
    tensors = {
        key: torch.randn(spec.shape).to(getattr(torch, TORCH[spec.dtype]))
        for key, spec in written.specs.items()
    }
    plan = GGUF.container.layout(written.specs, written.metadata)
    from lora_tools.files.writer import TensorWriter

    with TensorWriter(folder / "x.gguf", plan) as file:
        for key in random.sample(list(tensors), len(tensors)):
            file[key] = tensors[key]
    for base in (manifest.base, None):
        adapter = read(folder / "x.gguf", base=base)
        out = folder / f"out{base is None}"
        out.mkdir()
        made = convert(adapter, GGUF)
        write(out, made.manifest, made.report("convert").watch(made), like=adapter, format=GGUF)
        assert (out / "x.gguf").read_bytes() == (folder / "x.gguf").read_bytes()
