"""What strangers wrote into configurations: a result or a `LoraToolsError`, whatever it is."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_tools import LoraToolsError, read
from lora_tools.base import base_of
from lora_tools.card import metadata, with_metadata
from lora_tools.merging import WeightedAdapter, plan
from lora_tools.model import open_model
from lora_tools.runtimes import judge, named, subject
from lora_tools.verbs.inspect import read_or_list
from lora_tools.verbs.inspect.inspection import Inspection
from lora_tools.verbs.push.package import Destination, draft

DEEP = "[" * 100_000 + "]" * 100_000
VALUES = {
    "null": "null",
    "empty text": '""',
    "text": '"x"',
    "no list": "[]",
    "no object": "{}",
    "negative": "-1",
    "zero": "0",
    "fraction": "0.5",
    "infinite": "1e400",
    "not a number": "NaN",
    "true": "true",
    "false": "false",
    "huge": "1" + "0" * 400,
    "more digits than Python prints": "1" + "0" * 5000,
    "deep": DEEP,
    "mixed list": '[1, "x", null, {}]',
    "list of lists": "[[1]]",
    "list of texts": '["q"]',
    "mapping": '{"q": 1}',
    "mapping of anything": '{"": null, "q": [], "(": "x", "v": {}}',
    "half a surrogate pair": '"\\ud800"',
    "a name of half a pair": '{"\\udfff": 1}',
    "not UTF-8": '"\udcff"',
    "an expression that never ends": '"(a|a)+(a|a)+$"',
    "a list of such": '["(.*.*.*.*)*x"]',
    "a mapping of such": '{"(a|aa)+(a|aa)*!": 4}',
    "no expression": '["(", "*"]',
    "an object twice": '{"q": 1, "q": 2}',
    "not closed": "{",
}

PEFT = {
    "alpha_pattern": {},
    "architectures": None,
    "auto_mapping": None,
    "base_model_name_or_path": "org/base",
    "bias": "none",
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "r": 2,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["q"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_rslora": False,
}
MLX = {
    "fine_tune_type": "lora",
    "lora_parameters": {"rank": 2, "scale": 10.0, "dropout": 0.0},
    "model": "org/base",
    "num_layers": 1,
    "rank_pattern": {},
}
TUNE = {"r": 2, "lora_alpha": 8, "base_model_name_or_path": "org/base", "target_modules": ["q"]}
DIFFUSERS = {
    f"transformer.{field}": value
    for field, value in {
        "r": 2,
        "lora_alpha": 8,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": False,
        "use_rslora": False,
        "target_modules": ["to_q"],
    }.items()
}
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "_class_name": None,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "quantization_config": None,
    "text_config": None,
    "tie_word_embeddings": False,
    "vocab_size": 8,
}
REPORT = {
    "command": "shrink",
    "policy": "rank 2",
    "source": "org/a",
    "arguments": "lora-tools shrink a b",
    "modules": [{"module": "model.layers.0.q", "norm": 1.0, "error": 0.1, "optimal_error": 0.1}],
    "totals": {"error": 0.1, "optimal_error": 0.1},
    "inputs": [{"path": "org/a", "file": "adapter_model.safetensors", "sha256": "00"}],
}
KOHYA = {"lora_tools.names": "{}", "ss_network_args": "{}", "ss_network_dim": "2"}

A, B = torch.ones(2, 4), torch.ones(4, 2)
TENSORS = {
    "peft": {
        f"base_model.model.model.layers.{between}0.q.lora_{x}.weight": t
        for between in ("", "a" * 36 + ".")
        for x, t in (("A", A), ("B", B))
    },
    "mlx": {"model.layers.0.q.lora_a": B, "model.layers.0.q.lora_b": A},
    "torchtune": {"layers.0.attn.q_proj.lora_a.weight": A, "layers.0.attn.q_proj.lora_b.weight": B},
    "diffusers": {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": A,
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": B,
    },
    "kohya": {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": A,
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": B,
        "lora_unet_double_blocks_0_img_attn_qkv.alpha": torch.tensor(2.0),
    },
}


def written(fields: dict, field: str, value: str) -> bytes:
    """Return an object as JSON with one field replaced, which may be no JSON at all."""
    others = ", ".join(
        f"{json.dumps(key)}: {json.dumps(other)}" for key, other in fields.items() if key != field
    )
    text = f"{{{others}{', ' if others else ''}{json.dumps(field)}: {value}}}"
    return text.encode("utf-8", "surrogateescape")


def attempt(run) -> None:
    try:
        run()
    except LoraToolsError as error:
        str(error).encode()


def use(folder: Path) -> None:
    """Ask everything of an adapter that its configuration has a part in."""
    attempt(lambda: [judge(subject(folder), executor).to_dict() for executor in named(["all"])])
    attempt(lambda: _inspected(folder))
    attempt(lambda: _rewritten(folder))


def _inspected(folder: Path) -> None:
    found = read_or_list(folder)
    document = found.to_dict() if not hasattr(found, "manifest") else Inspection(found).to_dict()
    json.dumps(document, ensure_ascii=False).encode()


def _rewritten(folder: Path) -> None:
    adapter = read(folder)
    manifest = adapter.written(adapter.manifest)
    json.dumps(manifest.config, ensure_ascii=False).encode()
    assert [adapter.module(name).name for name in adapter] == list(adapter)


def cases(fields: dict) -> Iterator:
    for field in fields:
        yield pytest.param(field, id=field)


def adapter_in(folder: Path, kind: str, header: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    name = {
        "mlx": "adapters.safetensors",
        "torchtune": "adapter_0.safetensors",
        "diffusers": "pytorch_lora_weights.safetensors",
    }.get(kind, "adapter_model.safetensors")
    tensors = {key: tensor.clone() for key, tensor in TENSORS[kind].items()}
    save_file(tensors, folder / name, header)
    return folder


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (kind, field)
        for kind, fields in (("peft", PEFT), ("mlx", MLX), ("torchtune", TUNE))
        for field in (*fields, *(("lora_parameters.scale",) if kind == "mlx" else ()))
    ],
)
def test_every_field_of_a_configuration_may_hold_anything(kind, field, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_tools.formats.expressions.SECONDS", 0.05)
    folder = adapter_in(tmp_path / "adapter", kind)
    fields = {"peft": PEFT, "mlx": MLX, "torchtune": TUNE}[kind]
    for value in VALUES.values():
        if field == "lora_parameters.scale":
            text = written(MLX, "lora_parameters", f'{{"rank": 2, "scale": {value}}}')
        else:
            text = written(fields, field, value)
        (folder / "adapter_config.json").write_bytes(text)
        use(folder)


@pytest.mark.parametrize("field", [*DIFFUSERS, "transformer."])
def test_every_field_of_a_header_may_hold_anything(field, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_tools.formats.expressions.SECONDS", 0.05)
    for value in VALUES.values():
        text = written(DIFFUSERS, field, value).decode("utf-8", "replace")
        use(adapter_in(tmp_path / "adapter", "diffusers", {"lora_adapter_metadata": text}))


@pytest.mark.parametrize("field", KOHYA)
def test_every_field_of_a_trainer_may_hold_anything(field, tmp_path):
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    for value in VALUES.values():
        for text in (value, f'{{"{stem}": {value}, "algo": {value}}}'):
            header = KOHYA | {field: text.encode("utf-8", "replace").decode()}
            use(adapter_in(tmp_path / "adapter", "kohya", header))


@pytest.mark.parametrize("field", MODEL)
def test_every_field_of_a_base_may_hold_anything(field, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_tools.formats.expressions.SECONDS", 0.05)
    folder = adapter_in(tmp_path / "adapter", "peft")
    (folder / "adapter_config.json").write_text(json.dumps(PEFT))
    tuned = adapter_in(tmp_path / "tuned", "torchtune")
    (tuned / "adapter_config.json").write_text(json.dumps(TUNE))
    base = tmp_path / "base"
    base.mkdir()
    weights = ("model.layers.0.q.weight", "model.embed_tokens.weight", "lm_head.weight")
    save_file({name: torch.ones(4, 4) for name in weights}, base / "model.safetensors")
    for value in VALUES.values():
        inner = f'{{"model_type": "llama", {json.dumps(field)}: {value}}}'
        wrong = [(field, value), ("text_config", inner), ("quantization_config", inner)]
        wrong += [("quantization_config", f'{{"quant_method": {value}, "weight_block_size": 1}}')]
        wrong += [("quantization_config", f'{{"weight_block_size": {value}}}')]
        for name, text in wrong if field == "model_type" else wrong[:2]:
            (base / "config.json").write_bytes(written(MODEL, name, text))
            attempt(lambda: _based(base, folder))
            attempt(lambda: read(tuned, base=open_model(base).config))


def _based(base: Path, folder: Path) -> None:
    model = open_model(base)
    attempt(lambda: (model.architecture, model.tied))
    attempt(lambda: base_of(model, "remedy"))
    plan(model, [WeightedAdapter(read(folder, strict=False, base=model.config))])


@pytest.mark.parametrize("field", ["weight_map", "metadata", "a.weight"])
def test_every_field_of_an_index_may_hold_anything(field, tmp_path):
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    fields = {"metadata": {"total_size": 16}, "weight_map": {"a.weight": "m.safetensors"}}
    index = tmp_path / "model.safetensors.index.json"
    for value in (*VALUES.values(), json.dumps("x" * 10_000), '"../\\u0000"', '"/"'):
        inner = "weight_map" if field == "a.weight" else field
        text = f'{{"a.weight": {value}}}' if field == "a.weight" else value
        index.write_bytes(written(fields, inner, text))
        attempt(lambda: open_model(index))


@pytest.mark.parametrize("field", [*REPORT, "module", "sha256", "inputs[0]"])
def test_every_field_of_a_report_may_hold_anything(field, tmp_path):
    folder = adapter_in(tmp_path / "adapter", "peft")
    (folder / "adapter_config.json").write_text(json.dumps(PEFT))
    inner = {
        "module": ("modules", '[{{"module": {0}, "error": {0}, "norm": {0}}}]'),
        "sha256": ("inputs", '[{{"path": "a", "file": "b", "sha256": {0}}}]'),
        "inputs[0]": ("inputs", "[{0}]"),
    }
    choice = Destination("alice/x", picture=False)
    for number, value in enumerate(VALUES.values()):
        name, form = inner.get(field, (field, "{0}"))
        (folder / "lora_tools_report.json").write_bytes(written(REPORT, name, form.format(value)))
        place = tmp_path / f"place{number}"
        place.mkdir()
        attempt(lambda place=place: draft(folder, choice, place).package("alice/x", "# x\n", {}))
        shutil.rmtree(place)


FRONTS = (
    "tags: 5",
    "tags: lora",
    "tags: [1, [2]]",
    "base_model: {a: b}",
    "base_model: &a [*a]",
    "a: !!python/object:os.system {}",
    "a: 2020-13-45",
    "a: !!timestamp x",
    "a: !!bool x",
    'a: !!int ""',
    "a: !!float x",
    "{a: 1, a: 2}",
    "? [a]\n: b",
    "- a",
    "a: " + "[" * 100_000,
    "a: " + "[" * 400 + "]" * 400,
    "a: 1" + "0" * 5_000,
    'a: "\\ud800"',
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "\n".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "\x00",
    "\t- x: [",
)


@pytest.mark.parametrize("front", FRONTS, ids=range(len(FRONTS)))
def test_front_matter_may_hold_anything(front, tmp_path):
    folder = adapter_in(tmp_path / "adapter", "peft")
    (folder / "adapter_config.json").write_text(json.dumps(PEFT))
    text = f"---\n{front}\n---\n# x\n"
    (tmp_path / "place").mkdir()
    choice = Destination("alice/x", picture=False)
    attempt(lambda: metadata(text))
    attempt(lambda: with_metadata(text, {"tags": ["lora"]}))
    attempt(lambda: draft(folder, choice, tmp_path / "place").package("alice/x", text, {}))


def test_names_that_occur_twice_are_refused_by_name(tmp_path):
    folder = adapter_in(tmp_path / "adapter", "peft")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "r": 4}')
    with pytest.raises(LoraToolsError, match=r"adapter_config\.json: .*names occur twice: r"):
        read(folder)


@pytest.mark.parametrize(
    ("field", "value"), [("r", 10**400), ("r", True), ("lora_alpha", "8"), ("use_dora", "false")]
)
def test_a_refusal_names_file_field_value_and_what_is_expected(field, value, tmp_path):
    folder = adapter_in(tmp_path / "adapter", "peft")
    (folder / "adapter_config.json").write_text(json.dumps(PEFT | {field: value}))
    shown = repr(value)[:10]
    with pytest.raises(LoraToolsError, match=rf"adapter_config\.json: {field} is {shown}.*, not "):
        read(folder)
