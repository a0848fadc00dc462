"""LitGPT: ``transformer.h.<n>.attn.qkv.lora_A``, three layers in one, sized by the base's heads."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.formats.base import Contents
from lora_tools.formats.fused import Share, blocks
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.plain import LITGPT, Pair, low_rank, pairs
from lora_tools.formats.rotary import heads_of
from lora_tools.formats.sites import Linear
from lora_tools.formats.stated import stated_alpha
from lora_tools.storage.header import Spec

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

LAYER = re.compile(r"transformer\.h\.(?P<number>\d+)\.(?P<name>.+)")

# Read in litgpt 0.5.13 (`lora.py`, `scripts/convert_lit_checkpoint.py`).
LAYERS = {
    "attn.proj": "self_attn.o_proj",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
FUSED = "attn.qkv"
SWITCHES = {"q_proj": "lora_query", "k_proj": "lora_key", "v_proj": "lora_value"}
"""The parts of the fused layer, in their order, and the settings that adapt them."""
MODELS = ("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3")
"""Types of base models whose layers have these names in transformers."""


class LitGPT:
    """The format of ``lit_model.pth.lora``. It is read, not written."""

    name = "litgpt"
    about = "Lightning LitGPT"
    expresses: frozenset[str] | None = None
    names: Literal["any", "authors", "diffusers"] = "any"
    files: tuple[str, ...] = ("lit_model.pth.lora",)
    config_file: str | None = "hyperparameters.yaml"

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise LitGPT by the names of its layers and of their factors."""
        return any(LITGPT.fullmatch(key) for key in specs)

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter by the names of transformers, which the base model decides.

        Raises `UnsupportedError` where the base is missing or of another family, or where the
        file does not say which parts of a fused layer it adapts.
        """
        config = contents.config or {}
        where = "no lora_alpha in a hyperparameters.yaml"
        alpha = stated_alpha(contents, config.get("lora_alpha"), where)
        _check_base(contents.base)
        found, rest = pairs(contents.specs, ".lora_A", ".lora_B")
        if rest:
            raise FormatError(f"names that are not understood: {some(rest)}")
        modules = [m for stem, pair in found.items() for m in _modules(stem, pair, alpha, contents)]
        rank = config.get("lora_r")
        odd = [stem for stem, pair in found.items() if rank is not None and pair.rank != rank]
        problems = [f"hyperparameters.yaml says lora_r is {rank!r}, unlike {some(odd)}"]
        return Manifest(
            self.name,
            tuple(modules),
            (),
            config,
            contents.metadata,
            problems=tuple(problems if odd else ()),
        )

    def write(self, manifest: Manifest) -> Manifest:
        """Refuse: LitGPT reads pickles only."""
        raise UnsupportedError("litgpt is read, not written: it is a pickle").hint(
            "Write PEFT: lora-tools convert --to peft."
        )

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file."""
        return low_rank(module, tensors)

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Refuse, as `write` does."""
        raise UnsupportedError("litgpt is read, not written")


def _check_base(base: Mapping[str, Any] | None) -> None:
    if not base:
        raise UnsupportedError(
            "LitGPT's names and fused layers depend on the base model, which the file does not say"
        ).hint("Give it: --base MODEL, with its config.json.")
    if base.get("model_type") not in MODELS:
        raise UnsupportedError(
            f"the base model is of type {base.get('model_type')}, of which it is not known what"
            " LitGPT calls its layers"
        ).hint(f"Known types: {', '.join(MODELS)}.")


def _modules(stem: str, pair: Pair, alpha: float, contents: Contents) -> Iterator[Module]:
    layer = LAYER.fullmatch(stem)
    if layer and layer["name"] == FUSED:
        yield from _parts(stem, layer["number"], pair, alpha, contents)
        return
    if layer and layer["name"] == "attn.attn":
        raise UnsupportedError(
            f"{stem} is of an older lit-gpt, which interleaved queries, keys and values"
        ).hint("Let LitGPT convert it: its present versions read the old names.")
    if pair.products != 1:
        raise FormatError(f"{stem}: A has {pair.products} times the rank of B")
    name = "lm_head" if stem == "lm_head" else LAYERS.get(layer["name"]) if layer else None
    if name is None:
        raise FormatError(f"{stem} is no layer of LitGPT's that is known")
    path = f"model.layers.{layer['number']}.{name}" if layer else name
    yield _module(path, stem, pair, alpha)


def _parts(
    stem: str, number: str, pair: Pair, alpha: float, contents: Contents
) -> Iterator[Module]:
    """Yield the parts of a fused layer that are adapted."""
    config = contents.config or {}
    adapted = [part for part, switch in SWITCHES.items() if config.get(switch) is True]
    if not any(switch in config for switch in SWITCHES.values()):
        adapted = list(SWITCHES) if pair.products == len(SWITCHES) else []
    if len(adapted) != pair.products:
        raise UnsupportedError(
            f"{stem} is a fused layer of which {pair.products} parts are adapted, and which is"
            " not in the file"
        ).hint("Put LitGPT's own hyperparameters.yaml into the same folder.")
    heads = heads_of(contents.base)
    if heads is None:
        raise FormatError("the base model's config.json does not say how many heads it has")
    counts = [heads.queries if part == "q_proj" else heads.keys for part in adapted]
    if pair.out % sum(counts):
        raise FormatError(f"{stem}: {pair.out} rows are not those of {sum(counts)} heads").hint(
            "Check that the base model is the one of this adapter."
        )
    size = pair.out // sum(counts)
    rows = blocks([count * size for count in counts])
    for i, (part, own) in enumerate(zip(adapted, rows, strict=True)):
        path = f"model.layers.{number}.self_attn.{part}"
        share = Share((i * pair.rank, (i + 1) * pair.rank), (own,))
        yield _module(path, stem, pair, alpha, share)


def _module(path: str, stem: str, pair: Pair, alpha: float, share: Share | None = None) -> Module:
    out = share.out if share else pair.out
    rank, inp = pair.rank, pair.inp
    return Module(path, Linear(), out, inp, rank, alpha, False, pair.parts, stem, path, fused=share)
