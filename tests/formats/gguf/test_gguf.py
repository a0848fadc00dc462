"""llama.cpp's adapters: what its loader expects, what its converter writes, and the way back.

The reference here is written from llama.cpp's own definitions, with none of our code: where the
rows of queries and keys are, which way an embedding's A lies, and what the one alpha means.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import judge
from reference import deltas, relative_error
from safetensors.torch import load_file, save_file

from lora_tools.adapter import read, write
from lora_tools.architectures.dialects import candidates, in_tool, in_transformers
from lora_tools.errors import FormatError, LoraToolsError, NonFiniteError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.manifest import Manifest, Module, Part
from lora_tools.formats.registry import FORMATS, format_named
from lora_tools.formats.rotary import Paired
from lora_tools.formats.sites import Embedding, Linear
from lora_tools.linalg.rank import Energy, Fixed, MaxBytes
from lora_tools.model import open_model
from lora_tools.update import factors
from lora_tools.verbs.convert import convert
from lora_tools.verbs.diff import diff
from lora_tools.verbs.inspect import inspect
from lora_tools.verbs.merge import MergeOptions, WeightedAdapter, merge, plan
from lora_tools.verbs.shrink import shrink
from lora_tools.verbs.verify import verify

gguf = judge("gguf")
GGUF = format_named("gguf")

WIDTH, INNER, VOCABULARY, HEADS, KEYS = 32, 48, 20, 4, 2
LLAMA = {
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "tie_word_embeddings": False,
}
LAYER = "model.layers.{}."
SHAPES = {  # path, llama.cpp's name, and the shape of the base weight
    "self_attn.q_proj": ("attn_q", (WIDTH, WIDTH)),
    "self_attn.k_proj": ("attn_k", (WIDTH // 2, WIDTH)),
    "self_attn.v_proj": ("attn_v", (WIDTH // 2, WIDTH)),
    "self_attn.o_proj": ("attn_output", (WIDTH, WIDTH)),
    "mlp.gate_proj": ("ffn_gate", (INNER, WIDTH)),
    "mlp.up_proj": ("ffn_up", (INNER, WIDTH)),
    "mlp.down_proj": ("ffn_down", (WIDTH, INNER)),
}
MODULES = {
    f"model.layers.{layer}.{path}": (f"blk.{layer}.{name}", shape)
    for layer in (0, 11)
    for path, (name, shape) in SHAPES.items()
} | {
    "model.embed_tokens": ("token_embd", (VOCABULARY, WIDTH)),
    "lm_head": ("output", (VOCABULARY, WIDTH)),
}
HEADS_OF = {"attn_q": HEADS, "attn_k": KEYS}


def peft(folder, modules=MODULES, dtype=torch.float32, **config):
    """Write a PEFT adapter of rank 4, and 2 where the pattern says so, without any of our code."""
    folder.mkdir()
    tensors = {}
    for path, (_, (out, inp)) in modules.items():
        rank = 2 if path.endswith(tuple(config.get("rank_pattern", ()))) else 4
        key_prefix = f"base_model.model.{path}"
        if path.endswith("embed_tokens"):  # the table is looked up, so its rows are A's columns
            tensors[f"{key_prefix}.lora_embedding_A"] = torch.randn(rank, out).to(dtype)
            tensors[f"{key_prefix}.lora_embedding_B"] = torch.randn(inp, rank).to(dtype)
        else:
            tensors[f"{key_prefix}.lora_A.weight"] = torch.randn(rank, inp).to(dtype)
            tensors[f"{key_prefix}.lora_B.weight"] = torch.randn(out, rank).to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
    known = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/base"}
    config = known | {"target_modules": sorted({p.rpartition(".")[2] for p in modules})} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def converted(source, out, target="gguf", base=LLAMA, **options):
    """Convert as the command does, into a folder."""
    out.mkdir()
    made = convert(read(source, base=base), format_named(target), **options)
    outcome = made.report("convert")
    write(
        out, made.manifest, outcome.watch(made), like=made.source.adapter, format=made.source.format
    )
    return outcome


def file_in(folder):
    (file,) = folder.glob("*.gguf")
    return file


def place_in_file(row, out, heads):
    """Where llama.cpp's converter puts a row: (heads, 2, half) becomes (heads, half, 2)."""
    size = out // heads
    head, within = divmod(row, size)
    part, index = divmod(within, size // 2)
    return head * size + index * 2 + part


def to_llama_cpp(weight, key_prefix):
    heads = HEADS_OF.get(key_prefix.rpartition(".")[2])
    if heads is None:
        return weight
    turned = torch.empty_like(weight)
    for row in range(len(weight)):
        turned[place_in_file(row, len(weight), heads)] = weight[row]
    return turned


def as_llama_cpp_applies(file):
    """Return what llama.cpp adds to each base weight, in float64, by the package's reader."""
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    alpha = reader.fields["adapter.lora.alpha"].contents()
    tensors = {}
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = (
            torch.from_numpy(data.copy()).double(),
            list(map(int, tensor.shape)),
        )
    found = {}
    for key, (a, ne) in tensors.items():
        if not key.endswith(".lora_a"):
            continue
        name = key.removesuffix(".lora_a")
        b, b_ne = tensors[f"{name}.lora_b"]
        scale = alpha / b_ne[0] if alpha else 1.0
        if name == "token_embd.weight":  # ggml_get_rows of A, then B
            found[name] = (scale * b @ a.T).T, (b_ne[1], ne[1])
        else:
            assert ne[1] == b_ne[0]
            found[name] = scale * b @ a, (ne[0], b_ne[1])
    assert len(tensors) == 2 * len(found)
    return found


def expected_of(folder):
    """Return what each base weight of llama.cpp has to become richer by, from a PEFT folder."""
    found = {}
    for key_prefix, delta in deltas(folder).items():
        path = key_prefix.removeprefix("base_model.model.")
        name, _ = MODULES[path]
        found[f"{name}.weight"] = to_llama_cpp(delta.T if "embed" in path else delta, name)
    return found


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


def as_the_converter_writes(path, tensors, arch="llama", alpha=8.0, **fields):
    """Write a file as convert_lora_to_gguf.py does, with the package's writer."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    add = {list: writer.add_array, int: writer.add_uint32, str: writer.add_string}
    for key, value in fields.items():
        add[type(value)](key, value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


KINDS = gguf.GGMLQuantizationType


def made_up(modules=MODULES, kind=KINDS.F32, rank=4):
    """Return the tensors of a file, and what it adds to transformers' weights."""
    random = np.random.default_rng(0)
    tensors, expected = {}, {}
    for path, (name, (out, inp)) in modules.items():
        flat = "embed" in path
        a = random.standard_normal((rank, out if flat else inp)).astype(np.float32)
        b = random.standard_normal((inp if flat else out, rank)).astype(np.float32)
        turned = to_llama_cpp(torch.from_numpy(b), name).numpy()
        on_disk = np.ascontiguousarray(a.T if flat else a)
        tensors[f"{name}.weight.lora_a"] = (on_disk, kind)
        tensors[f"{name}.weight.lora_b"] = (turned, kind)
        stored_a, stored_b = (
            gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind).astype(np.float64)
            for x in (on_disk, b)
        )
        expected[path] = stored_b @ (stored_a.T if flat else stored_a)
    return tensors, expected


def dense(adapter):
    return {name: np.asarray(factors(adapter[name]).dense("float64")) for name in adapter}


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


MODELS = {
    "llama": [LLAMA, LLAMA | {"model_type": "mistral"}],
    "granite": [LLAMA | {"model_type": "granite"}],
    "smollm3": [LLAMA | {"model_type": "smollm3"}],
    "qwen2": [LLAMA | {"model_type": "qwen2"}],
    "qwen3": [LLAMA | {"model_type": "qwen3"}],
    "gemma": [LLAMA | {"model_type": "gemma"}],
    "gemma2": [LLAMA | {"model_type": "gemma2"}],
    "gemma3": [
        LLAMA | {"model_type": "gemma3_text"},
        {"model_type": "gemma3", "text_config": LLAMA | {"model_type": "gemma3_text"}},
    ],
    "phi3": [LLAMA | {"model_type": "phi3"}],
}


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
        permuted = arch in ("llama", "granite", "smollm3")
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
    fused = arch == "phi3"
    names = ["self_attn.qkv_proj", "mlp.gate_up_proj"] if fused else [*SHAPES]
    paths = [f"model.layers.{draw(st.integers(0, 99))}.{name}" for name in names]
    paths += ["model.embed_tokens"] + ["lm_head"] * ("gemma" not in arch)
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


TORCH = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def test_a_base_that_llama_cpp_knows_has_a_name_for_every_layer():
    """transformers' own models, and the package's own table as the judge of their names."""
    transformers = judge("transformers")
    small = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 16,
        "pad_token_id": 0,
    }
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    models = candidates("gguf")
    assert {each.family.ids["gguf"] for each in models} == {*MODELS}
    for candidate in models:
        arch = candidate.family.ids["gguf"]
        for model_type in candidate.family.types:
            if model_type in ("mixtral", "gemma3"):  # experts are stacked; a model of two parts
                continue
            config = transformers.AutoConfig.for_model(model_type, **small)
            with torch.device("meta"):
                model = transformers.AutoModelForCausalLM.from_config(config)
            table = gguf.TensorNameMap(kinds[arch], 1)
            layers = (torch.nn.Linear, torch.nn.Embedding)
            names = [name for name, layer in model.named_modules() if isinstance(layer, layers)]
            assert len(names) >= 6
            missing = []
            for name in names:
                found = in_tool(name, (candidate,))
                assert (found and found.path) == table.get_name(name), (model_type, name)
                if found is None:
                    missing.append(name)
                else:
                    assert in_transformers(found.path, (candidate,)).path == name
            assert missing in ([], ["lm_head"])
            assert "gemma" in arch or not missing


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.language_model.layers.3.self_attn.q_proj", "blk.3.attn_q"),
        ("language_model.model.layers.3.mlp.up_proj", "blk.3.ffn_up"),
        ("language_model.lm_head", "output"),
        ("layers.3.mlp.up_proj", "blk.3.ffn_up"),
        ("embed_tokens", "token_embd"),
        ("model.vision_tower.layers.3.self_attn.q_proj", None),
        ("model.layers.3.mlp.gate_up_proj", None),
        ("somebodys.own", None),
    ],
)
def test_what_stands_before_a_language_model_is_left_out(name, expected):
    parts = {"b": Part("b", Spec("F32", (8, 1))), "a": Part("a", Spec("F32", (1, 8)))}
    site = Embedding() if "embed" in name else Linear()
    module = Module(name, site, 8, 8, 1, 1.0, False, parts, name, name)
    manifest = Manifest("elsewhere", (module,), base=LLAMA)
    if expected is None:
        with pytest.raises(UnsupportedError, match=f"no place for {name}"):
            GGUF.write(manifest)
    else:
        assert GGUF.write(manifest).modules[0].key_prefix == expected


def model(folder):
    """A base of random numbers, in transformers' names."""
    folder.mkdir()
    tensors = {f"{path}.weight": torch.randn(shape) for path, (_, shape) in MODULES.items()}
    tensors["model.norm.weight"] = torch.ones(WIDTH)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA | {"architectures": ["LlamaForCausalLM"]}))
    return folder


def test_merge_and_verify_bring_rows_into_the_order_of_the_base(tmp_path):
    base = open_model(model(tmp_path / "base"))
    tensors, expected = made_up()
    file = as_the_converter_writes(tmp_path / "x.gguf", tensors)
    adapter = read(file, base=base.config)
    merge(plan(base, [WeightedAdapter(adapter)])).write(tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    before = load_file(tmp_path / "base" / "model.safetensors")
    for path, delta in expected.items():
        wide = before[f"{path}.weight"].double() + 2 * torch.from_numpy(
            delta.T if "embed" in path else delta
        )
        assert torch.equal(merged[f"{path}.weight"], wide.float())
    recipe = plan(base, [WeightedAdapter(adapter)], MergeOptions(None))
    assert verify(open_model(tmp_path / "merged").tensors, recipe).passed
    with pytest.raises(UnsupportedError, match="does not say how many heads"):
        plan(base, [WeightedAdapter(read(file))])


def test_diff_compares_across_formats_once_the_heads_are_known(tmp_path):
    source = peft(tmp_path / "peft")
    converted(source, tmp_path / "out")
    assert diff(read(source), read(tmp_path / "out", base=LLAMA)).same
    assert diff(read(tmp_path / "out"), read(tmp_path / "out")).same
    with pytest.raises(UnsupportedError, match=r"out: the rows of .*q_proj"):
        diff(read(source), read(tmp_path / "out"))
    wrong = LLAMA | {"num_attention_heads": 2}
    assert not diff(read(source), read(tmp_path / "out", base=wrong)).same


@pytest.mark.parametrize("policy", [Fixed(2), Energy(0.9)])
def test_shrink_needs_no_base_and_keeps_the_order_of_the_file(tmp_path, policy):
    source = peft(tmp_path / "peft")
    converted(source, tmp_path / "out")
    results = []
    for number, base in enumerate((None, LLAMA)):
        adapter = read(tmp_path / "out", base=base)
        small = shrink(adapter, policy)
        report = small.report("shrink")
        out = tmp_path / f"small{number}"
        out.mkdir()
        write(out, small.manifest, report.watch(small), like=adapter)
        found = {name: d for name, (d, _) in as_llama_cpp_applies(file_in(out)).items()}
        error = relative_error(expected_of(source), found)
        assert report.error == pytest.approx(error, rel=1e-5)
        assert error < 0.9
        again = read(out, base=LLAMA)
        scales = {module.scale for module in again.manifest.modules}
        assert scales == {1.0}  # in the factors, which one alpha can say at any ranks
        results.append(found)
    assert relative_error(*results) < 1e-6


@pytest.mark.parametrize("count", [9_000, 12_345, 15_000])
def test_a_budget_of_bytes_counts_what_fills_places_up(tmp_path, count):
    converted(peft(tmp_path / "peft", rank_pattern={"v_proj": 2}), tmp_path / "out")
    adapter = read(tmp_path / "out")
    small = shrink(adapter, MaxBytes(count))
    (tmp_path / "small").mkdir()
    write(tmp_path / "small", small.manifest, small.report("shrink").watch(small), like=adapter)
    size = file_in(tmp_path / "small").stat().st_size
    assert 0.8 * count < size <= count
    assert size == small.layout.size


def test_inspect_says_what_the_file_leaves_open(tmp_path):
    converted(peft(tmp_path / "peft"), tmp_path / "out")
    shown = inspect(read(tmp_path / "out")).to_dict()
    assert shown["format"] == "gguf"
    assert "rows of 4 modules have the interleaved RoPE layout" in shown["notes"][0]
    assert {module["scale"] for module in shown["modules"]} == {2.0}
    assert inspect(read(tmp_path / "out", base=LLAMA)).to_dict()["notes"] == []
    spectra = inspect(read(tmp_path / "out"), spectrum=True).to_dict()["modules"]
    known = inspect(read(tmp_path / "out", base=LLAMA), spectrum=True).to_dict()["modules"]
    for one, other in zip(spectra, known, strict=True):
        assert one["spectrum"]["sigma"] == pytest.approx(other["spectrum"]["sigma"], rel=1e-12)


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


def test_fields_of_the_header_stay_with_the_file(tmp_path):
    tensors, _ = made_up()
    fields = {"adapter.lora.task_name": "sql", "general.license": "mit", "some.list": [1, 2]}
    as_the_converter_writes(tmp_path / "x.gguf", tensors, **fields)
    adapter = read(tmp_path / "x.gguf", base=LLAMA)
    small = shrink(adapter, Fixed(1))
    (tmp_path / "small").mkdir()
    write(tmp_path / "small", small.manifest, small.report("shrink").watch(small), like=adapter)
    found = gguf.GGUFReader(file_in(tmp_path / "small")).fields
    assert {name: found[name].contents() for name in fields} == fields
    assert found["adapter.lora.alpha"].contents() == 1.0
    made = convert(adapter, format_named("peft"))
    assert made.manifest.metadata["adapter.lora.task_name"] == "sql"
    assert "header field general.license" in made.report("convert").left_out


@pytest.mark.parametrize("name", ["org/base", "/some/path/of/mine", "base", "FLOAT32 1.0"])
def test_the_base_model_is_named_in_the_header(tmp_path, name):
    converted(peft(tmp_path / "peft", ONE, base_model_name_or_path=name), tmp_path / "out")
    adapter = read(tmp_path / "out")
    assert adapter.base_model == name
    assert convert(adapter, GGUF).manifest.metadata == adapter.manifest.metadata


def test_text_that_looks_like_a_number_stays_text(tmp_path):
    source = peft(tmp_path / "peft")
    file = source / "adapter_model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "note": "FLOAT32 1.0"})
    converted(source, tmp_path / "out")
    found = gguf.GGUFReader(file_in(tmp_path / "out")).fields
    assert found["note"].contents() == "FLOAT32 1.0"
    assert "format" not in found


ONE = {"model.layers.0.self_attn.v_proj": MODULES["model.layers.0.self_attn.v_proj"]}


def one(path, base=LLAMA, **config):
    return {path: ("", (WIDTH, WIDTH))}, base, config


@pytest.mark.parametrize(
    ("modules", "base", "config", "message", "remedy"),
    [
        (
            *one("model.layers.0.mlp.up_proj", None),
            "which only the base model tells",
            "--base MODEL",
        ),
        (*one("model.layers.0.mlp.up_proj", {"a": 1}), "names no model_type", None),
        (*one("model.layers.0.mlp.up_proj", {"model_type": "gpt2"}), "of type gpt2", "qwen2"),
        (
            *one("model.layers.0.self_attn.k_proj", {"model_type": "llama"}),
            "num_attention_heads",
            None,
        ),
        (*one("model.layers.0.mlp.odd"), "no place for model.layers.0.mlp.odd", None),
        (*one("lm_head", LLAMA | {"tie_word_embeddings": True}), "ties its head", "Leave it out"),
        (
            *one("model.layers.0.self_attn.q_proj", LLAMA | {"num_attention_heads": 5}),
            "5 heads",
            "base",
        ),
        (*one("model.layers.0.mlp.up_proj", use_dora=True), "DoRA: model.layers", "--drop 'DoRA'"),
    ],
)
def test_what_llama_cpp_has_no_place_for_is_refused(
    tmp_path, modules, base, config, message, remedy
):
    source = peft(tmp_path / "peft", modules, **config)
    if config.get("use_dora"):
        file = source / "adapter_model.safetensors"
        (key_prefix,) = {key.rpartition(".lora_")[0] for key in load_file(file)}
        save_file(
            load_file(file) | {f"{key_prefix}.lora_magnitude_vector": torch.ones(WIDTH)}, file
        )
    with pytest.raises(LoraToolsError, match=message) as caught:
        convert(read(source, base=base), GGUF)
    assert isinstance(caught.value, FormatError | UnsupportedError)
    assert str(caught.value).startswith(f"{source}: ")
    if remedy:
        assert remedy in caught.value.__notes__[0]


def test_two_modules_of_one_name_are_refused(tmp_path):
    paths = ("model.layers.0.mlp.up_proj", "layers.0.mlp.up_proj")
    source = peft(tmp_path / "peft", dict.fromkeys(paths, ("", (WIDTH, WIDTH))))
    with pytest.raises(UnsupportedError, match=r"one name for these: .*layers\.0\.mlp\.up_proj"):
        convert(read(source, base=LLAMA), GGUF)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "falcon"}, "for the architecture 'falcon'"),
        ({"adapter.alora.invocation_tokens": [1, 2]}, "aLoRA is switched on by tokens"),
        ({"add": "blk.0.attn_v.bias"}, r"blk\.0\.attn_v\.bias of type F32 is not understood"),
        ({"add": "blk.0.ffn_gate_exps.weight.lora_a"}, "ffn_gate_exps: no weight of llama"),
        ({"add": "blk.3.attn_v.weight.lora_a"}, r"blk\.3\.attn_v has no lora_b"),
        ({"alpha": float("nan")}, "adapter.lora.alpha is nan"),
        ({"arch": "qwen2"}, "for the architecture qwen2, the base is llama"),
    ],
)
def test_files_that_are_no_lora_of_the_base_are_refused(tmp_path, change, message):
    tensors, _ = made_up(ONE)
    if name := change.pop("add", None):
        tensors[name] = (np.ones((4, 4), np.float32), KINDS.F32)
    as_the_converter_writes(tmp_path / "x.gguf", tensors, **change)
    with pytest.raises((FormatError, UnsupportedError), match=message) as caught:
        read(tmp_path / "x.gguf", base=LLAMA)
    assert str(caught.value).startswith(f"{tmp_path / 'x.gguf'}: ")


def test_a_model_is_no_adapter(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("blk.0.attn_v.weight.lora_a", np.ones((2, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match=r"general\.type is None and adapter\.type None"):
        read(tmp_path / "x.gguf")


def test_what_fails_leaves_nothing_behind(tmp_path):
    from click.testing import CliRunner

    from lora_tools.cli import cli

    base = model(tmp_path / "base")
    source = peft(tmp_path / "peft", ONE)
    file = source / "adapter_model.safetensors"
    save_file({key: value * 1e30 for key, value in load_file(file).items()}, file)
    out = tmp_path / "x.gguf"
    arguments = ["convert", source, out, "--to", "gguf", "--base", base, "--dtype", "float16"]
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert isinstance(result.exception, NonFiniteError)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "peft"}
