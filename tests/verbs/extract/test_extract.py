"""Extractions held against dense float64, the real peft, and themselves."""

import json
import shutil
from pathlib import Path

import finetune
import judge
import pytest
import torch
import whole
from conftest import real
from safetensors.torch import load_file, save_file

from lora_tools import Energy, Fixed, MaxBytes, MaxError, MaxParams, Serial, Threads
from lora_tools.adapter import REPORT
from lora_tools.errors import BoundError, FormatError, NonFiniteError, OutputError, PolicyError
from lora_tools.verbs.extract import ExtractOptions, ExtractReport, Precision, extract, plan

EMBEDDINGS = ("_embeddings",)


def run(base: Path, tuned: Path, out: Path, policy, options=None, **how) -> ExtractReport:
    """Extract into a folder that is not there yet, and save the report as the command does."""
    with extract(plan(base, tuned, options), policy, out, **how) as extraction:
        report = extraction.run()
        report.save(extraction.place / REPORT)
    return report


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("minilm")
    finetune.main(folder)
    return folder / "base", folder / "tuned"


@pytest.fixture
def chgnet() -> tuple[Path, Path]:
    folder = real("chgnet-pair")
    return folder / "base-0.3.0.safetensors", folder / "r2scan.safetensors"


@pytest.mark.parametrize("rank", [1, 3, 8, 64])
def test_a_real_fine_tune(chgnet, tmp_path, rank):
    run(*chgnet, tmp_path / "out", Fixed(rank))
    judged = whole.judge(*chgnet, tmp_path / "out", turned=("atom_embedding.embedding",))
    assert len(judged) == 50
    whole.check(judged, whole.report(tmp_path / "out"))


@pytest.mark.parametrize("small", [16, 512])
@pytest.mark.parametrize("rank", [2, 16])
def test_minilm_tuned_on_real_text(minilm, tmp_path, rank, small):
    """By way of Krylov (``small`` 16) and of full decompositions."""
    options = ExtractOptions(
        precision=Precision(small=small), include=("layer.[03].*", "*_embeddings")
    )
    report = run(*minilm, tmp_path / "out", Fixed(rank), options)
    methods = {row.method for row in report.extracted}
    assert any("krylov" in method for method in methods) == (small == 16)
    judged = whole.judge(*minilm, tmp_path / "out", turned=EMBEDDINGS)
    found = whole.report(tmp_path / "out")
    whole.check(judged, found)
    for row in found["modules"]:
        gap = row["error"] - row["optimal_error_lower_bound"]
        assert gap <= 1.1e-3 * row["error"] + 2e-6


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_an_alpha_is_written_and_the_scale_folded(chgnet, tmp_path, dtype):
    """The same update for loaders that assume one, and the error is that of its bytes."""
    options = ExtractOptions(alpha=16.0, dtype=dtype)
    run(*chgnet, tmp_path / "out", Fixed(6), options)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["alpha_pattern"]) == (16, {})
    judged = whole.judge(*chgnet, tmp_path / "out", turned=("atom_embedding.embedding",))
    whole.check(judged, whole.report(tmp_path / "out"))
    with pytest.raises(PolicyError, match="is not above 0"):
        ExtractOptions(alpha=0.0)


def test_peft_merges_to_what_the_report_says(minilm, tmp_path):
    """The merged weights differ from the tuned ones by the reported errors, and nothing else."""
    import bases

    report = run(*minilm, tmp_path / "out", Fixed(8), ExtractOptions(small="full"))
    merged = judge.load(bases.minilm(), tmp_path / "out").merge_and_unload().state_dict()
    before, after = whole.state(minilm[0]), whole.state(minilm[1])
    rows = {row.module: row for row in report.extracted}
    lost = total = 0.0
    for name, weight in after.items():
        change = (weight.double() - before[name].double()).norm()
        gap = (merged[name].double() - weight.double()).norm()
        lost, total = lost + float(gap) ** 2, total + float(change) ** 2
        row = rows.get(name.removesuffix(".weight"))
        if row is None:
            assert gap == 0, name  # carried whole, or equal
        else:
            # peft adds in float32 to weights of a hundred times the size.
            assert float(gap / change) == pytest.approx(row.error, rel=2e-3, abs=1e-6), name
    assert (lost / total) ** 0.5 == pytest.approx(report.model_error, rel=1e-3)


def test_peft_adapts_exactly_the_modules_that_changed(minilm, tmp_path):
    import bases

    tuned = tmp_path / "tuned"
    tuned.mkdir()
    weights = whole.state(minilm[0])
    changed = "encoder.layer.2.output.dense", "encoder.layer.4.attention.self.key"
    for name in changed:
        weights[f"{name}.weight"] += torch.randn_like(weights[f"{name}.weight"]) * 0.01
    save_file(weights, tuned / "model.safetensors")
    report = run(minilm[0], tuned, tmp_path / "out", Fixed(4))
    assert [row.module for row in report.extracted] == sorted(changed)
    model = judge.load(bases.minilm(), tmp_path / "out")
    assert sorted(judge.deltas(model)) == [f"base_model.model.{name}" for name in sorted(changed)]


def test_what_changed_and_is_left_out_counts_in_the_whole_model(chgnet, tmp_path):
    report = run(*chgnet, tmp_path / "out", Fixed(64), ExtractOptions(exclude=("mlp.layers.*",)))
    before, after = whole.state(chgnet[0]), whole.state(chgnet[1])
    squares = {n: float((after[n].double() - before[n].double()).square().sum()) for n in before}
    kept = {f"{row.module}.weight" for row in report.extracted}
    left = sum(square for name, square in squares.items() if name not in kept)
    assert report.model_error == pytest.approx((left / sum(squares.values())) ** 0.5, rel=1e-4)
    names = {row.module: row.reason for row in report.rows if row.outcome == "left out"}
    assert names["mlp.layers.0"] == "--include, --exclude"
    equal = sum(row.outcome == "unchanged" for row in report.rows)
    assert equal == sum(torch.equal(before[name], after[name]) for name in before) == 8


@pytest.mark.parametrize(
    ("policy", "holds"),
    [
        (Energy(0.8), lambda report: all(row.energy >= 0.8 for row in report.extracted)),
        (MaxError(0.4), lambda report: report.error <= 0.4),
        (MaxError(0.4, per_module=True), lambda r: max(row.error for row in r.extracted) <= 0.4),
        (MaxParams(50_000), lambda report: 45_000 < report.params <= 50_000),
        (MaxBytes(300_000), lambda report: 280_000 < report.nbytes <= 300_000),
    ],
)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_policies_keep_what_they_promise(chgnet, tmp_path, policy, holds, dtype):
    report = run(*chgnet, tmp_path / "out", policy, ExtractOptions(dtype=dtype))
    assert holds(report), (report.error, report.params, report.nbytes)
    judged = whole.judge(*chgnet, tmp_path / "out", turned=("atom_embedding.embedding",))
    whole.check(judged, whole.report(tmp_path / "out"))


def test_a_bound_that_the_largest_rank_misses(chgnet, tmp_path):
    with pytest.raises(BoundError, match="cannot be kept"):
        run(*chgnet, tmp_path / "out", Energy(0.99), ExtractOptions(max_rank=4))


def test_vllm_gets_one_rank_and_no_patterns(chgnet, tmp_path):
    from lora_tools.runtimes import VLLM

    options = ExtractOptions(runtime=VLLM, embeddings="skip")
    report = run(*chgnet, tmp_path / "out", Fixed(5), options)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 8)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert {row.rank_stored for row in report.extracted} == {8}
    whole.check(whole.judge(*chgnet, tmp_path / "out"), whole.report(tmp_path / "out"))


def test_engines_write_the_same_bytes(chgnet, tmp_path):
    for number, executor in enumerate((Serial(), Threads(2))):
        run(*chgnet, tmp_path / str(number), Fixed(4), executor=executor)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_the_same_model_twice_is_refused(chgnet, tmp_path):
    with pytest.raises(FormatError, match="no tensor that was to be extracted differs"):
        run(chgnet[0], chgnet[0], tmp_path / "out", Fixed(4))


def test_a_nan_is_named_and_skipped_if_asked(chgnet, tmp_path):
    bad = tmp_path / "bad.safetensors"
    weights = load_file(chgnet[1])
    weights["mlp.layers.2.weight"][3, 5] = float("nan")
    save_file(weights, bad)
    with pytest.raises(NonFiniteError, match=r"bad.safetensors: mlp.layers.2.weight holds NaN"):
        run(chgnet[0], bad, tmp_path / "out", Fixed(4))
    assert not (tmp_path / "out").exists()
    report = run(
        chgnet[0], bad, tmp_path / "out", Fixed(4), ExtractOptions(skip_bad=True), resume=False
    )
    assert [row.module for row in report.rows if row.outcome == "not finite"] == ["mlp.layers.2"]
    assert len(report.extracted) == 49


@pytest.mark.parametrize("policy", [Fixed(4), Energy(0.6)])
@pytest.mark.parametrize("after", [1, 20, 45])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(chgnet, tmp_path, policy, after):
    class StopError(Exception):
        pass

    seen = []

    def stop(item) -> None:
        seen.append(item)
        if len(seen) == after + 30:
            raise StopError

    run(*chgnet, tmp_path / "whole", policy)
    with pytest.raises(StopError):
        run(*chgnet, tmp_path / "out", policy, seen=stop)
    assert not (tmp_path / "out").exists()
    kept = sorted((tmp_path / ".out.partial" / "pieces").glob("*.safetensors"))
    assert len(kept) >= after
    times = [file.stat().st_mtime_ns for file in kept]
    run(*chgnet, tmp_path / "out", policy, executor=_Watch(kept, times))
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()
    assert not (tmp_path / ".out.partial").exists()


class _Watch:
    """A serial executor that checks that finished pieces are not made again."""

    def __init__(self, files: list[Path], times: list[int]) -> None:
        self.files, self.times = files, times

    def map(self, task, jobs):
        yield from map(task, jobs)
        assert [file.stat().st_mtime_ns for file in self.files] == self.times


@pytest.mark.parametrize("change", ["rank", "input"])
def test_other_settings_or_inputs_do_not_go_on(chgnet, tmp_path, change):
    base, tuned = (tmp_path / path.name for path in chgnet)
    for source, target in zip(chgnet, (base, tuned), strict=True):
        shutil.copyfile(source, target)

    def stop(item) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(base, tuned, tmp_path / "out", Fixed(4), seen=stop)
    if change == "input":
        weights = load_file(tuned)
        save_file(weights | {"site_wise.bias": weights["site_wise.bias"] + 1}, tuned)
    policy = Fixed(5 if change == "rank" else 4)
    with pytest.raises(OutputError, match="begun with other") as caught:
        run(base, tuned, tmp_path / "out", policy)
    assert "--no-resume" in caught.value.__notes__[0]
    run(base, tuned, tmp_path / "out", policy, resume=False)


def test_a_folder_that_is_no_unfinished_extraction_is_left_alone(chgnet, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "mine").write_text("")
    with pytest.raises(OutputError, match="is no unfinished output"):
        run(*chgnet, tmp_path / "out", Fixed(4))


@pytest.mark.parametrize("policy", [Fixed(4), Energy(0.6)])
def test_pieces_that_a_power_cut_has_blanked_are_made_again(chgnet, tmp_path, policy):
    seen = []

    def stop(item) -> None:
        seen.append(item)
        if len(seen) == 40:
            raise ZeroDivisionError

    run(*chgnet, tmp_path / "whole", policy)
    with pytest.raises(ZeroDivisionError):
        run(*chgnet, tmp_path / "out", policy, seen=stop)
    pieces = sorted((tmp_path / ".out.partial" / "pieces").iterdir())
    for number, piece in enumerate(pieces):
        if number % 3 == 0:  # its header stays: only its tensors are lost
            data = piece.read_bytes()
            head = 8 + int.from_bytes(data[:8], "little")
            piece.write_bytes(data[:head] + bytes(len(data) - head))
        if number % 3 == 1:
            piece.write_bytes(bytes(piece.stat().st_size))
    run(*chgnet, tmp_path / "out", policy)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()
