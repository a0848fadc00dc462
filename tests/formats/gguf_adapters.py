"""Adapters as llama.cpp's own definitions have them, with none of our code.

Where the rows of queries and keys are, which way an embedding's A lies, what the
one alpha means."""

import json

import numpy as np
import torch
from judges import judge
from reference import deltas
from safetensors.torch import save_file

from lora_tools.adapter import read, write
from lora_tools.formats.registry import format_named
from lora_tools.update import factors
from lora_tools.verbs.convert import convert

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
    "stablelm": [LLAMA | {"model_type": "stablelm"}],
    "olmo": [LLAMA | {"model_type": "olmo"}],
    "olmo2": [LLAMA | {"model_type": "olmo2"}],
    "command-r": [LLAMA | {"model_type": "cohere"}],
    "cohere2": [LLAMA | {"model_type": "cohere2"}],
    "starcoder2": [LLAMA | {"model_type": "starcoder2"}],
    "glm4": [LLAMA | {"model_type": "glm4"}],
    "gpt-oss": [LLAMA | {"model_type": "gpt_oss"}],
}


PERMUTED = ("llama", "granite", "smollm3", "olmo")
"""Those of which llama.cpp's converter changes the order of queries' and keys' rows."""


HEADLESS = ("gemma", "gemma2", "gemma3", "command-r", "cohere2")
"""Those of which it has no output layer: the embedding is it."""


ATTENTION = [path for path in SHAPES if path.startswith("self_attn")]


LAYERS = {name: [*SHAPES] for name in MODELS} | {
    "phi3": ["self_attn.qkv_proj", "mlp.gate_up_proj"],
    "starcoder2": [*ATTENTION, "mlp.c_fc", "mlp.c_proj"],
    "glm4": [*ATTENTION, "mlp.gate_up_proj", "mlp.down_proj"],
    "gpt-oss": ATTENTION,
}
"""The layers of each that it puts a LoRA into."""


TORCH = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def model(folder):
    """A base of random numbers, in transformers' names."""
    folder.mkdir()
    tensors = {f"{path}.weight": torch.randn(shape) for path, (_, shape) in MODULES.items()}
    tensors["model.norm.weight"] = torch.ones(WIDTH)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA | {"architectures": ["LlamaForCausalLM"]}))
    return folder


ONE = {"model.layers.0.self_attn.v_proj": MODULES["model.layers.0.self_attn.v_proj"]}


def one(path, base=LLAMA, **config):
    return {path: ("", (WIDTH, WIDTH))}, base, config
