"""torchtune: ``layers.<n>.attn.q_proj.lora_a.weight``, and rows of queries and keys in pairs."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.container import SAFETENSORS, Container
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
from lora_tools.files.typed import Fields, shown
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.folding import factor_shapes
from lora_tools.formats.kinds import check_uniform
from lora_tools.formats.manifest import Manifest, Module, Part, Role
from lora_tools.formats.patterns import number
from lora_tools.formats.rotary import Paired, from_file, heads_of, paired, to_file
from lora_tools.formats.sites import Linear
from lora_tools.formats.stated import stated_alpha
from lora_tools.formats.uniform import at_one_rank, common_alpha

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

CONFIG = "adapter_config.json"
KEY = re.compile(r"(?P<stem>.+)\.(?P<part>lora_a\.weight|lora_b\.weight|magnitude)")
ROLES: dict[str, Role] = {"lora_a.weight": "a", "lora_b.weight": "b", "magnitude": "magnitude"}
SUFFIX: dict[Role, str] = {role: f".{part}" for part, role in ROLES.items()}

# Read in torchtune 0.6.1 (`models/convert_weights.py`, `models/*/_convert_weights.py`).
LAYERS = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
"""What a layer's modules are called, and what transformers calls them."""
NAMES = {theirs: ours for ours, theirs in LAYERS.items()}
LAYER = re.compile(r"layers\.(\d+)\.(.+)")
ROTATED = ("self_attn.q_proj", "self_attn.k_proj")

PAIRED = ("llama", "mistral", "gemma", "gemma2")
"""Types of base models whose rows torchtune brings into pairs when it loads them."""
HALVED = ("qwen2",)
"""Those whose rows it leaves as transformers has them."""


class Torchtune:
    """The format of torchtune's own checkpoints; what it exports for PEFT is PEFT's."""

    name = "torchtune"
    about = "Meta torchtune"
    expresses: frozenset[str] | None = frozenset({"DoRA"})
    container: Container = SAFETENSORS
    names: Names = "any"
    # torchtune reads a file of any name that it is given; its own would be taken for PEFT's.
    files: tuple[str, ...] = ("adapter_0.safetensors", "adapter_model.pt", "adapter_0.pt")
    config_file: str | None = CONFIG

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise torchtune by the small letters of its factors, which have ``.weight``."""
        return any(key.endswith((".lora_a.weight", ".lora_b.weight")) for key in specs)

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter; the base model's configuration says how rows are ordered.

        Without it the order of queries and keys is unknown, and so is what they belong to. Raises
        `FormatError` for names that are not torchtune's, and where alpha is unknown.
        """
        config = contents.config or {}
        fields = Fields(CONFIG, config)
        said = fields.number("lora_alpha")
        alpha = stated_alpha(contents, said, f"no lora_alpha in an {CONFIG}")
        found: dict[str, dict[Role, Part]] = {}
        for key, spec in contents.specs.items():
            match = KEY.fullmatch(key)
            if match is None or spec.dtype not in FLOATS:
                raise FormatError(f"{key} of type {spec.dtype} is not understood")
            found.setdefault(match["stem"], {})[ROLES[match["part"]]] = Part(key, spec)
        if strange := [stem for stem in found if _path(stem) is None]:
            raise FormatError(f"modules that torchtune's language models lack: {some(strange)}")
        modules = tuple(
            _module(str(_path(stem)), stem, parts, alpha, contents.base)
            for stem, parts in found.items()
        )
        return Manifest(
            self.name,
            modules,
            (),
            config,
            contents.metadata,
            fields.text("base_model_name_or_path") or None,
            _notes(modules),
            tuple(_problems(modules, fields)),
            contents.base,
        )

    def write(self, manifest: Manifest) -> Manifest:
        """Spell modules as torchtune does: at one rank and under one scale.

        Raises `UnsupportedError` for modules that its models do not have, and where the base model
        is not there to say how their rows are ordered.
        """
        strange = [m.name for m in manifest.modules if _stem(m.name) is None]
        strange += [m.name for m in manifest.modules if m.site != Linear()]
        if strange:
            raise UnsupportedError(f"torchtune's models have no LoRA at {some(strange)}")
        check_uniform(manifest.modules, "torchtune")
        modules = tuple(_ordered(m, manifest.base) for m in at_one_rank(manifest.modules))
        alpha = common_alpha(modules)
        written = tuple(replace(_spelled(m), alpha=alpha, rslora=False) for m in modules)
        old = {key: value for key, value in manifest.config.items() if key != "peft_type"}
        leaves = {str(_stem(module.name)).rpartition(".")[2] for module in written}
        config = {"base_model_name_or_path": manifest.base_model} | old
        config |= {
            "r": written[0].rank,
            "lora_alpha": number(alpha),
            "target_modules": sorted(leaves),
        }
        return replace(
            manifest, format=self.name, modules=written, config=dict(sorted(config.items()))
        )

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file, in transformers' order of rows."""
        from lora_tools.update import DoRA, LowRank  # numpy is not needed for headers

        values = {role: tensors[part.key] for role, part in module.parts.items()}
        b = from_file(module.rows, values["b"])
        weight = LowRank(values["a"], b, module.alpha, module.rslora, module.groups)
        if "magnitude" not in values:
            return weight
        return DoRA(weight, from_file(module.rows, values["magnitude"]))

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update."""
        from lora_tools.update import DoRA, factors

        low = factors(update)
        values: dict[Role, Array] = {"a": low.a, "b": to_file(module.rows, low.b)}
        if isinstance(update, DoRA):
            norms = update.magnitude.reshape(module.parts["magnitude"].spec.shape)
            values["magnitude"] = to_file(module.rows, norms)
        return {module.parts[role].key: value for role, value in values.items()}


def _path(stem: str) -> str | None:
    """Return the path in transformers' model, or None if torchtune has no such module.

    >>> _path("layers.3.mlp.w2"), _path("output")
    ('model.layers.3.mlp.down_proj', 'lm_head')
    """
    if stem == "output":
        return "lm_head"
    layer = LAYER.fullmatch(stem)
    name = layer and LAYERS.get(layer[2])
    return f"model.layers.{layer[1]}.{name}" if layer and name else None


def _stem(path: str) -> str | None:
    """Return what torchtune calls a module, or None if it has none there: `_path`'s inverse."""
    if path == "lm_head":
        return "output"
    layer = LAYER.fullmatch(path.removeprefix("model."))
    name = layer and NAMES.get(layer[2])
    if layer is None or name is None or not path.startswith("model."):
        return None
    return f"layers.{layer[1]}.{name}"


def _module(
    name: str,
    stem: str,
    parts: Mapping[Role, Part],
    alpha: float,
    base: Mapping[str, Any] | None,
) -> Module:
    if not {"a", "b"} <= parts.keys():
        raise FormatError(f"{stem} has no lora_{'b' if 'a' in parts else 'a'}")
    a, b = parts["a"].spec.shape, parts["b"].spec.shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or min(*a, *b) < 1:
        raise FormatError(f"{stem}: lora_a {list(a)} and lora_b {list(b)} are no pair of factors")
    if "magnitude" in parts and parts["magnitude"].spec.shape != (b[0],):
        shape = list(parts["magnitude"].spec.shape)
        raise FormatError(f"{stem}: magnitude {shape} does not fit lora_b {list(b)}")
    ordered = {role: parts[role] for role in SUFFIX if role in parts}  # whatever the file's order
    rows = _order(name, b[0], base)
    return Module(name, Linear(), b[0], a[1], a[0], alpha, False, ordered, stem, name, rows)


def _order(name: str, out: int, base: Mapping[str, Any] | None) -> Paired | None:
    """Return how a module's rows are ordered in torchtune's model of this base."""
    if not base:
        return Paired(None) if name.endswith(ROTATED) else None
    kind = base.get("model_type")
    if kind not in (*PAIRED, *HALVED):
        known = ", ".join((*PAIRED, *HALVED))
        called = kind if isinstance(kind, str) else shown(kind)
        raise UnsupportedError(
            f"the base model is of type {called}, of which it is not known how torchtune names"
            " and orders its weights"
        ).hint(f"Known types: {known}.")
    if kind in HALVED or not name.endswith(ROTATED):
        return None
    heads = heads_of(base)
    if heads is None:
        raise FormatError("the base model's config.json does not say how many heads it has")
    return paired(name, out, heads.queries if name.endswith("q_proj") else heads.keys)


def _ordered(module: Module, base: Mapping[str, Any] | None) -> Module:
    if module.rows is not None:
        return module  # read from torchtune, and kept so
    rows = _order(module.name, module.out, base)
    if rows == Paired(None):
        raise UnsupportedError(
            f"{module.name}: torchtune orders its rows by heads, and how many there are is unknown"
        ).hint("Give the base model, whose config.json says it: --base MODEL.")
    return replace(module, rows=rows)


def _spelled(module: Module) -> Module:
    stem = str(_stem(module.name))
    b, a = factor_shapes(module)
    shapes: dict[Role, tuple[int, ...]] = {"a": a, "b": b, "magnitude": (module.out,)}
    parts = {
        role: Part(stem + SUFFIX[role], Spec(module.parts[role].spec.dtype, shapes[role]))
        for role in SUFFIX
        if role in module.parts
    }
    return replace(module, parts=parts, stem=stem)


def _problems(modules: tuple[Module, ...], fields: Fields) -> list[str]:
    rank = fields.count("r")
    odd = [module.name for module in modules if rank is not None and module.rank != rank]
    return [f"{CONFIG} says r is {rank}, unlike {some(odd)}"] if odd else []


def _notes(modules: tuple[Module, ...]) -> tuple[str, ...]:
    if not any(module.rows == Paired(None) for module in modules):
        return ()
    return (
        "The order of the rows of queries and keys depends on the base model: --base MODEL tells"
        " where they are needed in transformers' order.",
    )
