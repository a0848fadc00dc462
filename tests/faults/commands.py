"""The commands that write, on inputs as small as can be, and what each of them leaves."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hub_person import make_adapter
from safetensors.numpy import save_file

WIDTH, LAYERS = 128, 3

FOLDER, PAGE, PICTURE, SINGLE = "result", "result.html", "result.png", "result.safetensors"


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, from a folder beside the inputs."""

    name: str
    line: str
    outs: tuple[str, ...] = (FOLDER,)
    resumes: bool = False
    """Whether what is finished stays for the next call after an error or a signal."""
    earlier: str = ""
    """A command line that has made OUT before, which this one replaces (``--force``)."""
    beside: str = ""
    """What the earlier one has left beside OUT instead, for this one to take over."""
    old_kernel: bool = False
    """Whether it has to do without renameat2(2)."""
    cost: int = 1
    """How many times as long as others it takes, and so how many times fewer of it are run."""

    @property
    def arguments(self) -> tuple[str, ...]:
        return tuple(self.line.split())

    @property
    def replaces(self) -> bool:
        return bool(self.earlier and not self.beside)

    def __str__(self) -> str:
        return self.name


SHRINK = "shrink ../inputs/adapter result --jobs 1"
CONVERT = "convert ../inputs/adapter"
COMBINE = "combine ../inputs/adapter ../inputs/other"
EXTRACT = "extract ../inputs/base ../inputs/tuned result --jobs 1"
MERGE = "merge ../inputs/base ../inputs/adapter result --max-shard-size 100KB --jobs 1"
INSPECT = "inspect ../inputs/adapter --spectrum --jobs 1"

COMMANDS = (
    Command("shrink", f"{SHRINK} --rank 4"),
    Command(
        "shrink-report",
        f"{SHRINK} --rank 4 --report result.json",
        (FOLDER, "result.json"),
        cost=2,
    ),
    Command("shrink-force", f"{SHRINK} --rank 4 --force", earlier=f"{SHRINK} --rank 2"),
    Command(
        "shrink-force-old-kernel",
        f"{SHRINK} --rank 4 --force",
        earlier=f"{SHRINK} --rank 2",
        old_kernel=True,
    ),
    Command("convert", f"{CONVERT} result --to kohya"),
    Command("convert-file", f"{CONVERT} {SINGLE} --to kohya", (SINGLE,)),
    Command(
        "convert-file-force",
        f"{CONVERT} {SINGLE} --to kohya --force",
        (SINGLE,),
        earlier=f"{CONVERT} {SINGLE} --to kohya --rank 2",
    ),
    Command(
        "convert-file-old-kernel", f"{CONVERT} {SINGLE} --to kohya", (SINGLE,), old_kernel=True
    ),
    Command("combine", f"{COMBINE} result --rank 4 --jobs 1"),
    Command("extract", f"{EXTRACT} --rank 4", resumes=True),
    Command("extract-energy", f"{EXTRACT} --energy 0.9", resumes=True, cost=2),
    Command(
        "extract-force",
        f"{EXTRACT} --rank 4 --force",
        resumes=True,
        earlier=f"{EXTRACT} --rank 2",
        cost=2,
    ),
    Command("merge", MERGE, resumes=True),
    Command(
        "merge-force",
        f"{MERGE} --force",
        resumes=True,
        earlier=f"{MERGE} --weight 2",
        cost=2,
    ),
    Command(
        "extract-parts",
        f"{EXTRACT} --rank 4",
        resumes=True,
        earlier=f"{EXTRACT} --rank 4 --part 1/2",
        beside=".result-part-1-of-2.partial",
    ),
    Command(
        "merge-parts",
        MERGE,
        resumes=True,
        earlier=f"{MERGE} --part 2/2",
        beside=".result-part-2-of-2.partial",
    ),
    Command("page", f"{INSPECT} --html {PAGE}", (PAGE,), cost=3),
    Command(
        "picture-force",
        f"{INSPECT} --plot {PICTURE} --force",
        (PICTURE,),
        earlier=f"inspect ../inputs/other --spectrum --plot {PICTURE}",
        cost=6,
    ),
    Command(
        "card",
        "push . alice/x --card-only --license mit --base-model org/tiny-base",
        ("README.md",),
        earlier="shrink ../inputs/adapter ../place --rank 2 --force",
    ),
)
NAMED = {command.name: command for command in COMMANDS}


def make_inputs(folder: Path) -> None:
    """Write two adapters, a base of two shards and a fine-tune of it."""
    make_adapter(folder / "other", modules=1, wide=WIDTH, rank=2)
    adapter = make_adapter(folder / "adapter", modules=LAYERS, wide=WIDTH, rank=8)
    (adapter / "README.md").write_text("# Mine\n")
    (adapter / "tokenizer_config.json").write_text("{}")
    rng = np.random.default_rng(0)
    shape = WIDTH, WIDTH
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(LAYERS)]
    base = {name: rng.standard_normal(shape, dtype=np.float32) for name in names}
    base["model.norm.weight"] = np.ones(WIDTH, np.float32)
    tuned = {
        name: weight + 0.1 * rng.standard_normal(weight.shape, dtype=np.float32)
        for name, weight in base.items()
    }
    for name, weights in (("base", base), ("tuned", tuned)):
        _save_model(folder / name, weights)


def _save_model(folder: Path, weights: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    index = {}
    for number in range(2):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        part = dict(list(weights.items())[number::2])
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    document = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "README.md").write_text("# Base\n")
