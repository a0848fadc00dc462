"""Cases that once failed, and a few new ones: `make fuzz` runs tens of thousands."""

import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
from fuzz import cases
from fuzz.cases import BASES, COMMANDS, Case, make, run
from fuzz.mutations import packed
from fuzz.seeds import LAYERS, PEFT, factors, numbers, seeds
from safetensors.numpy import save

NAN, INFINITE = float("nan"), float("inf")
HUGE = struct.pack("<Q", 2**40)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # as in the processes of `make fuzz`


def zipped(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return buffer.getvalue()


def saved(value: object) -> bytes:
    buffer = BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def negative_offset() -> bytes:
    """Return an archive whose directory points before the file."""
    data = bytearray(seeds()["npz"].files["adapters.npz"])
    struct.pack_into("<I", data, data.index(b"PK\5\6") + 16, 2**31)
    return bytes(data)


def unlike(name: str) -> dict[str, bytes]:
    """Return an adapter whose modules have names that repeat no other's."""
    words = (
        str(number).translate(str.maketrans("0123456789", "abcdefghij")) for number in range(1000)
    )
    tensors = factors(tuple(map(name.format, words)), ".lora_A.weight", ".lora_B.weight")
    return {"adapter_model.safetensors": save(tensors), **CONFIG}


HEADER = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
CONFIG = {"adapter_config.json": json.dumps(PEFT).encode()}
PAST: dict[str, Callable[[], dict[str, bytes]]] = {
    "a gguf array of arrays without end": lambda: {
        "x.gguf": HEADER + struct.pack("<Q", 1) + b"a" + struct.pack("<II", 9, 9) + HUGE
    },
    "a gguf file of 24 bytes that claims everything": lambda: {
        "x.gguf": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60)
    },
    "an npz directory that points before the file": lambda: {"adapters.npz": negative_offset()},
    "an npz of a structured type": lambda: {
        "adapters.npz": zipped(
            {
                "a.npy": b"\x93NUMPY\1\0\x50\0"
                + b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}".ljust(80)
                + bytes(4)
            }
        )
    },
    "a pickle of a number repeated without end": lambda: {
        "adapter_model.bin": saved({f"{LAYERS[0]}.lora_A.weight": torch.ones(1).expand(2**40)}),
        **CONFIG,
    },
    "a pickle that inflates without end": lambda: {
        "adapter_model.bin": zipped(
            {"x/data.pkl": b"\x80\2}.", "x/data/0": bytes(70_000_000)}, zipfile.ZIP_DEFLATED
        ),
        **CONFIG,
    },
    "an index whose shards lie elsewhere": lambda: {
        "model.safetensors.index.json": b'{"weight_map": {"a": "../../x.safetensors"}}'
    },
    "factors of LoHa of three dimensions": lambda: {
        "x.safetensors": save(
            {
                f"lora_unet_down_blocks_0_attentions_0_proj_in.hada_w{end}": numbers(8, 8, 1)
                for end in ("1_a", "1_b", "2_a", "2_b")
            }
        )
    },
    "a magnitude that is one number": lambda: {
        "x.safetensors": save(
            {
                "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": numbers(4, 8),
                "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": numbers(8, 4),
                "lora_unet_down_blocks_0_attentions_0_proj_in.dora_scale": numbers(),
            }
        )
    },
    "an embedding that is one number": lambda: {
        "model.safetensors": save({"model.embed_tokens.weight": numbers()}),
        "config.json": b"{}",
    },
    "a tensor of 71 dimensions": lambda: {
        "x.safetensors": packed(
            {"lora_unet_x.diff": {"dtype": "F32", "shape": [1] * 71, "data_offsets": [0, 4]}},
            bytes(4),
        )
    },
    "metadata of half a surrogate pair": lambda: {
        "x.safetensors": packed({"__metadata__": {"a": "\ud800"}}, b"")
    },
    "a full-rank diff and a LoKr of one module": lambda: {
        "x.safetensors": save(
            {
                "lora_unet_down_blocks_0_attentions_0_proj_in.diff": numbers(2, 2),
                "lora_unet_down_blocks_0_attentions_0_proj_in.lokr_w1": numbers(2, 2),
                "lora_unet_down_blocks_0_attentions_0_proj_in.lokr_w2": numbers(4, 4),
            }
        )
    },
    "an alpha beyond measure": lambda: {
        "adapter_model.safetensors": seeds()["peft"].files["adapter_model.safetensors"],
        "adapter_config.json": json.dumps(PEFT | {"lora_alpha": 1e308}).encode(),
    },
    "a configuration of NaN and Infinity": lambda: {
        "adapter_model.safetensors": seeds()["peft"].files["adapter_model.safetensors"],
        "adapter_config.json": json.dumps(PEFT | {"x": [NAN], "y": -INFINITE}).encode(),
    },
    "a configuration of half a surrogate pair": lambda: {
        "adapter_model.safetensors": seeds()["peft"].files["adapter_model.safetensors"],
        "adapter_config.json": json.dumps(PEFT | {"x": "\ud800", "\udfff": 1}).encode(),
    },
    "a thousand modules whose ends are all alike": lambda: unlike("base_model.model.m.{}.q_proj"),
    "metadata that is null": lambda: {"x.safetensors": packed({"__metadata__": None}, b"")},
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "command",
    [
        "inspect {x} --for all",
        "inspect {x} --base {base} --jobs 1",
        "shrink {x} {out} --rank 2 --quiet",
        "shrink {x} {out} --dry-run --jobs 1",
        "convert {x} {out} --to mlx --quiet",
        "merge {x} {peer} {out} --allow-missing --jobs 1",
    ],
)
@pytest.mark.parametrize("what", PAST)
def test_what_once_failed(what, command, tmp_path):
    passes(Case(PAST[what](), command, None, "peft", "peft"), tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", range(100))
def test_new_cases(number, tmp_path):
    passes(make(2, number), tmp_path)


@pytest.mark.parametrize("kind", seeds())
def test_sound_seeds_are_sound(kind, tmp_path):
    """What is mutated is read to begin with: a fuzzer of refused files finds nothing."""
    is_base = kind.startswith(("base", "sharded"))
    for number, command in enumerate(("inspect {x} --json",) if not is_base else (BASES[2],)):
        place = tmp_path / str(number)
        place.mkdir()
        passes(Case(dict(seeds()[kind].files), command, None, "peft", "peft"), place)
        assert not is_base or (place / "out" / "config.json").exists()


def test_every_command_is_one(tmp_path):
    for number, command in enumerate((*COMMANDS, *BASES)):
        place = tmp_path / str(number)
        place.mkdir()
        passes(Case(dict(seeds()["peft"].files), command, None, "peft", "peft"), place)


def test_cases_are_the_same_in_every_run():
    assert [make(3, number) for number in range(20)] == [make(3, number) for number in range(20)]


def test_what_goes_on_without_end_is_interrupted():
    def forever() -> None:
        while True:
            pass

    with pytest.raises(cases.HangError), cases.limited(0.05):
        forever()


def test_what_is_written_elsewhere_is_noticed(tmp_path, monkeypatch):
    place = tmp_path / "case"
    monkeypatch.setattr(cases, "outcome", lambda words: (place / "here" / "x").touch())
    place.mkdir()
    failure = run(Case(dict(seeds()["peft"].files), "inspect {x}", None, "peft", "peft"), place)
    assert failure is not None
    assert failure.kind == "written elsewhere"


def passes(case: Case, place: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        failure = run(case, place, seconds=30)  # what hangs; here nothing is timed
    assert failure is None, f"{failure.kind} at {failure.where}\n{failure.detail}"
