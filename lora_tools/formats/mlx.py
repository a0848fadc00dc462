"""MLX-LM: ``<path>.lora_a`` and ``.lora_b``, transposed, and one scale in adapter_config.json."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.architectures.conventions import is_embedding
from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.container import SAFETENSORS, Container
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
from lora_tools.files.typed import Fields, shown
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.features import check_uniform
from lora_tools.formats.manifest import Manifest, Module, Part, Role
from lora_tools.formats.sites import Embedding, Experts, Linear, Site
from lora_tools.formats.uniform import at_one_rank, common_scale, scaled
from lora_tools.scaling import alpha_for

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

KEY = re.compile(r"(?P<key_prefix>.+)\.(?P<part>lora_a|lora_b|m)")
ROLES: dict[str, Role] = {"lora_a": "a", "lora_b": "b", "m": "magnitude"}
SUFFIX: dict[Role, str] = {"a": ".lora_a", "b": ".lora_b", "magnitude": ".m"}
CONFIG = "adapter_config.json"
EXPERT = ".weight"
"""What we put behind the name of a layer of experts: its parameter, which the update is of."""


class MLX:
    """The format of mlx-lm's ``adapters.safetensors`` and of mlx-examples' ``adapters.npz``."""

    name = "mlx"
    about = "Apple MLX-LM"
    supports: frozenset[str] | None = frozenset({"embedding", "experts", "DoRA"})
    container: Container = SAFETENSORS
    names: Names = "any"
    files: tuple[str, ...] = ("adapters.safetensors", "adapters.npz")
    config_file: str | None = "adapter_config.json"

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise MLX by its names, which no ``.weight`` goes before or behind."""
        if config is not None and ("fine_tune_type" in config or "lora_parameters" in config):
            return True
        return any(key.endswith((".lora_a", ".lora_b")) and not _is_gguf(key) for key in specs)

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter. Its configuration has a scale, not an alpha.

        Raises `UnsupportedError` for full fine-tunes.
        """
        config = contents.config or {}
        fields = Fields(CONFIG, config)
        feature = fields.text("fine_tune_type")
        if feature not in (None, "lora", "dora"):
            raise UnsupportedError(f"{CONFIG}: fine_tune_type is {feature}, not lora")
        parameters = fields.mapping("lora_parameters")
        scale = parameters.number("scale")
        if scale is None:
            raise FormatError("no scale in an adapter_config.json beside the tensors").hint(
                "Put the adapter's own adapter_config.json, with lora_parameters.scale, there."
            )
        found: dict[str, dict[Role, Part]] = {}
        for key, spec in contents.specs.items():
            match = KEY.fullmatch(key)
            if match is None or spec.dtype not in FLOATS:
                raise FormatError(f"{key} of type {spec.dtype} is not understood")
            found.setdefault(match["key_prefix"], {})[ROLES[match["part"]]] = Part(key, spec)
        modules = tuple(
            _module(key_prefix, parts, float(scale)) for key_prefix, parts in found.items()
        )
        return Manifest(
            self.name,
            modules,
            (),
            config,
            contents.metadata,
            fields.text("model") or None,
            _notes(parameters),
        )

    def write(self, manifest: Manifest) -> Manifest:
        """Name the keys as mlx-lm does: under the scale that most have, at the rank of the largest.

        It refuses ranks that differ, so zeros fill the smaller ones up.
        """
        modules = at_one_rank(manifest.modules)
        odd = [m.name for m in modules if isinstance(m.site, Experts) and not _is_switch(m)]
        odd += [
            m.name for m in modules if isinstance(m.site, Embedding) and not is_embedding(m.name)
        ]
        odd += [m.name for m in modules if isinstance(m.site, Linear) and is_embedding(m.name)]
        if odd:
            raise UnsupportedError(f"MLX-LM has other layers in the place of {some(odd)}")
        check_uniform(modules, "MLX-LM")
        dora = "magnitude" in modules[0].parts
        scale = common_scale(modules)
        written = tuple(scaled(_rekeyed(module), scale) for module in modules)
        old = dict(manifest.config)
        theirs = Fields(CONFIG, old).mapping("lora_parameters")
        parameters: dict[str, Any] = {"dropout": 0.0} | dict(theirs.values)
        stated = theirs.number("scale")
        same = stated is not None and math.isclose(stated, scale, rel_tol=1e-14)
        parameters |= {
            "rank": modules[0].rank,
            "scale": stated if same else scale,
            "keys": sorted({_layer_key(module) for module in written}),
        }
        config = (
            {"model": manifest.base_model}
            | old
            | {
                "fine_tune_type": "dora" if dora else "lora",
                "num_layers": old.get("num_layers", -1),
                "lora_parameters": parameters,
            }
        )
        return replace(
            manifest, format=self.name, modules=written, config=dict(sorted(config.items()))
        )

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file."""
        from lora_tools.update import DoRA, LowRank  # numpy is not needed for headers

        values = {role: tensors[part.key] for role, part in module.parts.items()}
        b, a = values["b"], values["a"]
        if not isinstance(module.site, Experts):
            b, a = b.T, a.T
        weight = LowRank(a, b, module.alpha, module.rslora, module.groups)
        return DoRA(weight, values["magnitude"]) if "magnitude" in values else weight

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update."""
        from lora_tools.update import DoRA, factors

        low = factors(update)
        pair = (low.b, low.a) if isinstance(module.site, Experts) else (low.b.T, low.a.T)
        values: dict[Role, Array] = dict(zip(("b", "a"), pair, strict=True))
        if isinstance(update, DoRA):
            shape = module.parts["magnitude"].spec.shape
            values["magnitude"] = update.magnitude.reshape(shape)
        return {module.parts[role].key: value for role, value in values.items()}


def _module(key_prefix: str, parts: dict[Role, Part], scale: float) -> Module:
    if not {"a", "b"} <= parts.keys():
        raise FormatError(f"{key_prefix} has no lora_{'b' if 'a' in parts else 'a'}")
    a, b = parts["a"].spec.shape, parts["b"].spec.shape
    site: Site = Embedding() if is_embedding(key_prefix) else Linear()
    if len(a) == 3 and len(b) == 3 and (a[0], a[1]) == (b[0], b[2]):
        site = Experts(EXPERT.removeprefix("."), a[0])
        name, rank, out, inp = key_prefix + EXPERT, a[1], b[1], a[2]
    elif len(a) == 2 and len(b) == 2 and a[1] == b[0]:
        name, rank, out, inp = key_prefix, a[1], b[1], a[0]
    else:
        raise FormatError(
            f"{key_prefix}: lora_a {list(a)} and lora_b {list(b)} are no pair of factors"
        )
    if min(rank, out, inp) < 1:
        raise FormatError(f"{key_prefix}: empty factors")
    if "magnitude" in parts:
        if isinstance(site, Embedding):
            raise UnsupportedError(f"{key_prefix}: DoRA of an embedding, with a norm for each word")
        if parts["magnitude"].spec.shape != (out,):
            raise FormatError(f"{key_prefix}: m {list(parts['magnitude'].spec.shape)} does not fit")
    alpha = alpha_for(scale, rank, rslora=False)
    parts = {role: parts[role] for role in SUFFIX if role in parts}  # whatever order the file has
    return Module(name, site, out, inp, rank, alpha, False, parts, key_prefix, name)


def _rekeyed(module: Module) -> Module:
    key_prefix = (
        module.name.removesuffix(EXPERT) if isinstance(module.site, Experts) else module.name
    )
    rank, out, inp = module.rank, module.out, module.inp
    shapes: dict[Role, tuple[int, ...]] = {"a": (inp, rank), "b": (rank, out), "magnitude": (out,)}
    if isinstance(module.site, Experts):
        count = module.site.count
        shapes |= {"a": (count, rank, inp), "b": (count, out, rank)}
    parts = {
        role: Part(key_prefix + SUFFIX[role], Spec(part.spec.dtype, shapes[role]))
        for role, part in module.parts.items()
        if role in SUFFIX
    }
    return replace(module, parts=parts, key_prefix=key_prefix)


def _layer_key(module: Module) -> str:
    """Return what mlx-lm targets a layer by: its path in its block, or in the model."""
    return re.sub(r"^.*\.layers\.\d+\.", "", module.key_prefix)


def _is_switch(module: Module) -> bool:
    return module.name.endswith(EXPERT) and "switch" in module.name


def _is_gguf(key: str) -> bool:
    return key.endswith((".weight.lora_a", ".weight.lora_b"))


def _notes(parameters: Fields) -> tuple[str, ...]:
    if "alpha" not in parameters.values:
        return ()
    alpha = shown(parameters.values["alpha"])
    return (f"lora_parameters has an alpha, {alpha}, which MLX-LM does not read.",)
