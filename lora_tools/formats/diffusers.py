"""diffusers: ``unet.<path>.lora_A.weight`` with a configuration in the header, and older ways."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_tools.architectures.conventions import WRAPPED_ENCODER
from lora_tools.architectures.family import NATIVE
from lora_tools.architectures.pipelines import components, split
from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.container import SAFETENSORS, Container
from lora_tools.files.header import Spec
from lora_tools.files.objects import json_object
from lora_tools.files.typed import Fields
from lora_tools.formats.algorithms import update, values_of
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.features import check_uniform
from lora_tools.formats.keyed import described, rekeyed
from lora_tools.formats.manifest import Manifest, Module, Part, Role
from lora_tools.formats.patterns import Patterns, number, write_pattern
from lora_tools.formats.suffixes import collect, suffix_of
from lora_tools.scaling import alpha_for

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

PEFT = "base_model.model."
"""What peft puts before the paths of a diffusion model that it saved itself."""

CONFIG = "lora_adapter_metadata"
"""The header's field that has the configurations of all components, in JSON."""

DEFAULT_ALPHA = 8
"""PEFT's own, where a configuration has none."""

SUFFIX: dict[Role, str] = {
    "a": ".lora_A.weight",
    "b": ".lora_B.weight",
    "bias": ".lora_B.bias",
    "magnitude": ".lora_magnitude_vector",
}
STRANGE = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Fields of a configuration under which a module is no sum of matrices."""

OMI = re.compile(r"\.(qkv|linear1)\.\d+\.lora_(down|up)\.weight$")
"""Parts of a fused layer by number, which is how the Open Model Initiative's files name them."""


class Diffusers:
    """The format of `save_lora_weights`, and those that diffusers still loads."""

    name = "diffusers"
    about = "Hugging Face diffusers"
    supports: frozenset[str] | None = frozenset({"convolution", "DoRA", "bias"})
    container: Container = SAFETENSORS
    names: Names = "diffusers"
    files: tuple[str, ...] = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
    config_file: str | None = None

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise diffusers by a pipeline's component, or a diffusion model's path, and a suffix.

        OMI's names begin with a component, too, and are no paths of a model.
        """
        if (config is not None and "peft_type" in config) or any(map(OMI.search, specs)):
            return False
        key_prefixes = {key.removesuffix(suffix) for key in specs if (suffix := suffix_of(key))}
        return bool(_names(key_prefixes))

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter. Without a configuration and without alphas, the scale is 1."""
        found = collect(contents.specs)
        configs = _configs(contents.metadata)
        modules = tuple(
            _configured(module, configs)
            for module in described(found.modules, _names(found.modules).get, contents.scalars)
        )
        notes = tuple(_notes(modules, configs))
        return Manifest(self.name, modules, found.extras, {}, contents.metadata, None, notes)

    def write(self, manifest: Manifest) -> Manifest:
        """Name the keys of modules as `save_lora_weights` does, with their alphas in the header."""
        own = components(module.name for module in manifest.modules)
        named = [(module, _component(module.name, own)) for module in manifest.modules]
        if unmatched := [module.name for module, component in named if not component]:
            raise UnsupportedError(f"these are not in diffusers' names: {some(unmatched)}")
        rslora = {
            component: any(module.rslora for module, of in named if of == component)
            for component in dict.fromkeys(of for _, of in named)
        }
        modules = tuple(_rekeyed(m, str(of), rslora=rslora[of]) for m, of in named)
        old = _configs(manifest.metadata)
        fields: dict[str, Any] = {}
        for component in rslora:
            mine = [m for m, (_, of) in zip(modules, named, strict=True) if of == component]
            check_uniform(mine, f"diffusers' {component}")
            its = old.get(str(component)) or old.get(MODEL)
            config = dict(its.fields.values if its else {}) | _config(str(component), mine)
            fields |= {f"{component}.{field}": value for field, value in config.items()}
        text = json.dumps(fields, indent=2, sort_keys=True)
        metadata = {"format": "pt"} | dict(manifest.metadata) | {CONFIG: text}
        return replace(manifest, format=self.name, modules=modules, config={}, metadata=metadata)

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file."""
        return update(module, tensors)

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update."""
        values = values_of(module, update)
        return {module.parts[role].key: value for role, value in values.items()}


def _names(key_prefixes: Collection[str]) -> dict[str, str]:
    """Return the names of those modules that diffusers loads, whichever way it has named them."""
    halves = {key_prefix: split(key_prefix.removeprefix(PEFT)) for key_prefix in key_prefixes}
    own = components(_dotted(path) for word, path in halves.values() if not word)
    found: dict[str, str] = {}
    for key_prefix, (word, path) in halves.items():
        path = _dotted(path)
        component = word or own.get(path, "")
        if component == NATIVE[:-1] or (not word and component.startswith("text_encoder")):
            continue
        if component.startswith("text_encoder"):
            path = re.sub(r"\.to_([qkv])$", r".\1_proj", path)
            path = re.sub(r"\.to_out$", ".out_proj", path)
        if component:
            found[key_prefix] = f"{component}.{path}"
    return found


def _dotted(path: str) -> str:
    """Return the path of a module that a processor of attention stands for."""
    if ".processor." not in path:
        return path
    return re.sub(r"\.to_out$", ".to_out.0", path.replace(".processor.", "."))


def _component(name: str, own: Mapping[str, str]) -> str | None:
    component = split(name)[0] or own.get(name, "")
    return component if component and component != NATIVE[:-1] else None


MODEL = ""
"""The component of a header that is of one model, not of a pipeline."""


class Config(NamedTuple):
    """What the header says of a component, its patterns read once."""

    fields: Fields
    ranks: Patterns
    alphas: Patterns


def _configs(metadata: Mapping[str, str]) -> dict[str, Config]:
    where = f"the header's {CONFIG}"
    fields = json_object(metadata.get(CONFIG, "{}"), where, FormatError)
    found: dict[str, dict[str, Any]] = {}
    for key, value in fields.items():
        component, dot, field = key.partition(".")
        if not dot:  # `save_lora_adapter` of one model, whose names have no component either
            component, field = MODEL, key
        found.setdefault(component, {})[field] = value
    for component, config in found.items():
        if strange := [field for field in STRANGE if config.get(field)]:
            raise UnsupportedError(f"{component}: {', '.join(strange)}: no sum of matrices")
    return {component: _read(where, component, config) for component, config in found.items()}


def _read(where: str, component: str, config: dict[str, Any]) -> Config:
    fields = Fields(where, config, above=f"{component}." if component else "")
    ranks, alphas = fields.mapping("rank_pattern"), fields.mapping("alpha_pattern")
    for key in ranks.values:
        ranks.count(key)
    for key in alphas.values:
        alphas.number(key)
    called = f"{where}: {component}." if component else f"{where}: "
    return Config(
        fields,
        Patterns(ranks.values, f"{called}rank_pattern"),
        Patterns(alphas.values, f"{called}alpha_pattern"),
    )


def _configured(module: Module, configs: Mapping[str, Config]) -> Module:
    """Give a module the alpha that its component's configuration has for it, if there is one."""
    component, path = split(module.name)
    config = configs.get(component) or configs.get(MODEL)
    if "alpha" in module.parts or config is None:
        return module
    fields, ranks, alphas = config
    rank = ranks.value(path) or fields.count("r")
    if rank is not None and rank != module.r:
        raise FormatError(f"{module.name}: rank {module.r}, but {rank} in the header")
    if fields.flag("use_dora") != ("magnitude" in module.parts):
        raise FormatError(f"{module.name}: use_dora and the tensors contradict each other")
    alpha = alphas.value(path)
    alpha = fields.number("lora_alpha") if alpha is None else alpha
    return replace(
        module,
        alpha=float(DEFAULT_ALPHA if alpha is None else alpha),
        rslora=fields.flag("use_rslora"),
    )


def _config(component: str, modules: list[Module]) -> dict[str, Any]:
    paths = {
        m.name: m.key_prefix.removeprefix(f"{component}.").removeprefix(WRAPPED_ENCODER)
        for m in modules
    }  # peft finds a layer by the end of its path
    ranks: dict[str, float] = {paths[m.name]: m.r for m in modules}
    alphas = {paths[m.name]: m.alpha or 0.0 for m in modules}
    rank = max(ranks.values())
    alpha = next(alphas[path] for path in ranks if ranks[path] == rank)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": number(alpha),
        "rank_pattern": write_pattern(ranks, rank),
        "alpha_pattern": write_pattern(alphas, alpha),
        "target_modules": sorted(paths.values()),
        "use_rslora": modules[0].rslora,
        "use_dora": any("magnitude" in m.parts for m in modules),
        "lora_bias": any("bias" in m.parts for m in modules),
        "bias": "none",
    }


def _rekeyed(module: Module, component: str, *, rslora: bool) -> Module:
    alpha = module.alpha
    if alpha is None or module.rslora != rslora:
        alpha = alpha_for(module.scale, module.r, rslora=rslora)
    rekeyed_module = rekeyed(module, f"{component}.{split(module.name)[1]}", SUFFIX)
    parts = dict(rekeyed_module.parts)
    if "magnitude" in parts:  # as peft has it
        key, spec = parts["magnitude"]
        rest = spec.shape[2:]
        shape = (1, spec.shape[0], *rest) if rest else (spec.shape[0],)
        parts["magnitude"] = Part(key, Spec(spec.dtype, shape))
    return replace(rekeyed_module, parts=parts, alpha=alpha, rslora=rslora)


def _notes(modules: Sequence[Module], configs: Mapping[str, Any]) -> Iterator[str]:
    bare = [m for m in modules if m.alpha is None]
    if bare and not configs:
        yield f"{len(bare)} modules have no alpha: their scale is 1, as diffusers reads them."
