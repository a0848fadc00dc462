"""Hugging Face PEFT: ``base_model.model.<module>.lora_A.weight`` and adapter_config.json."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_tools.errors import FormatError, some
from lora_tools.formats.base import (
    Convolution,
    Embedding,
    Experts,
    Extra,
    Linear,
    Manifest,
    Module,
    Part,
    Role,
    Site,
    columns,
    factor_shapes,
    fold,
    unfold,
)
from lora_tools.formats.peft_config import (
    PeftConfig,
    base_model,
    check_types,
    check_variant,
    write_config,
)
from lora_tools.scaling import alpha_for
from lora_tools.storage.dtypes import FLOATS
from lora_tools.storage.header import Spec

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

PREFIX = "base_model.model."
WRAPPED = ".base_layer"

# The adapter's name ("default") is gone from files that `save_pretrained` wrote and still there
# in a plain dump of the state dict.
LORA_KEY = re.compile(
    r"(?P<stem>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
SUFFIX: dict[tuple[bool, Role], str] = {
    (False, "a"): ".lora_A.weight",
    (False, "b"): ".lora_B.weight",
    (True, "a"): ".lora_embedding_A",
    (True, "b"): ".lora_embedding_B",
    (False, "magnitude"): ".lora_magnitude_vector",
    (True, "magnitude"): ".lora_magnitude_vector",
    (False, "bias"): ".lora_B.bias",
}

# Where one module has several adapted parameters, PEFT wraps the first in the order of the
# module's own parameters innermost; these are the orders of the models that stack experts.
PARAMETER_ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


class Found(NamedTuple):
    """The tensors that share a stem, and whether they are an embedding's."""

    parts: dict[Role, Part]
    embedding: bool


class Peft:
    """The format of `peft`'s LoRA, as of 0.21 and back to 2023."""

    name = "peft"
    files: tuple[str, ...] = ("adapter_model.safetensors", "adapter_model.bin")
    config_file: str | None = "adapter_config.json"

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise PEFT by its configuration or by its prefix before a LoRA suffix."""
        if config is not None and ("peft_type" in config or {"r", "lora_alpha"} <= config.keys()):
            return True
        return any(key.startswith(PREFIX) and LORA_KEY.fullmatch(key) for key in specs)

    def read(
        self,
        specs: Mapping[str, Spec],
        config: Mapping[str, Any] | None,
        metadata: Mapping[str, str],
    ) -> Manifest:
        """Describe a PEFT adapter.

        Raises `UnsupportedError` for variants that are not sums of matrices, and `FormatError`,
        with a list, where the configuration and the tensors contradict each other.
        """
        if config is None:
            raise FormatError(
                "no adapter_config.json beside the tensors, so alpha is unknown"
            ).hint("Put the adapter's own adapter_config.json into the same folder.")
        check_types(config)
        check_variant(config)
        peft = PeftConfig(config)
        found, rest = _collect(specs)
        if not found:
            raise FormatError("no tensor is named like a LoRA factor of PEFT")
        modules, problems = [], []
        parameters = _parameters(found, peft)
        for stem, (parts, embedding) in found.items():
            try:
                modules.append(_module(stem, parts, embedding, parameters.get(stem), peft))
            except FormatError as error:
                problems.append(str(error))
        counts = Counter(module.name for module in modules)
        problems += [f"{name} has two pairs of factors" for name in counts if counts[name] > 1]
        extras = [Extra(key, specs[key], _kind(key, peft)) for key in rest]
        problems += [f"{extra.key} is not understood" for extra in extras if "lora_" in extra.key]
        if problems:
            more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
            lines = "\n  ".join([*problems[:5], *more])
            raise FormatError(f"configuration and tensors do not fit together:\n  {lines}")
        notes = tuple(_notes(modules, found))
        return Manifest(
            self.name, tuple(modules), tuple(extras), config, metadata, base_model(config), notes
        )

    def write(self, manifest: Manifest) -> Manifest:
        """Spell modules as `peft.save_pretrained` would, with the configuration that fits them."""
        modules = tuple(_spelled(module) for module in manifest.modules)
        rslora = any(module.rslora for module in modules)
        config = write_config(
            manifest.config,
            {module.owner: module.r for module in modules},
            {module.owner: _alpha(module, rslora=rslora) for module in modules},
            rslora=rslora,
        )
        if isinstance(config.get("target_modules"), str):
            # A regex or "all-linear": servers read lists only.
            owners = (m.owner for m in modules if not isinstance(m.site, Experts))
            config["target_modules"] = list(dict.fromkeys(owners))
        metadata = {"format": "pt"} | dict(manifest.metadata)
        return replace(
            manifest, format=self.name, modules=modules, config=config, metadata=metadata
        )

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file."""
        from lora_tools.update import Biased, DoRA, LowRank  # numpy is not needed for headers

        values = {role: tensors[part.key] for role, part in module.parts.items()}
        b, a = unfold(module, values["b"], values["a"])
        weight = LowRank(a, b, module.alpha, module.rslora, module.groups)
        if "magnitude" in values:
            return DoRA(weight, values["magnitude"])
        return Biased(weight, values["bias"]) if "bias" in values else weight

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update."""
        from lora_tools.update import Biased, DoRA, factors

        low = factors(update)
        b, a = fold(module, low.b, low.a)
        values: dict[Role, Array] = {"a": a, "b": b}
        match update:
            case DoRA(magnitude=magnitude):
                values["magnitude"] = magnitude
            case Biased(bias=bias):
                values["bias"] = bias
        return {module.parts[role].key: value for role, value in values.items()}


def _collect(specs: Mapping[str, Spec]) -> tuple[dict[str, Found], list[str]]:
    found: dict[str, Found] = {}
    rest = []
    for key, spec in specs.items():
        match = LORA_KEY.fullmatch(key)
        role = match and _role(match)
        if match is None or role is None:
            rest.append(key)
            continue
        embedding = match["part"].startswith("embedding")
        parts, was_embedding = found.get(match["stem"], Found({}, embedding=False))
        if role in parts:
            raise FormatError(f"{parts[role].key} and {key} are the same factor").hint(
                "The file holds more than one adapter; save the one that is meant on its own."
            )
        parts[role] = Part(key, spec)
        found[match["stem"]] = Found(parts, embedding or was_embedding)
    return found, rest


def _role(match: re.Match[str]) -> Role | None:
    part, leaf = match["part"], match["leaf"]
    if part == "magnitude_vector":
        return None if leaf == "bias" else "magnitude"
    if part.startswith("embedding"):
        return None if leaf else ("a" if part.endswith("A") else "b")
    if leaf == "weight":
        return "a" if part == "A" else "b"
    return "bias" if leaf == "bias" and part == "B" else None


def _parameters(found: Mapping[str, Found], peft: PeftConfig) -> dict[str, str]:
    """Return the parameter that each stem adapts directly, for those that do.

    PEFT nests the wrappers of several parameters of one module: the more ``.base_layer`` a stem
    ends with, the earlier its parameter is in the module.
    """
    nested: dict[str, list[str]] = {}
    for stem in found:
        path = _path(stem)
        if not peft.target_parameters or peft.targets(path):
            continue
        nested.setdefault(path, []).append(stem)
    names: dict[str, str] = {}
    for path, stems in nested.items():
        wanted = list(
            dict.fromkeys(
                name
                for module, _, name in (target.rpartition(".") for target in peft.target_parameters)
                if not module or f".{path}".endswith(f".{module}")
            )
        )
        if len(wanted) != len(stems):
            continue  # reported as not targeted
        if len(wanted) > 1 and not set(wanted) <= set(PARAMETER_ORDER):
            raise FormatError(
                f"{path}: cannot tell which tensors belong to which of {some(wanted)}"
            )
        wanted.sort(key=lambda name: (*PARAMETER_ORDER, name).index(name))
        names |= dict(zip(sorted(stems, key=len, reverse=True), wanted, strict=True))
    return names


def _path(stem: str) -> str:
    """Return the module path that PEFT matches its patterns against."""
    return stem.removeprefix(PREFIX).replace(WRAPPED, "")


def _module(
    stem: str, parts: dict[Role, Part], embedding: bool, parameter: str | None, peft: PeftConfig
) -> Module:
    path = _path(stem)
    name = f"{path}.{parameter}" if parameter else path
    missing = [role.upper() for role in ("a", "b") if role not in parts]
    if missing:
        raise FormatError(f"{path} has no lora_{missing[0]}")
    for part in parts.values():
        if part.spec.dtype not in FLOATS:
            raise FormatError(f"{part.key} has elements of type {part.spec.dtype}")
    # A multi-head attention's output projection is adapted with it, at the same rank and alpha.
    owner = stem.removeprefix(PREFIX).rpartition(f"{WRAPPED}.")[0] or name
    if not parameter and not peft.targets(owner):
        raise FormatError(f"{path} is not among the configuration's targets")
    if peft.dora != ("magnitude" in parts):
        has = "has a magnitude vector" if "magnitude" in parts else "has no magnitude vector"
        raise FormatError(f"{path} {has}, but use_dora is {str(peft.dora).lower()}")
    if "bias" in parts and embedding:
        raise FormatError(f"{path} is an embedding with a lora_B.bias, which PEFT does not have")
    if "bias" in parts and not peft.lora_bias:
        raise FormatError(f"{path} has a lora_B.bias, but lora_bias is false: PEFT would drop it")
    if peft.lora_bias and "bias" not in parts and not embedding:
        raise FormatError(f"{path} has no lora_B.bias, but lora_bias is true")
    rank, alpha = peft.rank(owner), peft.alpha(owner)
    b, a = parts["b"].spec.shape, parts["a"].spec.shape
    site, out, inp, per_update = _site(path, b, a, rank, embedding, parameter, peft)
    module = Module(name, site, out, inp, per_update, alpha, peft.rslora, parts, stem, owner)
    if factor_shapes(module) != (b, a) or rank != module.r:
        raise FormatError(f"{path}: B {list(b)} and A {list(a)} do not make rank {rank}")
    for role in ("magnitude", "bias"):
        if role in parts and parts[role].spec.numel != b[0]:
            shape = list(parts[role].spec.shape)
            raise FormatError(f"{path}: {role} {shape} does not fit B {list(b)}")
    return module


def _alpha(module: Module, *, rslora: bool) -> float:
    """Return the alpha that keeps the module's scale: its own wherever that says it."""
    if module.alpha is not None and module.rslora == rslora:
        return module.alpha
    return alpha_for(module.scale, module.r, rslora=rslora)


def _site(
    path: str,
    b: tuple[int, ...],
    a: tuple[int, ...],
    rank: int,
    embedding: bool,
    parameter: str | None,
    peft: PeftConfig,
) -> tuple[Site, int, int, int]:
    if min((*a, *b, rank), default=0) < 1 or len(a) != len(b) or not 2 <= len(a) <= 5:
        raise FormatError(f"{path}: B {list(b)} and A {list(a)} are not a pair of factors")
    if parameter:
        return Experts(parameter, a[0] // rank), b[0], a[1], rank
    if embedding:
        return Embedding(), b[0], a[1], rank
    if len(a) == 2:
        return Linear(peft.transposed), b[0], a[1], rank
    groups = max(rank // b[1], 1)
    site = Convolution(a[1], a[2:], groups)
    return site, b[0] // groups, columns(a[1], a[2:]), rank // groups


def _kind(key: str, peft: PeftConfig) -> str:
    path = _path(key)
    if "trainable_tokens" in key:
        return "trainable tokens"
    if peft.saves(path):
        return "modules_to_save"
    if key.endswith(".bias"):
        return "bias"
    return "full weight"


def _notes(modules: Iterable[Module], found: Mapping[str, Found]) -> Iterator[str]:
    if any("magnitude" in module.parts for module in modules):
        yield (
            "DoRA: errors are those of the low-rank direction, before the base weight and the"
            " magnitude vector normalise it."
        )
    bare = [stem for stem in found if not stem.startswith(PREFIX)]
    if bare:
        yield f"{len(bare)} names lack PEFT's prefix {PREFIX!r}; what is written has it."


def _spelled(module: Module) -> Module:
    stem = module.stem if module.stem.startswith(PREFIX) else PREFIX + module.stem
    shapes: dict[Role, tuple[int, ...]] = dict(zip(("b", "a"), factor_shapes(module), strict=True))
    embedding = isinstance(module.site, Embedding)
    parts: dict[Role, Part] = {
        role: Part(
            stem + SUFFIX[embedding, role],
            Spec(part.spec.dtype, shapes.get(role, part.spec.shape)),
        )
        for role, part in module.parts.items()
    }
    return replace(module, parts=parts, stem=stem)
