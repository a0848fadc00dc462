"""Sums of full rank: DoRA of one base, and rules that see elements, streamed and certified."""

import json
import pickle
from math import sqrt

import dense
import numpy as np
import pytest
import torch
from bases import BASES
from conftest import FIXTURES
from papers import magnitude, ties
from reference import deltas, tail
from safetensors.torch import load_file, save_file

from lora_tools import open_model, read
from lora_tools.cli import cli
from lora_tools.errors import FormatError, PolicyError, UnsupportedError
from lora_tools.linalg import tiles
from lora_tools.rewrite.tasks import rewrite

DORA, PLAIN = FIXTURES / "minilm-dora", FIXTURES / "minilm-plain"
PREFIX = "base_model.model."


def run(*arguments):
    """Run a command in this process; an error of ours is raised."""
    cli.main([str(word) for word in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def state():
    return dense.state_of(BASES["minilm-dora"]())


@pytest.fixture(scope="module")
def base(state, tmp_path_factory):
    return dense.save_base(tmp_path_factory.mktemp("models") / "base", state, torch.float32)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Another DoRA of the same base, as PEFT would have it after other steps."""
    folder = tmp_path_factory.mktemp("adapters") / "second"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(DORA / "adapter_model.safetensors")
    for key, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensors[key] = tensor + 0.1 * tensor.std() * noise
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text((DORA / "adapter_config.json").read_text())
    return folder


def added(folder, state):
    """Return what PEFT adds to a base when it merges an adapter, in float64: by the judge."""
    merged = dense.merged(folder, state)
    return {
        f"{PREFIX}{key.removesuffix('.weight')}": merged[key] - tensor.double()
        for key, tensor in state.items()
        if not torch.equal(merged[key], tensor.double())
    }


def summed(parts):
    names = dict.fromkeys(name for _, found in parts for name in found)
    return {n: sum(w * found[n] for w, found in parts if n in found) for n in names}


def check(report, out, wanted, rank):
    """Compare the error in a report with that of the file, and with the optimum."""
    found = deltas(out)
    assert found.keys() == wanted.keys()
    lost = sum(float((wanted[n] - found[n]).square().sum()) for n in wanted)
    whole = sum(float(delta.square().sum()) for delta in wanted.values())
    best = sum(tail(delta, rank) for delta in wanted.values())
    assert report["totals"]["error"] == pytest.approx(sqrt(lost / whole), rel=1e-4, abs=1e-6)
    assert sqrt(lost / whole) == pytest.approx(sqrt(best / whole), rel=2e-3, abs=1e-5)
    for row in report["modules"]:
        if row["optimal_error_lower_bound"] is not None:
            delta = wanted[f"{PREFIX}{row['module']}"]
            optimum = sqrt(tail(delta, rank) / float(delta.square().sum()))
            assert row["optimal_error_lower_bound"] <= optimum * (1 + 1e-9)


@pytest.mark.parametrize("weights", [(1, 1), (0.7, -0.3)])
def test_dora_is_added_as_peft_merges_it(base, state, second, weights, tmp_path, capsys):
    words = ("--weight", weights[0], "--weight", weights[1], "--rank", 12, "--base", base)
    run("combine", DORA, second, tmp_path / "out", *words, "--json")
    report = json.loads(capsys.readouterr().out)
    wanted = summed([(weights[0], added(DORA, state)), (weights[1], added(second, state))])
    check(report, tmp_path / "out", wanted, 12)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert not config["use_dora"]
    assert not any("magnitude" in m.parts for m in read(tmp_path / "out").manifest.modules)
    by_name = {row["module"]: row for row in report["contributions"]}
    parts = [
        {n: w * d for n, d in added(folder, state).items()}
        for w, folder in zip(weights, (DORA, second), strict=True)
    ]
    for name, row in by_name.items():
        x, y = (part[PREFIX + name] for part in parts)
        assert row["norms"] == pytest.approx([float(x.norm()), float(y.norm())], rel=1e-6)
        cosine = float((x * y).sum() / x.norm() / y.norm())
        assert row["adapter_pairs"][0]["cosine"] == pytest.approx(cosine, abs=1e-6)
        assert row["norm"] == pytest.approx(float((x + y).norm()), rel=1e-6)


def test_dora_and_plain_adapters_of_one_base_are_added(base, state, tmp_path, capsys):
    run("combine", DORA, PLAIN, tmp_path / "out", "--rank", 16, "--base", base, "--json")
    report = json.loads(capsys.readouterr().out)
    check(report, tmp_path / "out", summed([(1, added(DORA, state)), (1, deltas(PLAIN))]), 16)


def test_the_real_peft_merges_what_was_added(base, state, second, tmp_path):
    """At full rank the sum is all of it: PEFT's own merges of each, without our code."""
    peft = pytest.importorskip("peft")
    run("combine", DORA, second, tmp_path / "out", "--rank", 384, "--base", base, "--quiet")
    wanted = {}
    for folder in (DORA, second):
        model = peft.PeftModel.from_pretrained(BASES["minilm-dora"](), folder).merge_and_unload()
        for key, tensor in model.state_dict().items():
            if key in state:
                wanted[key] = wanted.get(key, 0) + tensor.double() - state[key].double()
    model = peft.PeftModel.from_pretrained(BASES["minilm-dora"](), tmp_path / "out")
    merged = model.merge_and_unload().state_dict()
    for key, change in wanted.items():
        torch.testing.assert_close(
            merged[key].double() - state[key].double(), change, rtol=0, atol=1e-5
        )


def test_dora_is_refused_without_its_base_a_rank_or_one_name(base, second, tmp_path):
    with pytest.raises(UnsupportedError, match="normalised after") as error:
        run("combine", DORA, second, tmp_path / "out", "--rank", 4)
    assert "--base BASE" in error.value.__notes__[0]
    with pytest.raises(PolicyError, match="has full rank"):
        run("combine", DORA, second, tmp_path / "out", "--base", base)
    other = tmp_path / "other"
    other.mkdir()
    save_file(load_file(second / "adapter_model.safetensors"), other / "adapter_model.safetensors")
    config = json.loads((second / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "someone/else"
    (other / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"of different bases: .* of someone/else"):
        run("combine", DORA, other, tmp_path / "out", "--base", base, "--rank", 4)
    small = dense.save_base(
        tmp_path / "small",
        {"encoder.layer.0.attention.self.query.weight": torch.zeros(3, 3)},
        torch.float32,
    )
    with pytest.raises(FormatError, match="no weight that fits"):
        run("combine", DORA, second, tmp_path / "out", "--base", small, "--rank", 4)
    words = ("--method", "knots", "--base", base, "--rank", 4)
    with pytest.raises(UnsupportedError, match="knots is for updates of low rank"):
        run("combine", DORA, second, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_dora_alone_stays_what_it_is(base, tmp_path):
    run("combine", DORA, tmp_path / "out", "--base", base, "--quiet")
    before = load_file(DORA / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_dora_against_itself_is_zero(base, tmp_path, capsys):
    words = ("--weight", 1, "--weight", -1, "--base", base, "--rank", 4)
    run("combine", DORA, DORA, tmp_path / "out", *words)
    assert "modules cancel to zero" in capsys.readouterr().out
    assert not any(delta.any() for delta in deltas(tmp_path / "out").values())


def test_a_rule_sees_what_dora_adds(base, state, second, tmp_path, capsys):
    words = ("--method", "ties", "--base", base, "--rank", 8, "--json")
    run("combine", DORA, second, tmp_path / "out", *words)
    parts = [added(folder, state) for folder in (DORA, second)]
    wanted = {
        name: torch.from_numpy(ties([part[name].numpy() for part in parts], 0.2))
        for name in parts[0]
    }
    check(json.loads(capsys.readouterr().out), tmp_path / "out", wanted, 8)


REFERENCES = {"ties": lambda taus: ties(taus, 0.2), "magnitude": lambda taus: magnitude(taus, 0.5)}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two adapters of one module, large enough for a sketch."""
    folders = []
    for seed in range(2):
        folder = tmp_path_factory.mktemp("wide") / str(seed)
        folder.mkdir()
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"{PREFIX}l.0.q.lora_A.weight": torch.randn(6, 640, generator=generator),
            f"{PREFIX}l.0.q.lora_B.weight": torch.randn(800, 6, generator=generator),
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 6, "lora_alpha": 6, "target_modules": ["q"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        folders.append(folder)
    return folders


@pytest.mark.parametrize("method", REFERENCES)
@pytest.mark.parametrize("policy", [("--rank", 5), ("--max-error", 0.9, "--max-rank", 24)])
def test_a_sketch_has_a_certificate(method, policy, wide, tmp_path, capsys, monkeypatch):
    """Streamed in tiles of a few rows, with a bound that the dense optimum keeps."""
    monkeypatch.setattr(tiles, "TILE", 640 * 50)
    run("combine", *wide, tmp_path / "out", "--method", method, *policy, "--json")
    report = json.loads(capsys.readouterr().out)
    wanted = REFERENCES[method]([deltas(folder)[f"{PREFIX}l.0.q"].numpy() for folder in wide])
    exact = {f"{PREFIX}l.0.q": torch.from_numpy(wanted)}
    (row,) = report["modules"]
    check(report, tmp_path / "out", exact, row["rank_after"])
    assert 0 < row["optimal_error_lower_bound"] <= row["optimal_error"] <= row["error"] * (1 + 1e-6)
    assert row["optimal_error"] <= row["optimal_error_lower_bound"] * 1.001
    run("combine", *wide, tmp_path / "again", "--method", method, *policy)
    assert "no adapter of these ranks has less than" in capsys.readouterr().out
    first, second = (
        load_file(tmp_path / n / "adapter_model.safetensors") for n in ("out", "again")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_is_drawn_does_not_depend_on_the_tiles(wide, tmp_path, monkeypatch):
    outs = []
    for size in (1 << 20, 640 * 7):
        monkeypatch.setattr(tiles, "TILE", size)
        outs.append(tmp_path / str(size))
        run("combine", *wide, outs[-1], "--method", "dare", "--rank", 4, "--quiet")
    first, second = (deltas(out)[f"{PREFIX}l.0.q"] for out in outs)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4 * float(first.abs().max()))


def test_jobs_are_addresses_and_the_same_is_done_anywhere(base, second):
    from lora_tools.linalg.rank import Fixed, MaxError
    from lora_tools.verbs.combine import combine

    adapters = [read(DORA), read(second)]
    for policy in (Fixed(4), MaxError(0.5)):
        plan = combine(adapters, policy=policy, base=open_model(base))
        for change, job in zip(plan, plan.rewrite.jobs, strict=True):
            data = pickle.dumps(job)
            assert len(data) < 4096
            again = rewrite(pickle.loads(data))
            assert np.array_equal(again.update.b, change.update.b)
            assert np.array_equal(again.update.a, change.update.a)


def test_modules_of_full_rank_are_removed_with_their_share(base, second, tmp_path, capsys):
    words = ("--base", base, "--rank", 4, "--drop-modules", "query", "--json")
    run("combine", DORA, second, tmp_path / "out", *words)
    report = json.loads(capsys.readouterr().out)
    assert len(report["removed"]) == 6
    assert all(0 < share < 1 for share in report["removed"].values())
