"""A merge with a selection, as the command does it, against dense sums in float64."""

import json
import pickle

import dense
import pytest
import torch
from bases import BASES
from conftest import FIXTURES
from reference import deltas
from safetensors.torch import load_file, save_file

from lora_tools import open_model, read
from lora_tools.cli import cli
from lora_tools.errors import PolicyError
from lora_tools.merging import MergeOptions, WeightedAdapter, plan
from lora_tools.selection import ModuleWeight, Selection

PLAIN, RSLORA, DORA = (FIXTURES / f"minilm-{name}" for name in ("plain", "rslora", "dora"))


def run(*arguments):
    """Run a command in this process; an error of ours is raised."""
    return cli.main([str(word) for word in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    state = dense.state_of(BASES["minilm-plain"]())
    return dense.save_base(tmp_path_factory.mktemp("models") / "base", state, torch.float32)


def weights_of(folder):
    """Return the weights of a model under the names that the adapters have for its modules."""
    tensors = dense.load_model(folder)
    return {f"base_model.model.{key.removesuffix('.weight')}": t for key, t in tensors.items()}


def check(base, out, wanted):
    """Compare every weight with the base's plus what is wanted there."""
    before, after = weights_of(base), weights_of(out)
    assert wanted.keys() <= before.keys()
    for name, weight in before.items():
        if name in wanted:
            total = weight.double() + wanted[name]
            torch.testing.assert_close(after[name].double(), total, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(after[name], weight), name


def test_modules_are_removed_and_listed_with_their_share(base, tmp_path, capsys):
    more = ("--drop-modules", "query", "--only", "layer.[0-3].*")
    run("merge", base, PLAIN, tmp_path / "out", *more, "--json")
    report = json.loads(capsys.readouterr().out)
    before = deltas(PLAIN)
    kept = {n: d for n, d in before.items() if "value" in n and int(n.split(".")[4]) < 4}
    check(base, tmp_path / "out", kept)
    whole = sum(float(delta.square().sum()) for delta in before.values()) ** 0.5
    assert len(report["removed"]) + len(kept) == len(before)
    for name, share in report["removed"].items():
        wanted = float(before[f"base_model.model.{name}"].norm()) / whole
        assert share == pytest.approx(wanted, rel=1e-5)
    run("merge", base, PLAIN, tmp_path / "x", *more, "--dry-run")
    assert "removed: encoder.layer.[0..5].attention.self.query" in capsys.readouterr().out
    assert run("verify", tmp_path / "out", base, PLAIN, *more, "--quiet") == 0
    assert run("verify", tmp_path / "out", base, PLAIN, "--quiet") == 1


def test_modules_of_one_adapter_are_weighed(base, tmp_path):
    more = ("--module-weight", "query=0.5", "--module-weight", "2:query=-2", "--weight", "1")
    run("merge", base, PLAIN, RSLORA, tmp_path / "out", *more, "--weight", "0.5", "--quiet")
    first, second = deltas(PLAIN), deltas(RSLORA)
    wanted = {
        name: (0.5 if "query" in name else 1) * first.get(name, 0)
        + 0.5 * (-2 if "query" in name else 1) * second.get(name, 0)
        for name in first | second
    }
    check(base, tmp_path / "out", wanted)


def test_a_module_of_weight_0_goes_for_its_adapter_alone(base, tmp_path, capsys):
    more = ("--module-weight", "2:*=0")
    run("merge", base, PLAIN, RSLORA, tmp_path / "out", *more, "--json")
    check(base, tmp_path / "out", deltas(PLAIN))
    removed = json.loads(capsys.readouterr().out)["removed"]
    assert len(removed) == len(deltas(RSLORA))
    assert all(name.startswith(f"{RSLORA}: ") for name in removed)


def test_the_text_encoder_goes(tmp_path):
    """A UNet has no place for the encoders' modules, which is an error while they are there."""
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = ("lora_unet_" + name.replace(".", "_"), "lora_te_text_model_encoder_layers_0_mlp_fc1")
    tensors = {}
    for key in flat:
        tensors |= {
            f"{key}.lora_down.weight": torch.randn(2, 640),
            f"{key}.lora_up.weight": torch.randn(640, 2),
            f"{key}.alpha": torch.tensor(2.0),
        }
    save_file(tensors, tmp_path / "x.safetensors")
    save_file({f"{name}.weight": torch.zeros(640, 640)}, tmp_path / "base.safetensors")
    words = ("merge", tmp_path / "base.safetensors", tmp_path / "x.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="unmatched"):
        run(*words, "--quiet")
    run(*words, "--text-encoder", "drop", "--quiet")
    (found,) = (load_file(p) for p in (tmp_path / "out").glob("*.safetensors"))
    wanted = tensors[f"{flat[0]}.lora_up.weight"] @ tensors[f"{flat[0]}.lora_down.weight"]
    torch.testing.assert_close(found[f"{name}.weight"], wanted)


def test_a_weight_of_dora_is_that_of_its_direction(base, tmp_path):
    """As PEFT's own scale of an adapter: the merged weight is normalised after the sum."""
    for words, out in ((("--weight", "0.5"), "a"), (("--module-weight", "*=0.5"), "b")):
        run("merge", base, DORA, tmp_path / out, *words, "--quiet")
    first, second = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(NotImplementedError, match="DoRA cannot be taken out"):
        run("merge", base, DORA, tmp_path / "c", "--module-weight", "query=-1", "--quiet")


@pytest.mark.parametrize(
    "selection",
    [
        Selection(only=("dense",)),
        Selection(drop=("dense",)),
        Selection(weights=(ModuleWeight("dense", 2.0),)),
        Selection(weights=(ModuleWeight("query", 2.0, 3),)),
        Selection(text_encoder=False),
    ],
)
def test_what_matches_nothing_is_refused(base, selection):
    weighted = [WeightedAdapter(read(path)) for path in (PLAIN, RSLORA)]
    with pytest.raises(PolicyError):
        plan(open_model(base), weighted, MergeOptions(selection=selection))


def test_a_plan_is_an_address(base):
    selection = Selection(drop=("query",), weights=(ModuleWeight("value", 2.0, 1),))
    found = plan(
        open_model(base), [WeightedAdapter(read(PLAIN))], MergeOptions(selection=selection)
    )
    data = pickle.dumps(found)
    assert len(data) < 4096
    again = pickle.loads(data)
    assert {k: dict(e.modules) for k, e in again.entries.items()} == {
        k: dict(e.modules) for k, e in found.entries.items()
    }
