"""Mutations that know what they break: headers, names, shapes, counts, archives, values."""

import contextlib
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

from fuzz.seeds import packed, unpacked

INTEGERS = (0, 1, 2, 3, 7, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    10**30,
    -(10**30),
    2**63,
    0.5,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    "0",
    "x",
    "*",
    "(",
    "(a+)+$",
    "../../x",
    "/etc/passwd",
    "\x1b[31m\x00",
    "\ud800",
    "é.ß",
    "9" * 5000,
    "a" * 300,
    [],
    [0],
    [[[]]],
    [1, "x"],
    {},
    {"x": 1},
    {"": None},
)
WORDS = (
    "lora_A",
    "lora_B",
    "lora_a",
    "lora_down",
    "lora_up",
    "alpha",
    "weight",
    "bias",
    "default",
    "dora_scale",
    "diff",
    "diff_b",
    "hada_w1_a",
    "lokr_w1",
    "lora_embedding_A",
    "lora_E",
    "magnitude",
    "experts",
    "base_layer",
    "modules_to_save",
    "processor",
    "to_q_lora",
    "unet",
    "text_encoder",
    "lora_unet",
    "lora_te1",
    "q_proj",
    "qkv",
    "embed_tokens",
    "lm_head",
    "0",
    "99999999999999999999",
    "",
    "é",
)
DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E8M0", "I64", "I32", "U8", "I8", "BOOL", "F4")
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4}


def mutate(files: dict[str, bytes], random: Random) -> dict[str, bytes]:
    """Return the files of a folder after one to three mutations."""
    made = dict(files)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        name = random.choice(sorted(made))
        if random.random() < 0.02:
            made[random.choice(("x.bin", "config.json", "adapter_config.json"))] = made.pop(name)
            continue
        try:
            made[name] = random.choice(ways(name))(made[name], random)
        except Exception:  # noqa: BLE001 - what the one before has broken is not understood
            made[name] = flip(made[name], random)
    return made


def ways(name: str) -> list[Callable[[bytes, Random], bytes]]:
    """Return the mutations of a file by what it should be."""
    if name.endswith(".json"):
        return [document, document, document, flip]
    if name.endswith(".safetensors"):
        return [entry, names, names, shapes, shapes, values, metadata, flip]
    if name.endswith(".gguf"):
        return [fields, fields, flip]
    return [archive, archive, inside, fields, flip]


def flip(data: bytes, random: Random) -> bytes:
    """Change bytes, wherever they are."""
    made = bytearray(data)
    at = random.randrange(len(made) + 1)
    near = min(at, random.randrange(200))
    at = random.choice((at, near))
    match random.randrange(6):
        case 0:
            return bytes(made[:at])
        case 1:
            del made[at : at + random.randrange(1, 40)]
        case 2:
            made[at:at] = random.randbytes(random.randrange(1, 40))
        case 3:
            made[at:at] = made[at : at + random.randrange(1, 200)]
        case _:
            for _ in range(random.randrange(1, 4)):
                if made:
                    made[random.choice((at, random.randrange(len(made)))) % len(made)] = (
                        random.choice((0, 1, 0x7F, 0xFF, random.randrange(256)))
                    )
    return bytes(made)


def fields(data: bytes, random: Random) -> bytes:
    """Write a number that means something over bytes of a header."""
    made = bytearray(data)
    code = random.choice(("<Q", "<Q", "<I", "<H"))
    size = struct.calcsize(code)
    most = max(1, min(len(made) - size, random.choice((32, 400, len(made)))))
    value = random.choice((*INTEGERS, len(made), random.randrange(64))) % (1 << (8 * size))
    struct.pack_into(code, made, random.randrange(most), value)
    return bytes(made)


def document(data: bytes, random: Random) -> bytes:
    """Change a value of a JSON document, wherever it is."""
    return json.dumps(changed(json.loads(data), random)).encode()


def changed(value: Any, random: Random) -> Any:
    """Return a document with one node changed."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        made = dict(value)
        key = random.choice(sorted(made))
        match random.randrange(8):
            case 0:
                del made[key]
            case 1:
                made[word(key, random)] = made.pop(key)
            case 2:
                made[word(key, random)] = random.choice(list(made.values()))
            case 3:
                made[key] = random.choice(list(made.values()))
            case _:
                made[key] = changed(made[key], random)
        return made
    if isinstance(value, list) and value and random.random() < 0.8:
        items = list(value)
        at = random.randrange(len(items))
        match random.randrange(4):
            case 0:
                del items[at]
            case 1:
                items.append(items[at])
            case _:
                items[at] = changed(items[at], random)
        return items
    if isinstance(value, str) and random.random() < 0.4:
        return word(value, random)
    if random.random() < 0.02:
        deep: Any = 0
        for _ in range(random.choice((50, 900))):
            deep = [deep]
        return deep
    return random.choice(VALUES)


def word(name: str, random: Random) -> str:
    """Return a name with a part of it changed."""
    parts = name.split(".")
    at = random.randrange(len(parts))
    match random.randrange(6):
        case 0:
            del parts[at]
        case 1:
            parts.insert(at, random.choice(WORDS))
        case 2:
            parts[at] = random.choice(("", "\ud7ff", "a" * 300, "\x1b", "..", "/", " "))
        case 3:
            parts[at] = "_".join(random.sample(parts[at].split("_"), k=parts[at].count("_") + 1))
        case _:
            parts[at] = random.choice(WORDS)
    return ".".join(parts)


def entry(data: bytes, random: Random) -> bytes:
    """Change anything in the header of a safetensors file, and nothing behind it."""
    header, body = unpacked(data)
    return packed(changed(header, random), body)


def metadata(data: bytes, random: Random) -> bytes:
    """Change the metadata of a safetensors file."""
    header, body = unpacked(data)
    known = header.get("__metadata__") or {"format": "pt"}
    key = random.choice(sorted(known))
    value = random.choice(VALUES)
    text = value if isinstance(value, str) else json.dumps(value)
    if random.random() < 0.5:
        with contextlib.suppress(ValueError):
            text = json.dumps(changed(json.loads(known[key]), random))
    return packed({**header, "__metadata__": {**known, key: text}}, body)


def names(data: bytes, random: Random) -> bytes:
    """Rename tensors of a safetensors file, drop one, or have one twice; it stays a sound file."""
    tensors = torn(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        key = random.choice(sorted(tensors))
        match random.randrange(6):
            case 0:
                del tensors[key]
            case 1:
                tensors[word(key, random)] = tensors[key]
            case 2:
                other = random.choice(sorted(tensors))
                tensors[key], tensors[other] = tensors[other], tensors[key]
            case _:
                tensors[word(key, random)] = tensors.pop(key)
    return sewn(tensors, data)


def shapes(data: bytes, random: Random) -> bytes:
    """Give a tensor of a safetensors file another shape or type; it stays a sound file."""
    tensors = torn(data)
    key = random.choice(sorted(tensors))
    dtype, shape, raw = tensors[key]
    match random.randrange(7):
        case 0:
            shape = shape[::-1]
        case 1:
            shape = [len(raw) // WIDTHS.get(dtype, 1)]
        case 2:
            shape = [*shape, *([1] * random.randrange(1, 70))]
        case 3:
            shape, raw = [0, *shape[1:]], b""
        case 4:
            shape, raw = [2 * shape[0] if shape else 2, *shape[1:]], raw * 2
        case 5:
            shape, raw = [], raw[: WIDTHS.get(dtype, 1)]
        case _:
            dtype = random.choice(DTYPES)
            bits = {"F4": 4}.get(dtype, 8 * WIDTHS.get(dtype, 1))
            count = len(raw) * 8 // bits
            shape = [shape[0], count // shape[0]] if shape and count % shape[0] == 0 else [count]
    tensors[key] = dtype, shape, raw
    return sewn(tensors, data)


def values(data: bytes, random: Random) -> bytes:
    """Give a tensor of a safetensors file numbers that are none, or too large, or zero."""
    tensors = torn(data)
    key = random.choice(sorted(tensors))
    dtype, shape, raw = tensors[key]
    code = {8: "<d", 4: "<f", 2: "<e"}.get(WIDTHS.get(dtype, 1))
    if code is None:
        return flip(data, random)
    number = random.choice((float("nan"), float("inf"), 0.0, -0.0, 3e38, 1e-45, 65504.0))
    try:
        one = struct.pack(code, number)
    except OverflowError:
        one = struct.pack(code, 65504.0)
    everywhere = random.random() < 0.5
    raw = one * (len(raw) // len(one)) if everywhere else one + raw[len(one) :]
    tensors[key] = dtype, shape, raw
    return sewn(tensors, data)


def torn(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Return the tensors of a safetensors file: type, shape and bytes."""
    header, body = unpacked(data)
    header.pop("__metadata__", None)
    found = {}
    for key, each in header.items():
        start, stop = each["data_offsets"]
        found[key] = each["dtype"], each["shape"], body[start:stop]
    return found


def sewn(tensors: dict[str, tuple[str, list[int], bytes]], like: bytes) -> bytes:
    """Return a safetensors file of these tensors."""
    header, body = {}, b""
    if stated := unpacked(like)[0].get("__metadata__"):
        header["__metadata__"] = stated
    for key, (dtype, shape, raw) in tensors.items():
        offsets = [len(body), len(body) + len(raw)]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        body += raw
    return packed(header, body)


def archive(data: bytes, random: Random) -> bytes:
    """Change what a zip says of its entries, and leave their bytes alone."""
    marks = [at for mark in (b"PK\3\4", b"PK\1\2", b"PK\5\6") for at in found(data, mark)]
    at = random.choice(marks)
    made = bytearray(data)
    offset = random.choice((4, 6, 8, 10, 12, 16, 18, 20, 22, 24, 26, 28, 30, 32, 38, 42))
    code = random.choice(("<H", "<I"))
    value = random.choice((*INTEGERS, len(data), at)) % (1 << (8 * struct.calcsize(code)))
    struct.pack_into(code, made, at + offset, value)
    return bytes(made)


def inside(data: bytes, random: Random) -> bytes:
    """Change an entry of a zip, its name, or how it is stored; the zip stays sound."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        entries = [(each.filename, old.read(each)) for each in old.infolist()]
    at = random.randrange(len(entries))
    name, content = entries[at]
    method = zipfile.ZIP_STORED
    match random.randrange(6):
        case 0:
            del entries[at]
        case 1:
            entries.append(entries[at])
        case 2:
            entries[at] = word(name, random), content
        case 3:
            method = zipfile.ZIP_DEFLATED
            entries[at] = name, content + bytes(random.choice((0, 10**6)))
        case _:
            entries[at] = name, random.choice((flip, fields, spoken))(content, random)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each, its in entries:
            new.writestr(each, its)
    return buffer.getvalue()


def spoken(data: bytes, random: Random) -> bytes:
    """Change a number that is written in letters, as arrays' headers have them."""
    at = [i for i, byte in enumerate(data[:200]) if chr(byte) in "0123456789(),'{}"]
    made = bytearray(data)
    place = random.choice(at)
    made[place : place + 1] = random.choice((b"9" * 25, b"-1", b"", b"(", b"0", b"None", b"'"))
    return bytes(made)


def found(data: bytes, mark: bytes) -> list[int]:
    """Return where a mark is."""
    places, at = [], data.find(mark)
    while at >= 0:
        places.append(at)
        at = data.find(mark, at + 1)
    return places
