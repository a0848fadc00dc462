"""Adapters and bases in two dialects of one family, matched by its table."""

import json
from pathlib import Path

import dense
import pytest
import torch
from safetensors.torch import save_file

from lora_tools import base as bases
from lora_tools import read
from lora_tools.architectures import families
from lora_tools.architectures.detection import Hints
from lora_tools.architectures.family import MODEL, ContainerPrefix, Family, Tie
from lora_tools.architectures.index import Candidate, reading
from lora_tools.architectures.layout import Interleaved
from lora_tools.architectures.tables import being, one, rows
from lora_tools.errors import FormatError
from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Module
from lora_tools.formats.sites import Embedding, Linear
from lora_tools.matching import tables
from lora_tools.matching.tables import _contiguous, tabled
from lora_tools.matching.ties import tie_of
from lora_tools.model import open_model
from lora_tools.verbs.extract.pairs import match as pair_models
from lora_tools.verbs.merge import WeightedAdapter, merge, plan

R, H = 2, 8

FINE = {"to_{q,k,v}": "to_{q,k,v}", "enter": "enter", "out": "out"}
MADE_UP = Family(
    "Made-up",
    hub="fine",
    containers={**MODEL, "wrapped": ContainerPrefix("wrapped.", ("fused",))},
    dialects={
        "fused": {
            **being("embedding", "lookup"),
            "trunk.#.": (
                "branch.#.",
                {
                    "qkv": rows("to_{q,k,v}"),
                    "turned": one("enter", transposed=True),
                    "paired": one("out", order=Interleaved("heads")),
                },
            ),
        }
    },
    modules={**being("head", "scores"), "branch.#.": ("branch.#.", FINE)},
    types=("made_up",),
    tie=Tie("lookup", "scores"),
)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, MADE_UP))


def adapter(folder: Path, shapes: dict[str, tuple[int, int]]) -> WeightedAdapter:
    folder.mkdir()
    tensors = {}
    for name, (out, inp) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(R, inp)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, R)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.rpartition(".")[2] for name in shapes})
    config = {"peft_type": "LORA", "r": R, "lora_alpha": R, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return WeightedAdapter(read(folder))


def delta(strong: WeightedAdapter, name: str) -> torch.Tensor:
    tensors = dense.load_model(strong.adapter.path)
    a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    return b @ a


FUSED = {"qkv": (3 * H, H), "turned": (H, 12), "paired": (H, H)}
"""As the coarse dialect stores them."""


def base_of(folder: Path, prefix: str = "", layers: int = 2) -> Path:
    state = {
        f"{prefix}trunk.{i}.{name}.weight": torch.randn(shape, dtype=torch.float64)
        for i in range(layers)
        for name, shape in FUSED.items()
    }
    config = {"model_type": "made_up", "num_attention_heads": 2}
    return dense.save_base(folder, state, torch.float64, **config)


@pytest.mark.parametrize("prefix", ["", "wrapped."])
def test_a_family_of_nobodys_merges_from_one_dialect_into_the_other(prefix, tmp_path):
    base = base_of(tmp_path / "base", prefix)
    shapes = {"to_q": (H, H), "to_v": (H, H), "enter": (12, H), "out": (H, H)}
    named = {f"branch.{i}.{name}": shape for i in range(2) for name, shape in shapes.items()}
    strong = adapter(tmp_path / "adapter", named)
    recipe = plan(open_model(base), [strong])
    report = merge(recipe).write(tmp_path / "out")
    before, after = dense.load_model(base), dense.load_model(tmp_path / "out")
    for i in range(2):
        there = f"{prefix}trunk.{i}."
        qkv = torch.zeros(3 * H, H, dtype=torch.float64)
        qkv[:H], qkv[2 * H :] = (delta(strong, f"branch.{i}.to_{x}") for x in "qv")
        # Each head's four rows turn in pairs: 0 2 1 3, 4 6 5 7.
        paired = delta(strong, f"branch.{i}.out")[[0, 2, 1, 3, 4, 6, 5, 7]]
        turned = delta(strong, f"branch.{i}.enter").T
        for name, update in (("qkv", qkv), ("paired", paired), ("turned", turned)):
            key = f"{there}{name}.weight"
            torch.testing.assert_close(after[key] - before[key], update)
    prefixes = report.to_dict()["prefixes"]
    assert {(each["from"], each["to"]) for each in prefixes} == {("", prefix)}
    assert {each["family"] for each in prefixes} == {"Made-up"}


def test_and_back_from_fused_to_split(tmp_path):
    state = {f"branch.0.to_{x}.weight": torch.zeros(H, H, dtype=torch.float64) for x in "qkv"} | {
        "branch.0.out.weight": torch.zeros(H, H, dtype=torch.float64)
    }
    base = dense.save_base(
        tmp_path / "base", state, torch.float64, model_type="made_up", num_attention_heads=2
    )
    strong = adapter(tmp_path / "adapter", {"trunk.0.qkv": (3 * H, H), "trunk.0.paired": (H, H)})
    merge(plan(open_model(base), [strong])).write(tmp_path / "out")
    after = dense.load_model(tmp_path / "out")
    whole = delta(strong, "trunk.0.qkv")
    for number, x in enumerate("qkv"):
        part = whole[number * H : (number + 1) * H]
        torch.testing.assert_close(after[f"branch.0.to_{x}.weight"], part)
    order = [0, 2, 1, 3, 4, 6, 5, 7]
    paired = delta(strong, "trunk.0.paired")
    torch.testing.assert_close(after["branch.0.out.weight"][order], paired)


def test_a_layer_that_the_base_lacks_is_unmatched_in_either_dialect(tmp_path):
    base = open_model(base_of(tmp_path / "base", layers=1))
    for number, name in enumerate(("branch.31.to_q", "trunk.31.paired")):
        strong = adapter(tmp_path / str(number), {name: (H, H)})
        with pytest.raises(FormatError) as caught:
            plan(base, [strong])
        stated = str(caught.value) + "".join(caught.value.__notes__)
        assert f"{name}: no such weight" in stated
        assert "trunk.0.qkv.weight" in stated  # the base's side


def test_two_places_of_one_family_are_refused_with_both(tmp_path):
    state = {f"{place}trunk.0.qkv.weight": torch.zeros(3 * H, H) for place in ("", "wrapped.")}
    base = open_model(dense.save_base(tmp_path / "base", state, torch.float32))
    strong = adapter(tmp_path / "adapter", {"branch.0.to_q": (H, H)})
    with pytest.raises(FormatError) as caught:
        plan(base, [strong])
    assert "several places: the top and wrapped." in str(caught.value) or (
        "several places: wrapped. and the top" in str(caught.value)
    )


def test_a_row_by_row_order_is_one_piece_of_the_weight():
    ((start, own),) = _contiguous((range(4),), (range(0, 4, 2), range(1, 4, 2)))
    assert start == 0
    assert [row for run in own for row in run] == [0, 2, 1, 3]
    apart = [*_contiguous((range(4),), (range(2, 4), range(6, 8)))]
    assert apart == [(2, (range(2),)), (6, (range(2, 4),))]


def test_a_family_of_nobodys_is_extracted_by_its_roles(tmp_path):
    """The table says that a layer is stored as (in, out), and what is looked up."""
    state = {
        "lookup.weight": torch.randn(20, H),
        "trunk.0.turned.weight": torch.randn(H, 12),
        "trunk.0.qkv.weight": torch.randn(3 * H, H),
    }
    tuned = {
        key: w + torch.randn(len(w), 1) @ torch.randn(1, w.shape[1]) for key, w in state.items()
    }
    config = {"model_type": "made_up"}
    folders = [
        dense.save_base(tmp_path / name, weights, torch.float32, **config)
        for name, weights in (("base", state), ("tuned", tuned))
    ]
    pairs = pair_models(*(bases.base_of(open_model(folder), "") for folder in folders)).both
    places = {pair.name: pair.place for pair in pairs}
    assert places["lookup.weight"].site == Embedding()
    assert places["trunk.0.turned.weight"].site == Linear(transposed=True)
    assert places["trunk.0.qkv.weight"].site == Linear()


def test_the_tie_of_a_family_is_its_own(tmp_path):
    state = {"lookup.weight": torch.zeros(20, H), "trunk.0.qkv.weight": torch.zeros(3 * H, H)}
    for number, (config, tie) in enumerate(
        (
            ({"tie_word_embeddings": True}, ("lookup.weight", "scores.weight")),
            ({"tie_word_embeddings": False}, None),
        )
    ):
        known = {"model_type": "made_up", "architectures": ["MadeUpForCausalLM"], **config}
        base = dense.save_base(tmp_path / str(number), state, torch.float32, **known)
        assert tie_of(open_model(base)) == tie


def test_a_bias_moves_as_the_rows_of_its_weight(tmp_path):
    state = {"trunk.0.paired.weight": torch.zeros(H, H), "trunk.0.paired.bias": torch.zeros(H)}
    config = {"model_type": "made_up", "num_attention_heads": 2}
    base = dense.save_base(tmp_path / "base", state, torch.float64, **config)
    folder = adapter(tmp_path / "adapter", {"branch.0.out": (H, H)}).adapter.path
    file, bias = folder / "adapter_model.safetensors", torch.arange(8.0)
    save_file(dense.load_model(folder) | {"base_model.model.branch.0.out.lora_B.bias": bias}, file)
    known = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(known | {"lora_bias": True}))
    merge(plan(open_model(base), [WeightedAdapter(read(folder))])).write(tmp_path / "out")
    after = dense.load_model(tmp_path / "out")["trunk.0.paired.bias"]
    assert after.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("kind", ["llama", ""])
def test_a_module_is_looked_at_once_however_many_families_it_may_be_of(monkeypatch, kind):
    """Llama's names are those of eight families, which read them alike: one of them is asked."""
    counts = []
    fine = tables.fine
    monkeypatch.setattr(tables, "fine", lambda *given: counts.append(given) or fine(*given))
    shapes = {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "mlp.gate_proj": (12, 8)}
    looked = []
    for layers in (2, 4):
        names = {
            f"layers.{i}.{name}": shape for i in range(layers) for name, shape in shapes.items()
        }
        modules = [
            Module(name, Linear(), *shape, 1, 1.0, False, {}, "", name)
            for name, shape in names.items()
        ]
        specs = {f"model.{name}.weight": Spec("F32", shape) for name, shape in names.items()}
        counts.clear()
        found = tabled(modules, specs, {}, Hints(types=(kind,)))
        assert found.sites.keys() == names.keys()
        looked.append(len(counts))
    assert looked == [6, 12]
    here = Candidate(families.family("Llama"), "bare")
    assert reading(here, names) == reading(here._replace(family=families.family("Qwen2")), names)
    assert reading(here, names) != reading(here._replace(dialect="meta"), names)
