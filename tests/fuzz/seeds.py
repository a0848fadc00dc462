"""Sound files of every kind, small and made here: what is mutated."""

import io
import json
import struct
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from safetensors.numpy import save

from lora_tools.files.fields import Field, text_of
from lora_tools.files.gguf import layout
from lora_tools.files.header import spec_of

RANK, WIDTH = 4, 8


class Seed(NamedTuple):
    """A folder: its files by name, and which of them a command may be given instead of it."""

    files: dict[str, bytes]
    main: str


def numbers(*shape: int, kind: str = "<f4") -> np.ndarray:
    """Return numbers that are the same in every run."""
    count = int(np.prod(shape))
    return np.sin(np.arange(1, count + 1) * 0.7).reshape(shape).astype(kind)


def factors(names: tuple[str, ...], down: str, up: str, *, turned: bool = False) -> dict:
    """Return the factors of modules as a tool calls them."""
    a, b = numbers(RANK, WIDTH), numbers(WIDTH, RANK)
    a, b = (a.T.copy(), b.T.copy()) if turned else (a, b)
    return {name + end: each for name in names for end, each in ((down, a), (up, b))}


LAYERS = tuple(f"model.layers.{n}.self_attn.{p}_proj" for n in range(2) for p in "qv")
UNET = tuple(f"down_blocks.{n}.attentions.0.proj_in" for n in range(2))
FLAT = tuple(f"lora_unet_down_blocks_{n}_attentions_0_proj_in" for n in range(2))
PEFT = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "org/base",
    "rank_pattern": {},
    "alpha_pattern": {},
    "bias": "none",
    "use_rslora": False,
    "modules_to_save": None,
}
BASE = {f"{name}.weight": numbers(WIDTH, WIDTH) for name in LAYERS} | {
    "model.embed_tokens.weight": numbers(10, WIDTH)
}
MODEL = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_attention_heads": 2}


def text(document: object) -> bytes:
    """Return a document as JSON."""
    return json.dumps(document).encode()


@cache
def seeds() -> dict[str, Seed]:
    """Return all sound folders by a name of their own."""
    peft = factors(
        tuple(f"base_model.model.{name}" for name in LAYERS), ".lora_A.weight", ".lora_B.weight"
    )
    dora = peft | {
        f"base_model.model.{name}.lora_magnitude_vector": numbers(WIDTH) for name in LAYERS
    }
    return {
        "peft": adapter({"adapter_model.safetensors": save(peft)}, PEFT),
        "dora": adapter({"adapter_model.safetensors": save(dora)}, PEFT | {"use_dora": True}),
        "peft-bin": adapter({"adapter_model.bin": pickled(peft)}, PEFT),
        "peft-old-bin": adapter({"adapter_model.bin": pickled(peft, zipped=False)}, PEFT),
        "mlx": Seed(
            {
                "adapters.safetensors": save(factors(LAYERS, ".lora_a", ".lora_b", turned=True)),
                "adapter_config.json": text(
                    {"fine_tune_type": "lora", "lora_parameters": {"rank": RANK, "scale": 2.0}}
                ),
            },
            "adapters.safetensors",
        ),
        "npz": alone("adapters.npz", archived(factors(LAYERS, ".lora_a", ".lora_b", turned=True))),
        "kohya": alone("x.safetensors", kohya()),
        "loha": alone("x.safetensors", loha()),
        "lokr": alone("x.safetensors", lokr()),
        "diffusers": alone(
            "pytorch_lora_weights.safetensors",
            save(
                factors(tuple(f"unet.{n}" for n in UNET), ".lora_A.weight", ".lora_B.weight"),
                {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.lora_alpha": 8})},
            ),
        ),
        "flux": alone("x.safetensors", flux()),
        "gguf": alone("x.gguf", gguf_adapter()),
        "lora.pt": alone("x.pt", pickled([numbers(WIDTH, RANK), numbers(RANK, WIDTH)] * 2)),
        "sharded": sharded(),
        "base": model({"model.safetensors": save(BASE)}, MODEL),
        "base-fp8": model(
            {"model.safetensors": float8()},
            MODEL | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 4]}},
        ),
        "base-bin": model({"pytorch_model.bin": pickled(BASE)}, MODEL),
    }


def adapter(files: dict[str, bytes], config: dict) -> Seed:
    """Return a folder with an adapter's configuration."""
    return Seed({**files, "adapter_config.json": text(config)}, next(iter(files)))


def model(files: dict[str, bytes], config: dict) -> Seed:
    """Return a folder with a model's configuration."""
    return Seed({**files, "config.json": text(config)}, next(iter(files)))


def alone(name: str, data: bytes) -> Seed:
    """Return a folder of one file."""
    return Seed({name: data}, name)


def kohya() -> bytes:
    """Return kohya's names, with the metadata of its trainer."""
    tensors = factors(FLAT, ".lora_down.weight", ".lora_up.weight")
    tensors |= {f"{name}.alpha": np.array(2.0, "<f4") for name in FLAT}
    metadata = {"ss_network_dim": str(RANK), "ss_network_alpha": "2", "ss_network_args": "{}"}
    return save(tensors, {**metadata, "ss_network_module": "networks.lora"})


def loha() -> bytes:
    """Return LyCORIS's Hadamard product."""
    tensors = {}
    for name in FLAT:
        for number in "12":
            tensors[f"{name}.hada_w{number}_a"] = numbers(WIDTH, RANK)
            tensors[f"{name}.hada_w{number}_b"] = numbers(RANK, WIDTH)
        tensors[f"{name}.alpha"] = np.array(2.0, "<f4")
    return save(tensors)


def lokr() -> bytes:
    """Return LyCORIS's Kronecker product."""
    tensors = {}
    for name in FLAT:
        tensors[f"{name}.lokr_w1"] = numbers(2, 2)
        tensors[f"{name}.lokr_w2_a"] = numbers(4, 2)
        tensors[f"{name}.lokr_w2_b"] = numbers(2, 4)
        tensors[f"{name}.alpha"] = np.array(2.0, "<f4")
    return save(tensors)


def flux() -> bytes:
    """Return kohya's names of Flux, whose queries, keys and values are one."""
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    return save(
        {
            f"{name}.lora_down.weight": numbers(RANK, WIDTH),
            f"{name}.lora_up.weight": numbers(3 * WIDTH, RANK),
            f"{name}.alpha": np.array(2.0, "<f4"),
        }
    )


def float8() -> bytes:
    """Return a base of float8 in blocks."""
    from safetensors.torch import save as save_torch

    tensors = {}
    for name in LAYERS:
        eight = torch.from_numpy(numbers(WIDTH, WIDTH)).to(torch.float8_e4m3fn)
        tensors |= {f"{name}.weight": eight, f"{name}.weight_scale_inv": torch.ones(2, 2)}
    return save_torch(tensors)


def sharded() -> Seed:
    """Return a base in two files with an index."""
    names = list(BASE)
    halves = {"model-00001-of-00002.safetensors": names[:2]}
    halves["model-00002-of-00002.safetensors"] = names[2:]
    files = {file: save({k: BASE[k] for k in keys}) for file, keys in halves.items()}
    where = {key: file for file, keys in halves.items() for key in keys}
    index = text({"metadata": {"total_size": 1}, "weight_map": where})
    return model({"model.safetensors.index.json": index, **files}, MODEL)


def archived(arrays: dict[str, np.ndarray]) -> bytes:
    """Return an archive as numpy writes it."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def pickled(value: object, *, zipped: bool = True) -> bytes:
    """Return a pickle as torch writes it."""
    if isinstance(value, dict):
        value = {name: torch.from_numpy(array) for name, array in value.items()}
    if isinstance(value, list):
        value = [torch.from_numpy(array) for array in value]
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def gguf_adapter() -> bytes:
    """Return llama.cpp's container."""
    names = tuple(f"blk.{n}.attn_{p}.weight" for n in range(2) for p in "qv")
    tensors = factors(names, ".lora_a", ".lora_b")
    fields = {
        "general.type": Field("STRING", "adapter"),
        "general.architecture": Field("STRING", "llama"),
        "adapter.type": Field("STRING", "lora"),
        "adapter.lora.alpha": Field("FLOAT32", 8.0),
        "general.tags": Field("ARRAY STRING", ["a", "b"]),
    }
    specs = {name: spec_of(array) for name, array in tensors.items()}
    plan = layout(specs, {name: text_of(field) for name, field in fields.items()})
    data = bytearray(plan.size)
    data[: len(plan.header)] = plan.header
    for name, slot in plan.slots.items():
        data[slot.start : slot.stop] = tensors[name].tobytes()
    return bytes(data)


def unpacked(data: bytes) -> tuple[dict, bytes]:
    """Return the header of a safetensors file and what follows it."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def packed(header: object, body: bytes) -> bytes:
    """Return the file with such a header, whatever it says."""
    stated = json.dumps(header).encode()
    return struct.pack("<Q", len(stated)) + stated + body
