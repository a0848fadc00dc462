"""Adapters of twice the rank, which peft makes of those whose initialisation changed the base."""

import math
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lora_tools.adapter import read, write
from lora_tools.errors import UnsupportedError
from lora_tools.linalg.rank import Fixed, MaxError
from lora_tools.verbs.inspect import inspect
from lora_tools.verbs.shrink import shrink

R = 4


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(24, 32, bias=False)
        self.v = nn.Linear(24, 16, bias=False)


def converted(
    tmp_path: Path, start: str, *, rslora: bool = False, only_b: bool = False, step: float = 1e-2
) -> tuple[Path, dict[str, Tensor]]:
    """Train a little from an initialisation, save it as peft converts it; return what it added."""
    base = Model()
    before = {name: value.double().clone() for name, value in base.state_dict().items()}
    config = LoraConfig(
        r=R, lora_alpha=6, target_modules=["q", "v"], init_lora_weights=start, use_rslora=rslora
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, config)
        config.init_lora_weights = True
        model.save_pretrained(tmp_path / "start")
        config.init_lora_weights = start
        for name, value in model.named_parameters():
            if "lora_B" in name or ("lora_A" in name and not only_b):
                value.data += step * value.std() * torch.randn_like(value)
        initial = str(tmp_path / "start")
        model.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=initial)
        merged = model.double().merge_and_unload().state_dict()
    return tmp_path / "out", {
        name.removesuffix(".weight"): merged[name] - weight for name, weight in before.items()
    }


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_what_peft_converts_is_read_as_what_was_added(tmp_path, start, rslora):
    folder, added = converted(tmp_path, start, rslora=rslora)
    adapter = read(folder)
    for name, delta in added.items():
        assert adapter.module(name).rank == 2 * R
        ours = torch.as_tensor(adapter[name].dense("float64"))
        # peft rounded the base's residual to float32, and the factors are 100 times the update.
        torch.testing.assert_close(ours, delta, rtol=0, atol=3e-5 * float(delta.abs().max()))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_shrinking_it_is_right_though_its_halves_cancel(tmp_path, start):
    adapter = read(converted(tmp_path, start, step=1e-4)[0])
    shrunk = shrink(adapter, Fixed(R))
    report = shrunk.report("rank")
    (tmp_path / "small").mkdir()
    write(tmp_path / "small", shrunk.manifest, report.watch(shrunk), like=adapter)
    small = read(tmp_path / "small")
    for row in report.rows:
        dense = torch.as_tensor(adapter[row.module].dense("float64"))
        s = torch.linalg.svdvals(dense)
        assert row.norm == pytest.approx(float(s.norm()), rel=1e-9)
        best = float(s[R:].norm() / s.norm())
        assert row.optimal_error == pytest.approx(best, rel=1e-6)
        found = torch.as_tensor(small[row.module].dense("float64"))
        error = float((dense - found).norm() / dense.norm())
        assert row.error == pytest.approx(error, rel=1e-4)
        assert error == pytest.approx(best, rel=1e-3)


def test_a_rank_that_is_not_needed_goes_without_loss(tmp_path):
    folder, added = converted(tmp_path, "pissa", only_b=True)
    rows = [change.row for change in shrink(read(folder), MaxError(1e-6))]
    assert [row.rank_after for row in rows] == [R, R]
    assert math.hypot(*(row.error * row.norm for row in rows)) <= 1e-6 * math.hypot(
        *(float(delta.norm()) for delta in added.values())
    )


def test_inspect_says_that_the_rank_was_doubled(tmp_path):
    adapter = read(converted(tmp_path, "pissa")[0])
    (note,) = inspect(adapter, spectrum=True).to_dict()["notes"]
    assert note.startswith("The rank was doubled")
    assert "shrink --max-error" in note


def test_inspect_says_nothing_of_the_sort_of_others(adapter_path):
    notes = inspect(read(adapter_path), spectrum=True).to_dict()["notes"]
    assert not [note for note in notes if "doubled" in note]


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_peft_has_not_converted_is_refused_with_both_ways_out(tmp_path, start):
    config = LoraConfig(r=R, target_modules=["q", "v"], init_lora_weights=start)
    get_peft_model(Model(), config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=f"init_lora_weights is '{start}'") as caught:
        read(tmp_path)
    (note,) = caught.value.__notes__
    assert "path_initial_model_for_weight_conversion" in note
    assert "set init_lora_weights to true" in note


def test_with_the_altered_base_it_is_a_plain_adapter(tmp_path):
    config = LoraConfig(r=R, lora_alpha=6, target_modules=["q", "v"], init_lora_weights="pissa")
    base = Model()
    model = get_peft_model(base, config)
    residual = {
        name: getattr(model.base_model.model, name).base_layer.weight.double() for name in "qv"
    }
    config.init_lora_weights = True  # the way out that the hint names
    model.save_pretrained(tmp_path)
    merged = model.double().merge_and_unload().state_dict()
    adapter = read(tmp_path)
    for name in adapter:
        ours = torch.as_tensor(adapter[name].dense("float64"))
        torch.testing.assert_close(residual[name] + ours, merged[f"{name}.weight"])
