"""`shrink --orthogonal-to`: an adapter without the inputs that another reads, by dense SVDs."""

import json
import pickle

import pytest
import torch
from conftest import FIXTURES
from reference import deltas
from safetensors.torch import load_file, save_file

from lora_tools import read
from lora_tools.cli import cli
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.linalg.projection import Projection
from lora_tools.rewrite import keep
from lora_tools.rewrite.projected import projected
from lora_tools.rewrite.source import source
from lora_tools.rewrite.tasks import rewrite

PLAIN, OTHER = FIXTURES / "minilm-plain", FIXTURES / "minilm-rslora"


def run(*arguments):
    """Run a command in this process; an error of ours is raised."""
    cli.main([str(word) for word in arguments], standalone_mode=False)


def reference(count=None):
    """Return what NP-LoRA makes of an adapter, from dense matrices: dW (I - V Vt)."""
    first, second = deltas(PLAIN), deltas(OTHER)
    found = {}
    for name, delta in first.items():
        if name in second:
            _, s, vt = torch.linalg.svd(second[name])
            v = vt[: min(int((s > 1e-6 * s[0]).sum()), count or len(s))]
            delta = delta - delta @ v.T @ v
        found[name] = delta
    return found


@pytest.mark.parametrize("count", [None, 2])
@pytest.mark.parametrize("policy", [(), ("--rank", "3")])
def test_an_adapter_is_made_orthogonal_to_another(count, policy, tmp_path, capsys):
    more = ("--directions", count) if count else ()
    run("shrink", PLAIN, tmp_path / "out", "--orthogonal-to", OTHER, *more, *policy, "--json")
    report = json.loads(capsys.readouterr().out)
    before, wanted, found = deltas(PLAIN), reference(count), deltas(tmp_path / "out")
    assert found.keys() == wanted.keys()
    lost = sum(float((wanted[n] - found[n]).square().sum()) for n in wanted)
    whole = sum(float(delta.square().sum()) for delta in wanted.values())
    assert report["totals"]["error"] == pytest.approx((lost / whole) ** 0.5, abs=1e-6)
    if not policy:
        assert report["totals"]["error"] < 1e-6
    assert report["orthogonal_to"] == str(OTHER)
    taken, total = 0.0, 0.0
    for name, share in report["projected_out"].items():
        key = f"base_model.model.{name}"
        gone = float((before[key] - wanted[key]).norm())
        assert share == pytest.approx(gone / float(before[key].norm()), abs=1e-6)
        taken, total = taken + gone**2, total + float(before[key].square().sum())
    assert report["projected_share"] == pytest.approx((taken / total) ** 0.5, abs=1e-6)
    assert report["projected_out"].keys() == {
        n.removeprefix("base_model.model.") for n in before.keys() & deltas(OTHER).keys()
    }
    if count is None and not policy:  # which is what it is for
        for name, other in deltas(OTHER).items():
            if name in found:
                cosines = found[name] @ other.T / found[name].norm() / other.norm()
                assert float(cosines.abs().max()) < 1e-6


def test_the_other_may_be_of_another_format(tmp_path, capsys):
    run("convert", OTHER, tmp_path / "other.safetensors", "--to", "kohya", "--quiet")
    run("shrink", PLAIN, tmp_path / "out", "--orthogonal-to", tmp_path / "other.safetensors")
    for name, delta in reference().items():
        torch.testing.assert_close(deltas(tmp_path / "out")[name], delta, rtol=0, atol=1e-6)
    shown = capsys.readouterr().out
    assert "of ‖ΔW‖ taken from" in shown
    assert "taken from encoder.layer." in shown


def test_an_adapter_without_itself_is_zero(tmp_path, capsys):
    run("shrink", PLAIN, tmp_path / "out", "--orthogonal-to", PLAIN)
    assert "100 % of ‖ΔW‖ taken from 12 modules" in capsys.readouterr().out
    assert not any(delta.any() for delta in deltas(tmp_path / "out").values())


def test_what_has_no_projection_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="DoRA"):
        run("shrink", PLAIN, tmp_path / "out", "--orthogonal-to", FIXTURES / "minilm-dora")
    tensors = load_file(PLAIN / "adapter_model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    renamed = {k.replace("encoder.layer", "somewhere.else"): t for k, t in tensors.items()}
    renamed = {k.replace("attention.self", "deep"): t for k, t in renamed.items()}
    save_file(renamed, other / "adapter_model.safetensors")
    config = json.loads((PLAIN / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="no module in common"):
        run("shrink", PLAIN, tmp_path / "out", "--orthogonal-to", other)
    assert not (tmp_path / "out").exists()


def test_a_job_of_a_projection_is_an_address():
    of = projected(source(read(PLAIN)), source(read(OTHER)), Projection(3))
    plan = keep(of)
    for change, job in zip(plan, plan.jobs, strict=True):
        data = pickle.dumps(job)
        assert len(data) < 4096
        assert (rewrite(pickle.loads(data)).update.a == change.update.a).all()
