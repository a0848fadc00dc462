"""Hugging Face PEFT: ``base_model.model.<module>.lora_A.weight`` and adapter_config.json."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.architectures.family import NATIVE
from lora_tools.architectures.pipelines import components
from lora_tools.errors import FormatError
from lora_tools.files.container import SAFETENSORS, Container
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.features import COPY, check_uniform
from lora_tools.formats.folding import fold, unfold
from lora_tools.formats.manifest import MISFIT, Extra, Manifest, Module, Role
from lora_tools.formats.numbers import widened
from lora_tools.formats.peft.adalora import is_adalora, read_adalora
from lora_tools.formats.peft.bare import stated_config
from lora_tools.formats.peft.checks import check_types, check_variant
from lora_tools.formats.peft.config import (
    ADALORA,
    LAYOUT,
    RANK_MAJOR,
    base_model,
    config_of,
    retargeted,
    write_config,
)
from lora_tools.formats.peft.extras import extras_of, saved
from lora_tools.formats.peft.fresh import (
    STACKS_SINCE,
    extra_key,
    fresh_config,
    key_prefixes,
    targeted,
)
from lora_tools.formats.peft.keys import (
    LORA_KEY,
    PREFIX,
    KeyGroup,
    collect,
    path_of,
)
from lora_tools.formats.peft.modules import module_of, parameters
from lora_tools.formats.peft.moving import moved_extra, moved_module, prefixed, renamed_fields
from lora_tools.formats.sites import Embedding, Experts
from lora_tools.scaling import alpha_for

if TYPE_CHECKING:
    from lora_tools.update import Array, Update


class Peft:
    """The format of `peft`'s LoRA, as of 0.21 and back to 2023."""

    name = "peft"
    about = "Hugging Face PEFT"
    supports: frozenset[str] | None = frozenset(
        {
            "embedding",
            "convolution",
            "experts",
            "transposed",
            "DoRA",
            "bias",
            "modules_to_save",
            "trainable tokens",
            "full weight",
            COPY,
        }
    )
    container: Container = SAFETENSORS
    names: Names = "diffusers"
    files: tuple[str, ...] = ("adapter_model.safetensors", "adapter_model.bin")
    config_file: str | None = "adapter_config.json"

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise PEFT by its configuration or by its prefix before a LoRA suffix.

        torchtune writes that configuration beside its own tensors, too, in small letters.
        """
        if any(key.endswith((".lora_a.weight", ".lora_b.weight")) for key in specs):
            return False
        if config is not None and ("peft_type" in config or {"r", "lora_alpha"} <= config.keys()):
            return True
        paths = [
            path_of(found["key_prefix"])
            for key in specs
            if key.startswith(PREFIX) and (found := LORA_KEY.fullmatch(key))
        ]
        own = components(paths)
        others = ("", NATIVE[:-1], "text_encoder")
        return any(own.get(path, "") in others for path in paths)

    def read(self, contents: Contents) -> Manifest:
        """Describe a PEFT adapter; its alphas are in the configuration, in no tensor.

        Raises `UnsupportedError` for variants that are not sums of matrices, and `FormatError`
        where the configuration is none. Tensors that contradict it are among the extras.
        """
        config, specs = contents.config, contents.specs
        if config is None:
            config = stated_config(contents)
        if is_adalora(contents):
            return read_adalora(self.name, contents)
        check_variant(config)
        peft = check_types(config)
        found, rest = collect(specs)
        if not found:
            raise FormatError("no tensor is named like a LoRA factor of PEFT")
        modules, problems, misfits = [], [], []
        adapted = parameters(found, peft)
        for key_prefix, (parts, embedding) in found.items():
            try:
                modules.append(
                    module_of(key_prefix, parts, embedding, adapted.get(key_prefix), peft)
                )
            except FormatError as error:
                problems.append(str(error))
                misfits += [part.key for part in parts.values()]
        counts = Counter(module.name for module in modules)
        problems += [f"{name} has two pairs of factors" for name in counts if counts[name] > 1]
        orphans = [key for key in rest if "lora_" in key]
        problems += [f"{key} is not understood" for key in orphans]
        unknown = {*orphans, *misfits}
        extras = tuple(Extra(key, specs[key], MISFIT) for key in [*misfits, *orphans])
        extras += extras_of([key for key in rest if key not in unknown], specs, peft)
        return Manifest(
            self.name,
            tuple(modules),
            extras,
            config,
            contents.metadata,
            base_model(config),
            tuple(_notes(modules, found)),
            tuple(problems),
        )

    def start(
        self,
        modules: Sequence[Module],
        others: Collection[str],
        full: Sequence[Extra] = (),
        base_model: str | None = None,
        *,
        tying: bool = False,
    ) -> Manifest:
        """Describe a new adapter of these modules, in the safe profile.

        ``others`` are the modules of the base that it leaves alone; ``full`` are tensors of the
        base, by name, that it replaces: of kind ``bias`` or ``modules_to_save``. With ``tying``,
        one that the base ties to another replaces both. The modules keep their order, and perhaps
        not their names: see `targeted`.
        """
        modules = targeted(modules, others)
        names = key_prefixes(modules)
        named = tuple(replace(module, key_prefix=names[module.name]) for module in modules)
        adapted = {module.name for module in modules}
        extras = tuple(
            extra._replace(key=extra_key(extra.key, extra.kind, adapted)) for extra in full
        )
        config = fresh_config(modules, others, extras, base_model)
        config |= {"ensure_weight_tying": True} if tying else {}
        return self.write(Manifest(self.name, named, extras, config, {}, base_model))

    def write(self, manifest: Manifest) -> Manifest:
        """Name the keys as `peft.save_pretrained` would, with the configuration that fits them."""
        given = manifest.modules
        stacks = [m.name.rpartition(".")[0] for m in given if _is_new_stack(m)]
        if manifest.config and stacks:
            given = targeted(given, stacks)
        names = key_prefixes(given)
        modules = tuple(
            prefixed(m, names[m.name] if _is_new_stack(m) else m.key_prefix) for m in given
        )
        if not manifest.config:
            check_uniform((m for m in modules if not isinstance(m.site, Embedding)), "PEFT")
        rslora = any(module.rslora for module in modules)
        config = write_config(
            manifest.config or config_of(modules, manifest.base_model),
            {module.owner: module.r for module in modules},
            {module.owner: _alpha(module, rslora=rslora) for module in modules},
            rslora=rslora,
        )
        pruned = manifest.config.get("peft_type") == ADALORA
        if pruned or isinstance(config.get("target_modules"), str):
            # A regex or "all-linear": servers read lists only. AdaLoRA may have left targets none.
            owners = (m.owner for m in modules if not isinstance(m.site, Experts))
            config["target_modules"] = list(dict.fromkeys(owners))
        if LAYOUT in config:
            config[LAYOUT] = RANK_MAJOR
        if manifest.changed and manifest.config:
            config |= retargeted(config, modules)
            if stacks:
                # The layout is that of this version, whose wrapped parameters have no dropout.
                config |= {"peft_version": STACKS_SINCE, "lora_dropout": 0.0}
        for field, role in PARTS.items():  # what was left out, PEFT would make anew
            if config.get(field) and not any(role in module.parts for module in modules):
                config[field] = False
        metadata = {"format": "pt"} | dict(manifest.metadata)
        return replace(
            manifest,
            format=self.name,
            modules=modules,
            extras=tuple(map(saved, manifest.extras)),
            config=config,
            metadata=metadata,
        )

    def moved(self, manifest: Manifest, names: Mapping[str, str]) -> Manifest:
        """Return an adapter with modules and other tensors under other names of the base's.

        ``names`` has the new name of each module, and of each tensor of the base that another
        tensor stands for; those that it lacks stay.
        """
        modules = tuple(moved_module(m, names.get(m.name, m.name)) for m in manifest.modules)
        extras = tuple(moved_extra(e, names.get(e.name, e.name)) for e in manifest.extras)
        paths = {
            old.name.rpartition(".")[0]: new.name.rpartition(".")[0]
            for old, new in zip(manifest.extras, extras, strict=True)
        }
        config = renamed_fields(manifest.config, paths)
        return replace(manifest, modules=modules, extras=extras, config=config, changed=True)

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file."""
        from lora_tools.update import Biased, DoRA, LowRank  # numpy is not needed for headers

        values = {role: tensors[part.key] for role, part in module.parts.items()}
        if "lora_E" in values:
            values["a"] = widened(values["lora_E"]) * widened(values["a"])
        b, a = values["b"], values["a"]
        if module.fused is not None:
            b, a = module.fused.factors(b, a)
        b, a = unfold(module, b, a)
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
                values["magnitude"] = magnitude.reshape(module.parts["magnitude"].spec.shape)
            case Biased(bias=bias):
                values["bias"] = bias
        return {module.parts[role].key: value for role, value in values.items()}


PARTS: Mapping[str, Role] = {"use_dora": "magnitude", "lora_bias": "bias"}
"""Fields that say that modules have a part."""


def _alpha(module: Module, *, rslora: bool) -> float:
    """Return the alpha that keeps the module's scale: its own wherever that says it."""
    if module.alpha is not None and module.rslora == rslora:
        return module.alpha
    return alpha_for(module.scale, module.r, rslora=rslora)


def _notes(modules: Iterable[Module], found: Mapping[str, KeyGroup]) -> Iterator[str]:
    if any("magnitude" in module.parts for module in modules):
        yield (
            "DoRA: errors are those of the low-rank direction, before the base weight and the"
            " magnitude vector normalise it."
        )
    bare = [key_prefix for key_prefix in found if not key_prefix.startswith(PREFIX)]
    if bare:
        yield f"{len(bare)} names lack PEFT's prefix {PREFIX!r}; what is written has it."


def _is_new_stack(module: Module) -> bool:
    """Whether a stack has no place among PEFT's wrappers yet, whose names lack the parameter."""
    return isinstance(module.site, Experts) and module.key_prefix == module.name
