"""The cost of a merge beside a copy of the base and beside PEFT, and where the time goes.

python benchmarks/bench_merge.py [--runs N] [--out DIR] [--layers N] [--no-peft]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import processes
import provenance
import torch
from processes import Command, Usage
from results import heading, installed, parser, publish
from safetensors.torch import save_file
from tables import alternating, disturbance, loud, medians, middle, section, table

OURS, COPY, PEFT = "lora-tools", "cp -r; sync", "peft"
HIDDEN, INNER, VOCABULARY, RANK = 2560, 6912, 32000, 16
SHAPES = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
SHAPES |= {"mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN)}
SHAPES |= {"mlp.down_proj": (HIDDEN, INNER)}
THEIRS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


def main() -> None:
    """Measure, print the report and write it to a file."""
    options = parse()
    with TemporaryDirectory(prefix="lora-tools-bench-") as name:
        folder = Path(name)
        nbytes = make(folder, options.layers)
        commands = make_commands(folder, with_peft=not options.no_peft)
        usages = processes.alternate(commands, options.runs)
        parts = (head(nbytes, folder, commands), whole(usages), stages(folder))
        publish(chain.from_iterable(parts), "merge", options.out)


def parse() -> argparse.Namespace:
    """Read the command line."""
    known = parser(__doc__, 5, "counted runs, after one warm-up")
    known.add_argument("--layers", type=int, default=20, help="layers of the base")
    known.add_argument("--no-peft", action="store_true", help="leave PEFT out")
    return known.parse_args()


def make(folder: Path, layers: int) -> int:
    """Make a bfloat16 Llama in files of about 1 GB, and its adapter; return the base's bytes."""
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    torch.manual_seed(0)
    names = [
        ("model.embed_tokens.weight", (VOCABULARY, HIDDEN)),
        *(
            (f"model.layers.{layer}.{name}.weight", shape)
            for layer in range(layers)
            for name, shape in SHAPES.items()
        ),
        *(
            (f"model.layers.{layer}.{name}_layernorm.weight", (HIDDEN,))
            for layer in range(layers)
            for name in ("input", "post_attention")
        ),
        ("model.norm.weight", (HIDDEN,)),
        ("lm_head.weight", (VOCABULARY, HIDDEN)),
    ]
    weight_map, total, shard = {}, 0, {}
    for key, shape in names:
        shard[key] = (0.02 * torch.randn(shape)).bfloat16()
        total += shard[key].nbytes
        weight_map[key] = f"model-{total // 10**9:05d}.safetensors"
        if key == names[-1][0] or total // 10**9 != (total + shard[key].nbytes) // 10**9:
            weight_map |= dict.fromkeys(shard, weight_map[key])
            save_file(shard, base / weight_map[key], metadata={"format": "pt"})
            shard = {}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (base / "config.json").write_text(json.dumps(config))
    factors = {}
    for layer in range(layers):
        for name, (out, inp) in SHAPES.items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            factors[f"{stem}.lora_A.weight"] = 0.02 * torch.randn(RANK, inp)
            factors[f"{stem}.lora_B.weight"] = 0.02 * torch.randn(out, RANK)
    save_file(factors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = [name.rpartition(".")[2] for name in SHAPES]
    lora = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": targets}
    (adapter / "adapter_config.json").write_text(json.dumps(lora | {"task_type": "CAUSAL_LM"}))
    os.sync()
    return total


def make_commands(folder: Path, *, with_peft: bool) -> dict[str, Command]:
    """Return the commands to compare."""
    base, adapter = str(folder / "base"), str(folder / "adapter")
    ours, copied, theirs = folder / "ours", folder / "copied", folder / "theirs"
    merge = [sys.executable, "-m", "lora_tools", "merge", base, adapter, str(ours), "--quiet"]
    copy = ["sh", "-c", f"cp -r {base} {copied} && sync"]
    commands = {
        COPY: Command(copy, copied, provenance.ROOT),
        OURS: Command(["sh", "-c", f"{' '.join(merge)} && sync"], ours, provenance.ROOT),
    }
    if with_peft:
        script = [sys.executable, "-c", THEIRS, base, adapter, str(theirs)]
        commands[PEFT] = Command(script, theirs, provenance.ROOT)
    return commands


def head(nbytes: int, folder: Path, commands: dict[str, Command]) -> Iterator[str]:
    """Say what was run, where, and with which versions."""
    yield from heading(f"lora-tools merge, a bfloat16 Llama of {nbytes / 1e9:.2f} GB, rank {RANK}")
    packages = ("numpy", "torch", "safetensors", "peft", "transformers")
    yield installed("versions", provenance.versions(*packages))
    for name, command in commands.items():
        if name != PEFT:
            shown = " ".join(command.argv[2:]).replace(str(folder), "$TMP")
            yield f"- {name}: `{shown.replace(sys.executable, 'python')}`"
    yield "- peft: `from_pretrained`, `merge_and_unload`, `save_pretrained`, without a `sync`"
    yield ""
    yield "Warm caches: each command ran once before. All write to the same disk."


def whole(usages: dict[str, list[Usage]]) -> Iterator[str]:
    """Show medians, ratios of neighbouring runs, and the runs themselves."""
    yield from medians(usages, "Whole processes, medians")
    yield ""
    rows = []
    for name, runs in usages.items():
        if name != OURS:
            ratios = [ours.wall / its.wall for ours, its in zip(usages[OURS], runs, strict=True)]
            rows.append((f"{OURS} / {name}", *middle(ratios, 2)))
    yield from table(("wall time", "median of pairs", "range"), rows)
    yield from alternating(usages)
    yield from disturbance(loud(usages))


def stages(folder: Path) -> Iterator[str]:
    """Time each stage of one merge in this process, on one thread."""
    from lora_tools.cli.process import prepare

    prepare()  # as the command line does
    from lora_tools import read
    from lora_tools.files import journal, place
    from lora_tools.linalg.apply import Host
    from lora_tools.model import open_model
    from lora_tools.verbs.merge import WeightedAdapter, merge, plan

    spent = dict.fromkeys(("read", "load", "add", "write", "copy", "disk"), 0.0)

    @contextmanager
    def timed(owner: object, name: str, stage: str) -> Iterator[None]:
        real = getattr(owner, name)

        def wrapped(*arguments: object) -> object:
            began = time.perf_counter()
            try:
                return real(*arguments)
            finally:
                spent[stage] += time.perf_counter() - began

        setattr(owner, name, wrapped)
        yield
        setattr(owner, name, real)

    jobs = sys.modules["lora_tools.verbs.merge.jobs"]
    made = merge(plan(open_model(folder / "base"), [WeightedAdapter(read(folder / "adapter"))]))
    began = time.perf_counter()
    with (
        timed(place, "get", "read"),
        timed(Host, "load", "load"),
        timed(Host, "add", "add"),
        timed(jobs, "put", "write"),
        timed(jobs, "copy", "copy"),
        timed(journal, "sync", "disk"),
    ):
        made.write(folder / "staged")
    wall = time.perf_counter() - began
    words = {
        "read": "read, by position from the page cache",
        "load": "widen to float32",
        "add": "multiply, add, round, and measure every element",
        "write": "write at its place",
        "copy": "copy untouched tensors, by the kernel",
        "disk": "wait for the disk (fsync), beside the next shard's work",
    }
    yield from section("Where the time goes, one thread")
    rows = [(words[stage], f"{seconds:.2f}") for stage, seconds in spent.items()]
    yield from table(("", "s"), [*rows, ("whole merge in this process", f"{wall:.2f}")])


if __name__ == "__main__":
    main()
