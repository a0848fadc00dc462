"""Cells of the support matrix: an adapter of the real PEFT on a tiny model of transformers."""

import re
import warnings
from pathlib import Path
from typing import Any

import judge
import tiny
import torch
import whole
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_tools import Fixed, Report, read, runtimes, shrink, staged, write
from lora_tools.errors import LoraToolsError
from lora_tools.files.opening import open_checkpoint
from lora_tools.merging import MergePlan
from lora_tools.model import open_model
from lora_tools.runtimes import Verdict
from lora_tools.runtimes.peft import PEFT
from lora_tools.verbs.merge import WeightedAdapter, merge, plan
from lora_tools.verbs.verify import verify

COLUMNS = {
    "attention": "the attention's layers by name",
    "all-linear": '`target_modules="all-linear"`',
    "experts": "the experts' stacks by `target_parameters`",
    "both": "the two together",
    "patterns": "`rank_pattern` and `alpha_pattern`",
    "rsLoRA": "the attention with `use_rslora`",
    "DoRA": "the attention with `use_dora`",
    "towers": "language model and vision tower together",
    "tower": "the vision tower alone",
    "projector": "language model and what connects the two",
    "head": "language model and output layer",
}
WORKS = "works"
MAMBA = re.compile(r"(?:^|\.)(?:out_proj|conv1d)$")
"""Layers that PEFT refuses in models whose kernels read weights behind its back."""
SEES = re.compile("vis|image")
CONNECTS = re.compile("project(?!ion)|merger")


def settings(model: nn.Module, column: str) -> dict[str, Any] | None:
    """Return what of PEFT's configuration makes a column's adapter; None if it has no such part."""
    from transformers.pytorch_utils import Conv1D

    kinds = dict(model.named_modules())
    head = getattr(model, "get_output_embeddings", lambda: None)()
    ends = [name for name, layer in kinds.items() if head is not None and layer is head]
    linear = [n for n, layer in kinds.items() if isinstance(layer, nn.Linear | Conv1D)]
    linear = [name for name in linear if name not in ends]
    sees = [name for name in linear if SEES.search(name) and not CONNECTS.search(name)]
    rest = [name for name in linear if name not in sees and not CONNECTS.search(name)]
    rest = [name for name in rest if not MAMBA.search(name)] or rest
    attention = [name for name in rest if "att" in name.lower()] or rest
    both_towers = sees and rest
    if not rest:
        attention, sees = sees, []
    stacks = [n for n, w in model.named_parameters() if w.ndim == 3 and "experts" in n]
    leaves = sorted({name.rpartition(".")[2] for name in attention})
    made: dict[str, dict[str, Any]] = {
        "attention": {"target_modules": attention},
        "all-linear": {"target_modules": "all-linear"},
        "experts": {"target_modules": [], "target_parameters": stacks},
        "both": {"target_modules": "all-linear", "target_parameters": stacks},
        "patterns": {
            "target_modules": leaves,
            "rank_pattern": {leaves[0]: 3},
            "alpha_pattern": {leaves[-1]: 7},
        },
        "rsLoRA": {"target_modules": attention, "use_rslora": True},
        "DoRA": {"target_modules": attention, "use_dora": True},
        "towers": {"target_modules": [*rest, *sees]},
        "tower": {"target_modules": sees},
        "projector": {"target_modules": [*attention, *filter(CONNECTS.search, linear)]},
        "head": {"target_modules": [*attention, *ends]},
    }
    if (column in ("experts", "both") and not stacks) or (column == "head" and not ends):
        return None
    if column in ("towers", "tower", "projector") and not both_towers:
        return None
    if column == "projector" and not any(map(CONNECTS.search, linear)):
        return None
    turned = any(isinstance(layer, Conv1D) for layer in kinds.values())
    return {"r": 2, "lora_alpha": 3, "fan_in_fan_out": turned, **made[column]}


def outcome(name: str, column: str, folder: Path) -> str | None:
    """Return "works", or who refuses it and why; None where there is nothing to adapt.

    What works: PEFT loads it as `inspect --for peft` says; a merge is what `merge_and_unload`
    makes, to 1e-6; verify passes both and no module in another's place; PEFT loads it shrunk.
    """
    torch.manual_seed(0)
    base, adapter, out = folder / "base", folder / "adapter", folder / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiny.save(tiny.auto(name).from_config(tiny.config(name)), base)
        model = load(name, base)
        wanted = settings(model, column)
        if wanted is None:
            return None
        try:
            trained(model, wanted, adapter)
        except ValueError as error:
            return f"PEFT: {_reason(error)}"
        before = weights(load(name, base))
        live = judge.load(load(name, base), adapter).merge_and_unload()
        merged = weights(live)
    check_verdict(name, base, adapter)
    try:
        merging = plan(open_model(base), [WeightedAdapter(read(adapter))])
    except LoraToolsError as error:
        return _reason(error)
    merge(merging).write(out)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine = load(name, out)
        for key in weights(mine).keys() - merged.keys():
            # PEFT adds the update of a tied head to the one tensor of both, when it merges. Before
            # that it computes with two, and so does what we write.
            total = getattr(live.get_output_embeddings(), key.rpartition(".")[2])
            merged = {k: before[k] if w is total else w for k, w in merged.items()}
            merged[key] = total
        check_equal(weights(mine), merged)
        for key, weight in merged.items():
            mine.get_parameter(key).data.copy_(weight.detach())
        tiny.save(mine, folder / "theirs")
    for each in (out, folder / "theirs"):
        proof = verify(open_checkpoint(each), merging)
        assert proof.passed, [v for v in proof.verdicts if not v.passed][:3]
    misplace(merging, base, out)
    assert not verify(open_checkpoint(out), merging).passed
    check_shrunk(name, base, adapter, folder / "shrunk")
    return WORKS


def load(name: str, folder: Path) -> nn.Module:
    """Load a model as transformers does, and insist that every tensor found its place."""
    model, found = tiny.auto(name).from_pretrained(folder, output_loading_info=True)
    assert not found["missing_keys"], found
    assert not found["unexpected_keys"], found
    return model.eval()


def trained(model: nn.Module, wanted: dict[str, Any], folder: Path) -> None:
    """Save an adapter as PEFT does after training: no factor is zero."""
    from peft import LoraConfig, get_peft_model

    live = get_peft_model(model, LoraConfig(**wanted))
    for key, weight in live.named_parameters():
        if "lora_magnitude" in key:
            weight.data *= 1 + 0.1 * torch.rand_like(weight)
        elif "lora_" in key:
            nn.init.normal_(weight, std=0.2)
    live.save_pretrained(folder)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters, tied ones once."""
    return dict(model.named_parameters())


def check_equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Hold weights against PEFT's: the same numbers, as far as float32 has them."""
    assert mine.keys() == theirs.keys()
    for key, weight in theirs.items():
        least = 1e-6 * max(float(weight.abs().max()), 1e-6)
        torch.testing.assert_close(mine[key].data, weight.data, rtol=0, atol=least, msg=key)


def check_verdict(name: str, base: Path, adapter: Path) -> None:
    """Hold the verdict "loads" against the real loader: no error, no warning, something loaded."""
    from peft import PeftModel

    verdict = runtimes.judge(runtimes.subject(adapter), PEFT).verdict
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(load(name, base), str(adapter))
    about = ("missing adapter keys", "unexpected")
    assert verdict is Verdict.LOADS
    assert not [str(w.message) for w in said if any(word in str(w.message) for word in about)]
    factors = [weight for key, weight in model.named_parameters() if re.search("lora_.*B", key)]
    assert factors
    assert all(weight.any() for weight in factors)


def misplace(merging: MergePlan, base: Path, out: Path) -> None:
    """Give two modules of one shape each other's updates; or one none, if no two are alike."""
    before, after = whole.state(base), whole.state(out)
    keys = [key for key, entry in merging.entries.items() if entry.patches and key in before]
    alike: dict[torch.Size, list[str]] = {}
    for key in keys:
        alike.setdefault(before[key].shape, []).append(key)
    one, *others = max(alike.values(), key=len)
    updates = {key: after[key] - before[key] for key in (one, *others[:1])}
    if others:
        updates = {one: updates[others[0]], others[0]: updates[one]}
    else:
        updates = {one: torch.zeros_like(before[one])}
    moved = {key: before[key] + update for key, update in updates.items()}
    (file,) = out.glob("*.safetensors")
    save_file({k: w.contiguous() for k, w in (after | moved).items()}, file)


def check_shrunk(name: str, base: Path, adapter: Path, out: Path) -> None:
    """Shrink an adapter, and load it with PEFT onto the base."""
    source = read(adapter)
    result = shrink(source, Fixed(1))
    report = Report("shrink", "1")
    with staged(out) as folder:
        write(folder, result.manifest, report.watch(result), like=source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge.load(load(name, base), out)
    check_verdict(name, base, out)


def _reason(error: Exception) -> str:
    """Return what an error says, without the place of the files and what is counted."""
    lines = re.sub(r"/\S*/", "", str(error)).splitlines()
    text = re.sub(r"^\w+: |\[[\w:.]+\] ", "", " ".join(lines[:2]).strip())
    text = re.sub(r" Incompatible modules:.*", "", text)
    return " ".join(re.sub(r"(?<=\.)\d+(?=\.)", "#", text).split())
