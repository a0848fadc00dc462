"""torchtune: ``layers.<n>.attn.q_proj.lora_a.weight``, and rows of queries and keys in pairs."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.architectures.dialects import (
    Counterpart,
    candidate_of,
    candidates,
    in_tool,
    in_transformers,
    stated_heads,
)
from lora_tools.architectures.layout import Interleaved
from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.container import SAFETENSORS, Container
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
from lora_tools.files.typed import Fields
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.features import check_uniform
from lora_tools.formats.folding import factor_shapes
from lora_tools.formats.manifest import Manifest, Module, Part, Role
from lora_tools.formats.patterns import number
from lora_tools.formats.rotary import Paired, from_file, paired, to_file
from lora_tools.formats.sites import Linear
from lora_tools.formats.stated import stated_alpha
from lora_tools.formats.uniform import at_one_rank, common_alpha

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

CONFIG = "adapter_config.json"
KEY = re.compile(r"(?P<key_prefix>.+)\.(?P<part>lora_a\.weight|lora_b\.weight|magnitude)")
ROLES: dict[str, Role] = {"lora_a.weight": "a", "lora_b.weight": "b", "magnitude": "magnitude"}
SUFFIX: dict[Role, str] = {role: f".{part}" for part, role in ROLES.items()}
DIALECT = "torchtune"
ADAPTED = ("linear", "head")
"""The roles of modules that it puts a LoRA into."""


class Torchtune:
    """The format of torchtune's own checkpoints; what it exports for PEFT is PEFT's."""

    name = "torchtune"
    about = "Meta torchtune"
    supports: frozenset[str] | None = frozenset({"DoRA"})
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
        stated = fields.number("lora_alpha")
        alpha = stated_alpha(contents, stated, f"no lora_alpha in an {CONFIG}")
        found: dict[str, dict[Role, Part]] = {}
        for key, spec in contents.specs.items():
            match = KEY.fullmatch(key)
            if match is None or spec.dtype not in FLOATS:
                raise FormatError(f"{key} of type {spec.dtype} is not understood")
            found.setdefault(match["key_prefix"], {})[ROLES[match["part"]]] = Part(key, spec)
        if strange := [key_prefix for key_prefix in found if _path(key_prefix) is None]:
            raise FormatError(f"modules that torchtune's language models lack: {some(strange)}")
        modules = tuple(
            _module(str(_path(key_prefix)), key_prefix, parts, alpha, contents.base)
            for key_prefix, parts in found.items()
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
        """Name the keys of modules as torchtune does: at one rank and under one scale.

        Raises `UnsupportedError` for modules that its models do not have, and where the base model
        is not there to say how their rows are ordered.
        """
        strange = [m.name for m in manifest.modules if _key_prefix(m.name) is None]
        strange += [m.name for m in manifest.modules if m.site != Linear()]
        if strange:
            raise UnsupportedError(f"torchtune's models have no LoRA at {some(strange)}")
        check_uniform(manifest.modules, "torchtune")
        modules = tuple(_ordered(m, manifest.base) for m in at_one_rank(manifest.modules))
        alpha = common_alpha(modules)
        written = tuple(replace(_rekeyed(m), alpha=alpha, rslora=False) for m in modules)
        old = {key: value for key, value in manifest.config.items() if key != "peft_type"}
        leaves = {str(_key_prefix(module.name)).rpartition(".")[2] for module in written}
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


def _path(key_prefix: str) -> str | None:
    """Return the path in transformers' model, or None if torchtune has no such module.

    >>> _path("layers.3.mlp.w2"), _path("output"), _path("layers.3.sa_norm")
    ('model.layers.3.mlp.down_proj', 'lm_head', None)
    """
    return _adapted(in_transformers(key_prefix, candidates(DIALECT)))


def _key_prefix(path: str) -> str | None:
    """Return what torchtune calls a module, or None if it has none there: `_path`'s inverse."""
    return _adapted(in_tool(path, candidates(DIALECT)))


def _adapted(found: Counterpart | None) -> str | None:
    return found.path if found and found.role in ADAPTED else None


def _module(
    name: str,
    key_prefix: str,
    parts: Mapping[Role, Part],
    alpha: float,
    base: Mapping[str, Any] | None,
) -> Module:
    if not {"a", "b"} <= parts.keys():
        raise FormatError(f"{key_prefix} has no lora_{'b' if 'a' in parts else 'a'}")
    a, b = parts["a"].spec.shape, parts["b"].spec.shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or min(*a, *b) < 1:
        raise FormatError(
            f"{key_prefix}: lora_a {list(a)} and lora_b {list(b)} are no pair of factors"
        )
    if "magnitude" in parts and parts["magnitude"].spec.shape != (b[0],):
        shape = list(parts["magnitude"].spec.shape)
        raise FormatError(f"{key_prefix}: magnitude {shape} does not fit lora_b {list(b)}")
    ordered = {role: parts[role] for role in SUFFIX if role in parts}  # whatever the file's order
    rows = _order(name, b[0], base)
    return Module(name, Linear(), b[0], a[1], a[0], alpha, False, ordered, key_prefix, name, rows)


def _order(name: str, out: int, base: Mapping[str, Any] | None) -> Paired | None:
    """Return how a module's rows are ordered in torchtune's model of this base."""
    among = (candidate_of(base, "torchtune", DIALECT),) if base else candidates(DIALECT)
    places = (in_tool(name, (candidate,)) for candidate in among)
    orders = (place.order for place in places if place)
    order = next((order for order in orders if isinstance(order, Interleaved)), None)
    if order is None:
        return None
    if not base:
        return Paired(None)
    return paired(name, out, stated_heads(base)[order.heads])


def _ordered(module: Module, base: Mapping[str, Any] | None) -> Module:
    if module.rows is not None:
        return module  # read from torchtune, and kept so
    rows = _order(module.name, module.out, base)
    if rows == Paired(None):
        raise UnsupportedError(
            f"{module.name}: torchtune orders its rows by heads, and how many there are is unknown"
        ).hint("Give the base model, whose config.json says it: --base MODEL.")
    return replace(module, rows=rows)


def _rekeyed(module: Module) -> Module:
    key_prefix = str(_key_prefix(module.name))
    b, a = factor_shapes(module)
    shapes: dict[Role, tuple[int, ...]] = {"a": a, "b": b, "magnitude": (module.out,)}
    parts = {
        role: Part(key_prefix + SUFFIX[role], Spec(module.parts[role].spec.dtype, shapes[role]))
        for role in SUFFIX
        if role in module.parts
    }
    return replace(module, parts=parts, key_prefix=key_prefix)


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
