"""AdaLoRA: what the real peft computes with it, and with the LoRA that is written for it."""

import json
import warnings

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_tools.adapter import read, write
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.peft import Peft
from lora_tools.formats.registry import PEFT, detected
from lora_tools.linalg.rank import Fixed
from lora_tools.runtimes import Verdict, judge, named, subject
from lora_tools.verbs.convert import convert
from lora_tools.verbs.inspect import inspect
from lora_tools.verbs.shrink import shrink

FILE = "adapter_model.safetensors"
MASKS = {"layers.0.q": [True, False, True, True], "layers.1.v": [False] * 4}
"""What training left: three of four ranks, and none."""


class Block(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.q = Conv1D(7, 5) if transposed else nn.Linear(5, 7)
        self.v = Conv1D(3, 5) if transposed else nn.Linear(5, 3)


class Model(nn.Module):
    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(transposed) for _ in range(2))
        self.head = nn.Linear(7, 2)


def saved(tmp_path, *, masks=MASKS, transposed=False, alpha=6, **fields):
    """Save what AdaLoRA leaves of a model, as peft does; return the folder and the base."""
    base = Model(transposed)
    start = {key: value.clone() for key, value in base.state_dict().items()}
    config = AdaLoraConfig(
        init_r=4, lora_alpha=alpha, target_modules=["q", "v"], total_step=10, **fields
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, config)
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.data = torch.randn(value.shape)
        named = {f"{name}.lora_E.default": mask for name, mask in masks.items()}
        config.rank_pattern = named or None
        model.save_pretrained(tmp_path / "adalora")
    return tmp_path / "adalora", start


def loaded(folder, start, *, transposed=False):
    """Return peft's own update of each module, in float64, and what it complained of."""
    base = Model(transposed)
    base.load_state_dict(start)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(base, folder).double()
    found = {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default").detach()
        for name, layer in model.named_modules()
        if hasattr(layer, "get_delta_weight") and "default" in layer.lora_A
    }
    return found, [str(each.message) for each in seen if "adapter keys" in str(each.message)]


def written(source, out, plan):
    out.mkdir()
    outcome = plan.report("convert")
    write(out, plan.manifest, outcome.watch(plan), like=source, format=plan.source.format)
    return outcome


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("alpha", [6, -1])
def test_an_update_is_that_of_peft(tmp_path, transposed, alpha):
    folder, start = saved(tmp_path, transposed=transposed, alpha=alpha, fan_in_fan_out=transposed)
    wanted, _ = loaded(folder, start, transposed=transposed)
    adapter = read(folder)
    assert wanted.keys() - set(adapter) == {"layers.1.v"}
    assert not wanted.pop("layers.1.v").any()
    assert {name: adapter.module(name).rank for name in wanted} == {
        "layers.0.q": 3,
        "layers.0.v": 4,
        "layers.1.q": 4,
    }
    for name, delta in wanted.items():
        assert adapter.module(name).shape == tuple(delta.shape)
        ours = torch.as_tensor(adapter[name].dense("float64"))
        # peft holds its divisor in float32.
        torch.testing.assert_close(ours.T if transposed else ours, delta, rtol=2e-7, atol=0)


def test_lora_is_written_that_peft_computes_the_same_with(tmp_path):
    folder, start = saved(tmp_path, modules_to_save=["head"])
    wanted, _ = loaded(folder, start)
    wanted.pop("layers.1.v")
    adapter = read(folder)
    outcome = written(adapter, tmp_path / "lora", convert(adapter, PEFT))
    assert {row.outcome for row in outcome.rows} == {"refactored"}
    found, complaints = loaded(tmp_path / "lora", start)
    assert not complaints
    assert found.keys() == wanted.keys()
    for name, delta in found.items():
        torch.testing.assert_close(delta, wanted[name], rtol=1e-5, atol=1e-6)
        ours = torch.as_tensor(adapter[name].dense("float64"))
        error = float((delta - ours).norm() / ours.norm())
        row = next(row for row in outcome.rows if row.module == name)
        assert row.error == pytest.approx(error, abs=2e-8)  # Gram matrices see no smaller ones
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert not {"init_r", "target_r", "total_step", "orth_reg_weight"} & config.keys()
    assert config["target_modules"] == ["layers.0.q", "layers.0.v", "layers.1.q"]
    before, after = load_file(folder / FILE), load_file(tmp_path / "lora" / FILE)
    head = [key for key in before if "head" in key]
    assert len(head) == 2
    assert all(torch.equal(before[key], after[key]) for key in head)


def test_shrink_writes_lora(tmp_path):
    folder, start = saved(tmp_path)
    source = read(folder)
    shrunk = shrink(source, Fixed(2))
    (tmp_path / "small").mkdir()
    report = shrunk.report("shrink", "rank 2")
    write(tmp_path / "small", shrunk.manifest, report.watch(shrunk), like=source)
    found, complaints = loaded(tmp_path / "small", start)
    assert not complaints
    for row in report.rows:
        dense = torch.as_tensor(source[row.module].dense("float64"))
        s = torch.linalg.svdvals(dense)
        best = float(s[2:].norm() / s.norm())
        assert row.optimal_error == pytest.approx(best, rel=1e-6)
        error = float((found[row.module] - dense).norm() / dense.norm())
        assert row.error == pytest.approx(error, rel=1e-6)


def test_inspect_says_what_it_is_and_what_was_left_nothing(tmp_path):
    document = inspect(read(saved(tmp_path)[0])).to_dict()
    assert document["variants"] == ["AdaLoRA"]
    assert document["problems"] == []
    assert "add nothing, and are not written: layers.1.v." in document["notes"][1]


def test_peft_is_said_to_load_it(tmp_path):
    judgement = judge(subject(saved(tmp_path)[0]), named(["peft"])[0])
    assert judgement.verdict is Verdict.LOADS


SPECS = {
    "base_model.model.q.lora_A": Spec("F32", (4, 5)),
    "base_model.model.q.lora_B": Spec("F32", (7, 4)),
    "base_model.model.q.lora_E": Spec("F32", (4, 1)),
}
CONFIG = {"peft_type": "ADALORA", "init_r": 4, "lora_alpha": 8, "target_modules": ["q"]}


def test_detection_and_names_of_a_dumped_state():
    dumped = {f"{key}.default": spec for key, spec in reversed(SPECS.items())}
    assert detected(dumped, CONFIG).name == "peft"
    (module,) = Peft().read(Contents(dumped, CONFIG)).modules
    assert (module.name, module.rank, module.scale) == ("q", 4, pytest.approx(8 / 4.00001))


@pytest.mark.parametrize(
    ("specs", "fields", "problem"),
    [
        ({"base_model.model.q.lora_A": Spec("F32", (3, 5))}, {}, "do not make rank 4"),
        ({"base_model.model.q.lora_E": Spec("F32", (1, 4))}, {}, "do not make rank 4"),
        ({"base_model.model.q.lora_E": Spec("I64", (4, 1))}, {}, "elements of type I64"),
        ({}, {"rank_pattern": {"q.lora_E": [True, False]}}, "do not make rank 1"),
        ({}, {"target_modules": ["v"]}, "q is not among the configuration's targets"),
        ({}, {"use_dora": True}, "AdaLoRA has no DoRA"),
        ({"base_model.model.q.lora_Z": Spec("F32", (1,))}, {}, "lora_Z is not understood"),
        ({"base_model.model.v.lora_A": Spec("F32", (4, 5))}, {}, "v has no lora_B"),
    ],
)
def test_contradictions_are_problems(specs, fields, problem):
    manifest = Peft().read(Contents(SPECS | specs, CONFIG | fields))
    assert [stated for stated in manifest.problems if problem in stated]
    assert manifest.specs.keys() >= specs.keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank_pattern": [1]}, "rank_pattern is"),
        ({"rank_pattern": {"q": 4}}, "is no mask of AdaLoRA"),
        ({"rank_pattern": {"q.lora_E": [1, 0]}}, "is no mask of AdaLoRA"),
        ({"init_r": 0}, "init_r is 0"),
        ({"init_r": "4"}, "init_r is '4'"),
    ],
)
def test_configurations_that_are_none_are_refused(fields, message):
    with pytest.raises(FormatError, match=message):
        Peft().read(Contents(SPECS, CONFIG | fields))


def test_variants_stay_refused():
    with pytest.raises(UnsupportedError, match="aLoRA"):
        Peft().read(Contents(SPECS, CONFIG | {"alora_invocation_tokens": [1]}))


def test_values_are_read_in_types_that_numpy_lacks(tmp_path):
    folder, _ = saved(tmp_path, masks={})
    tensors = {key: value.bfloat16() for key, value in load_file(folder / FILE).items()}
    save_file(tensors, folder / FILE)
    adapter = read(folder)
    key_prefix = "base_model.model.layers.0.q.lora_"
    b, e, a = (tensors[key_prefix + part].double() for part in "BEA")
    wanted = b @ (e * a) * 6 / 4.00001
    ours = torch.as_tensor(adapter["layers.0.q"].dense("float64"))
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
