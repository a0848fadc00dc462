"""Every family of image and video models, through every command, judged by diffusers.

A cell is a family and a command. It works, or `REFUSED` has the reason that is given. The page of
documentation is made of the same list.
"""

import json
import re
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from dialects import converted, numbers_in, randomised
from image_models import CASES, Case, read_by_diffusers
from judges import judge
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lora_tools.adapter import read, write
from lora_tools.architectures.families import family
from lora_tools.cli import cli
from lora_tools.errors import LoraToolsError
from lora_tools.files.opening import open_partly
from lora_tools.formats.registry import format_named
from lora_tools.linalg.rank import Fixed
from lora_tools.model import open_model
from lora_tools.verbs.convert import convert
from lora_tools.verbs.inspect import inspect
from lora_tools.verbs.merge import WeightedAdapter, merge, plan
from lora_tools.verbs.shrink import shrink
from lora_tools.verbs.verify import verify

DOCS = Path(__file__).parent.parent / "docs"
RANK = 2
ROAD = [case for case in CASES if case.name != "AutoencoderKL"]
COMMON = ("Flux.1", "Wan", "Qwen-Image", "Z-Image")
"""Those that every run of the tests tries; the others are slow together."""
BASES = {"Stable Diffusion 3": "sd3", "Sana": "sana", "PixArt": "pixart"}
"""What trainers write into headers, where so few blocks as these are those of several models."""
NO_LAYER = re.compile(r"pos_embed|\.gate\.|type_embed")
"""Tables of positions and kinds, and routers of experts, which are parameters of no layer."""
WORKS = ("", "works")
UPS = {".lora_up.weight": ".lora_down.weight", ".lora_B.weight": ".lora_A.weight"}
EXPERTS = (
    "does not support\n +experts: .*experts.0.w1",
    (
        "its experts are extracted as PEFT wraps them, by parameter, which no other format"
        " supports; `--exclude` leaves them out"
    ),
)
REFUSED: dict[tuple[str, str], tuple[str, str]] = {
    ("HiDream", "extract from single files"): EXPERTS,
    ("HiDream", "extract from diffusers folders"): EXPERTS,
}
"""Cells that are refused: what the message says, and the reason for the documentation."""


@dataclass
class Made:
    """A tiny model in its containers, and LoRAs of every linear layer as tools name them."""

    case: Case
    place: Path
    deltas: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        case, place = self.case, self.place
        model = randomised(getattr(judge("diffusers"), case.model)(**case.config))
        model.save_pretrained(place / "folder")
        self.config = dict(model.config)
        state = numbers_in(model.state_dict())
        self.fine = {key: array for key, array in state.items() if key not in case.without}
        self.coarse = self.turned(self.fine)
        tensors = {self.prefix + key: array for key, array in self.coarse.items()}
        save(tensors, place / "single.safetensors")
        self.lora("kohya", self.fine if self.flat == "diffusers" else self.coarse)
        self.lora("comfyui", self.coarse)
        self.lora("diffusers", self.fine)

    @property
    def known(self):
        """The family."""
        return family(self.case.name)

    @property
    def prefix(self) -> str:
        """What stands before the paths of the single file."""
        return self.case.prefix if self.case.converter else "model.diffusion_model."

    @property
    def flat(self) -> str:
        """The dialect that kohya's files have."""
        return self.known.dialect("kohya", self.case.dialect)

    @cached_property
    def component(self) -> str:
        """What diffusers' files begin with."""
        return self.known.before(self.known.hub)

    def turned(self, fine: dict[str, np.ndarray], dialect: str = "") -> dict[str, np.ndarray]:
        """Return weights as the original has them, by the table, which diffusers judges."""
        dialect = dialect or self.case.dialect
        if dialect == "diffusers":
            return dict(fine)
        return converted(fine, self.known, "diffusers", dialect)

    def judged(self, coarse: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return weights as diffusers has them, by its own converter where there is one."""
        if self.case.converter:
            return numbers_in(read_by_diffusers(self.case, coarse, self.config))
        if self.case.dialect == "diffusers":
            return dict(coarse)
        return converted(coarse, self.known, self.case.dialect, "diffusers")

    def name(self, tool: str, module: str) -> str:
        """Return what a tool's file calls a module."""
        if tool == "kohya":
            return "lora_unet_" + module.replace(".", "_")
        before = {"comfyui": "diffusion_model.", "diffusers": self.component}
        return before.get(tool, "base_model.model.") + module

    def lora(self, tool: str, weights: dict[str, np.ndarray]) -> None:
        """Write a LoRA as a tool does, and note what it adds to each weight."""
        draw = np.random.default_rng(len(tool))
        tensors, self.deltas[tool] = {}, {}
        for key in matrices(weights):
            out, inp = weights[key].shape
            a = draw.standard_normal((RANK, inp)).astype(np.float32)
            b = draw.standard_normal((out, RANK)).astype(np.float32)
            before = self.name(tool, key.removesuffix(".weight"))
            down, up = ("lora_down", "lora_up") if tool == "kohya" else ("lora_A", "lora_B")
            tensors |= {f"{before}.{down}.weight": a, f"{before}.{up}.weight": b}
            scale = 1.0
            if tool == "kohya":
                tensors[f"{before}.alpha"], scale = np.array(RANK / 4, np.float32), 0.25
            self.deltas[tool][key] = scale * b.astype(np.float64) @ a
        name = BASES.get(self.case.name)
        save(tensors, self.file(tool), {"ss_base_model_version": name} if name else None)

    def file(self, tool: str) -> Path:
        """Return a tool's file."""
        return self.place / f"{tool}.safetensors"

    def is_fine(self, tool: str) -> bool:
        """Whether a tool's file has diffusers' paths."""
        return tool == "diffusers" or (tool == "kohya" and self.flat == "diffusers")

    def added(self, tool: str, *, fine: bool) -> dict[str, np.ndarray]:
        """Return the weights and what a tool's file adds, as diffusers or the original has them."""
        return self.in_dialect(tool, fine=fine, start=1.0)

    def changes(self, tool: str, *, fine: bool) -> dict[str, np.ndarray]:
        """Return what a tool's file adds, as diffusers or the original has it."""
        found = self.in_dialect(tool, fine=fine, start=0.0)
        return {key: array for key, array in found.items() if np.any(array)}

    def in_dialect(self, tool: str, *, fine: bool, start: float) -> dict[str, np.ndarray]:
        """Return ``start`` times the weights and what a file adds, in float64."""
        own = self.fine if self.is_fine(tool) else self.coarse
        found = {
            key: start * array.astype(np.float64) + self.deltas[tool].get(key, 0.0)
            for key, array in own.items()
        }
        if fine == self.is_fine(tool):
            return found
        return self.judged(found) if fine else self.turned(found)

    def merged(self, tool: str, base: str):
        """Return the plan of a merge into a container, and what was written."""
        merge_plan = plan(open_model(self.place / base), [WeightedAdapter(read(self.file(tool)))])
        out = self.place / f"{tool}-{base}"
        if not out.exists():
            merge(merge_plan).write(out)
        return merge_plan, out


def matrices(weights: dict[str, np.ndarray]) -> list[str]:
    """Return the weights of linear layers."""
    return [
        key
        for key, array in weights.items()
        if array.ndim == 2 and key.endswith(".weight") and not NO_LAYER.search(key)
    ]


def save(tensors: dict[str, np.ndarray], file: Path, metadata=None) -> None:
    """Write a file; its writer takes no other arrays than contiguous ones."""
    save_file({key: np.ascontiguousarray(v) for key, v in tensors.items()}, file, metadata)


def changed(file: Path) -> dict[str, np.ndarray]:
    """Return what a file adds to each module, from its tensors and its configuration alone."""
    tensors, found = load_file(file), {}
    with safe_open(file, "np") as opened:
        stated = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    beside = file.parent / "adapter_config.json"
    if beside.exists():
        stated = {f"base_model.{k}": v for k, v in json.loads(beside.read_text()).items()}
    for key, b in tensors.items():
        for up, down in UPS.items():
            if not key.endswith(up):
                continue
            name = key.removesuffix(up)
            a = tensors[name + down]
            component, _, path = name.partition(".")
            patterns = stated.get(f"{component}.alpha_pattern", {})
            alpha = patterns.get(
                path.removeprefix("model."), stated.get(f"{component}.lora_alpha", len(a))
            )
            if f"{name}.alpha" in tensors:
                alpha = tensors[f"{name}.alpha"].item()
            found[name] = alpha / len(a) * b.astype(np.float64) @ a
    return found


def close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], within: float) -> None:
    """Compare names and numbers, relative to the largest of each array."""
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())[:5]
    for key, array in wanted.items():
        assert found[key].shape == array.shape, key
        assert np.abs(found[key] - array).max() <= within * np.abs(array).max(), key


def rewritten(plan_, out: Path) -> Path:
    """Write an adapter and return its file."""
    out.mkdir(exist_ok=True)
    report = plan_.report("convert")
    source = plan_.source
    write(out, plan_.manifest, report.watch(plan_), like=source.adapter, format=source.format)
    (file,) = out.glob("*.safetensors")
    return file


def inspecting(made: Made) -> None:
    for tool in made.deltas:
        document = inspect(read(made.file(tool))).to_dict()
        assert document["format"] == tool
        assert not document["problems"]
        before = (
            made.name(tool, "")
            if tool != "kohya"
            else (made.component if made.is_fine(tool) else "diffusion_model.")
        )
        wanted = {before + key.removesuffix(".weight") for key in made.deltas[tool]}
        assert {each["module"] for each in document["modules"]} == wanted


def shrinking(made: Made) -> None:
    for tool in made.deltas:
        file = rewritten(shrink(read(made.file(tool)), Fixed(1)), made.place / f"{tool}-shrunk")
        found, before = changed(file), changed(made.file(tool))
        assert found.keys() == before.keys()
        for name, delta in before.items():
            u, s, vt = np.linalg.svd(delta)
            best = s[0] * np.outer(u[:, 0], vt[0])
            assert np.abs(found[name] - best).max() <= 1e-4 * s[0], name


def converting(made: Made, source: str, target: str) -> None:
    """Compare what a converted file adds with what diffusers' converter makes of the source's."""
    container = {"kohya": "kohya", "comfyui": "comfyui"}.get(target)
    file = rewritten(
        convert(read(made.file(source)), format_named(target)), made.place / f"{source}-{target}"
    )
    own = "diffusers" if made.is_fine(source) else made.case.dialect
    dialect = made.known.dialect(container, own) if container else "diffusers"
    wanted = made.changes(source, fine=dialect == "diffusers")
    if dialect not in ("diffusers", made.case.dialect):  # ComfyUI's own
        fine = made.in_dialect(source, fine=True, start=0.0)
        wanted = {k: array for k, array in made.turned(fine, dialect).items() if np.any(array)}
    wanted = {
        made.name(target, key.removesuffix(".weight")): array for key, array in wanted.items()
    }
    close(changed(file), wanted, 1e-6)


def to_kohya(made: Made) -> None:
    converting(made, "diffusers", "kohya")
    converting(made, "comfyui", "kohya")


def to_comfyui(made: Made) -> None:
    converting(made, "diffusers", "comfyui")
    converting(made, "kohya", "comfyui")


def to_diffusers(made: Made) -> None:
    converting(made, "comfyui", "diffusers")
    converting(made, "kohya", "diffusers")


def to_peft(made: Made) -> None:
    converting(made, "diffusers", "peft")


def and_back(made: Made) -> None:
    """There and back again adds the same; bit for bit where only names change."""
    for there in ("kohya", "comfyui"):
        first = made.place / f"diffusers-{there}-there"
        file = rewritten(convert(read(made.file("diffusers")), format_named(there)), first)
        base = open_model(made.place / "folder").config
        back = made.place / f"diffusers-{there}-back"
        plan_ = convert(read(file, base=base), format_named("diffusers"))
        close(changed(rewritten(plan_, back)), changed(made.file("diffusers")), 1e-6)


def merging(made: Made, base: str) -> None:
    for tool in made.deltas:
        _, out = made.merged(tool, base)
        (file,) = out.glob("*.safetensors")
        wanted = made.added(tool, fine=base == "folder")
        before = "" if base == "folder" else made.prefix
        assert file.name == ("diffusion_pytorch_model.safetensors" if not before else base) or (
            base == "single.safetensors"
        )
        found = load_file(file)
        extra = {key: found.pop(key) for key in made.case.without if key in found}
        assert all(np.array_equal(extra[key], extra[key]) for key in extra)
        close(found, {before + key: array for key, array in wanted.items()}, 1e-6)


def into_single(made: Made) -> None:
    merging(made, "single.safetensors")


def into_folder(made: Made) -> None:
    merging(made, "folder")


def verifying(made: Made) -> None:
    for base in ("single.safetensors", "folder"):
        for tool in made.deltas:
            merge_plan, out = made.merged(tool, base)
            merged, missing = open_partly(out)
            proof = verify(merged, merge_plan, None, missing)
            assert proof.passed, proof.summary()
            unmerged, _ = open_partly(made.place / base)
            assert not verify(unmerged, merge_plan).passed


def extracting(made: Made, base: str, tool: str) -> None:
    """What was merged comes out again, in a format that names the same modules."""
    _, merged = made.merged(tool, base)
    out = made.place / f"extracted-{base}"
    tuned = merged / base if base.endswith(".safetensors") else merged
    words = ["extract", made.place / base, tuned, out, "--rank", RANK, "--to", tool, "--quiet"]
    cli.main([*map(str, words)], standalone_mode=False)
    (file,) = out.glob("*.safetensors")
    close(changed(file), changed(made.file(tool)), 1e-3)


def from_single(made: Made) -> None:
    extracting(made, "single.safetensors", "comfyui")


def from_folder(made: Made) -> None:
    extracting(made, "folder", "diffusers")


def differing(made: Made) -> None:
    """A file and its own conversion are the same."""
    for source, target in (
        ("diffusers", "comfyui"),
        ("comfyui", "diffusers"),
        ("kohya", "comfyui"),
    ):
        out = made.place / f"{source}-{target}-same"
        rewritten(convert(read(made.file(source)), format_named(target)), out)
        words = ["diff", str(made.file(source)), str(out), "--quiet"]
        assert cli.main(words, standalone_mode=False) == 0, (source, target)
    other = made.file("kohya") if made.case.name not in BASES else made.file("comfyui")
    assert cli.main(
        ["diff", str(made.file("diffusers")), str(other), "--quiet"], standalone_mode=False
    )


CELLS = {
    "inspect": inspecting,
    "shrink": shrinking,
    "convert to kohya": to_kohya,
    "convert to comfyui": to_comfyui,
    "convert to diffusers": to_diffusers,
    "convert to peft": to_peft,
    "and back": and_back,
    "diff with its conversion": differing,
    "merge into a single file": into_single,
    "merge into a diffusers folder": into_folder,
    "verify": verifying,
    "extract from single files": from_single,
    "extract from diffusers folders": from_folder,
}


def marked(case: Case, number: int):
    marks = [] if case.name in COMMON else [pytest.mark.slow]
    return pytest.param(case, marks=marks, id=f"{case.name}-{number}")


@pytest.fixture(scope="module", params=[marked(case, n) for n, case in enumerate(ROAD)])
def made(request, tmp_path_factory) -> Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Made(request.param, tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_works_or_is_refused_with_the_true_reason(made, cell):
    if (made.case.name, cell) not in REFUSED:
        CELLS[cell](made)
        return
    with pytest.raises(LoraToolsError) as caught:
        CELLS[cell](made)
    whole = "\n".join([str(caught.value), *caught.value.__notes__])
    assert re.search(REFUSED[made.case.name, cell][0], whole)


def test_the_documentation_has_every_cell():
    assert (DOCS / "image_models.json").read_text() == written()


def written() -> str:
    """Return the cells as the documentation has them."""
    names = dict.fromkeys(case.name for case in ROAD)
    cells = {name: {cell: REFUSED.get((name, cell), WORKS)[1] for cell in CELLS} for name in names}
    return json.dumps(cells, indent=2) + "\n"
