"""PEFT's adapter_config.json: what its fields mean for the tensors, and how they are written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lora_tools.architectures.conventions import HEADS
from lora_tools.errors import FormatError
from lora_tools.files.typed import Fields, is_count, is_number, shown
from lora_tools.formats.expressions import Clock, Expression, check_name
from lora_tools.formats.manifest import Module
from lora_tools.formats.patterns import Patterns, Segments, Suffixes, number, write_pattern
from lora_tools.formats.sites import Experts, Linear

CONFIG = "adapter_config.json"
LAYER = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")
"""Where PEFT finds the number of a layer if nobody says."""

# Read in peft 0.21.2 (`tuners/lora/config.py`, `utils/other.py`, `tuners/tuners_utils.py`).
DEFAULT_RANK = 8
DEFAULT_ALPHA = 8
ADALORA = "ADALORA"
SCHEDULE = frozenset(
    {
        "beta1",
        "beta2",
        "deltaT",
        "init_r",
        "orth_reg_weight",
        "target_r",
        "tfinal",
        "tinit",
        "total_step",
    }
)
"""Fields of AdaLoRA that a configuration of LoRA does not have."""

# Read in unsloth_zoo's pull requests 1232 and 1269: until 2026.9 it trained stacked experts with a
# B in another order than PEFT's, and said so in no file; since then its configurations name it.
LAYOUT, RANK_MAJOR, BY_EXPERT = "lora_B_layout", "rank_major", "grouped_by_expert"


@dataclass(frozen=True)
class PeftConfig:
    """The fields that give tensors their meaning, with PEFT's defaults for absent ones.

    Each is read when it is first asked for, once. Raises `FormatError`, with file, field and value,
    for those that are not of their type and for expressions that are none, or take too long.
    """

    raw: Mapping[str, Any]
    where: str = CONFIG
    """What to call it in messages."""

    @property
    def fields(self) -> Fields:
        """The fields, each read by its type."""
        return Fields(self.where, self.raw)

    @cached_property
    def rslora(self) -> bool:
        """Whether alpha is divided by the square root of the rank."""
        return self.fields.flag("use_rslora")

    @cached_property
    def dora(self) -> bool:
        """Whether modules have a magnitude vector."""
        return self.fields.flag("use_dora")

    @cached_property
    def transposed(self) -> bool:
        """Whether targeted linear weights are stored as (in, out)."""
        return self.fields.flag("fan_in_fan_out")

    @cached_property
    def tying(self) -> bool:
        """Whether what is trained of a tied embedding is meant for the head, too."""
        return self.fields.flag("ensure_weight_tying")

    @cached_property
    def lora_bias(self) -> bool:
        """Whether B has a bias."""
        return self.fields.flag("lora_bias")

    @cached_property
    def target_parameters(self) -> list[str]:
        """Parameters that are adapted directly, as suffixes of their paths."""
        return list(self.fields.texts("target_parameters"))

    @cached_property
    def ranks(self) -> Patterns:
        """The ranks of modules that differ from the others'."""
        return self._patterns("rank_pattern")

    @cached_property
    def alphas(self) -> Patterns:
        """The alphas of modules that differ from the others'."""
        return self._patterns("alpha_pattern")

    @cached_property
    def targeted(self) -> Suffixes | Expression:
        """The names of the modules that have an adapter."""
        return self._names("target_modules")

    @cached_property
    def excluded(self) -> Suffixes | Expression:
        """The names of those that have none all the same."""
        return self._names("exclude_modules")

    @cached_property
    def saved(self) -> Segments:
        """What is stored in full."""
        field = "modules_to_save"
        return Segments(self.fields.texts(field), f"{self.where}: {field}")

    @cached_property
    def layers(self) -> tuple[Expression, ...]:
        """How the number of a layer is found in a path."""
        field = "layers_pattern"
        found = self.fields.names(field)
        clock = Clock(f"{self.where}: {field}")
        around = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."
        names = (found,) if isinstance(found, str) and found else found
        return tuple(Expression(name, clock, around) for name in names)

    def rank(self, path: str) -> int:
        """Return the rank of the module at ``path``."""
        value = self.ranks.value(path)
        if value is None:
            value = self.raw.get("r", DEFAULT_RANK)
        if not is_number(value):
            raise FormatError(f"{self.where}: {shown(value)} is not a rank")
        return int(value)

    def alpha(self, path: str) -> float:
        """Return the alpha of the module at ``path``."""
        value = self.alphas.value(path)
        if value is None:
            value = self.raw.get("lora_alpha", DEFAULT_ALPHA)
        if not is_number(value):
            raise FormatError(f"{self.where}: {shown(value)} is not a number for alpha")
        return float(value)

    def tokens(self, path: str) -> tuple[int, ...]:
        """Return the rows of the embedding at ``path`` that were trained; none if it is silent."""
        wanted = self.raw.get("trainable_token_indices") or ()
        if isinstance(wanted, Mapping):
            names = tuple(wanted)
            first = Suffixes(names).first(path)
            wanted = () if first is None else wanted[names[first]]
        if not isinstance(wanted, list | tuple) or not all(map(is_count, wanted)):
            raise self.fields.refusal("trainable_token_indices", "rows of an embedding")
        return tuple(int(row) for row in wanted)

    def grouped(self, path: str) -> bool:
        """Whether a stack's B has its columns by expert, as Unsloth has trained it.

        Raises `FormatError` where Unsloth wrote it and does not say.
        """
        stated = self.fields.text(LAYOUT)
        if stated in (RANK_MAJOR, BY_EXPERT):
            return stated == BY_EXPERT
        if stated is None and not self.fields.mapping("auto_mapping").values.get("unsloth_fixed"):
            return False
        raise FormatError(
            f"{path}: Unsloth saved these experts, and the order of B's columns was another before"
            f' unsloth_zoo 2026.9.6: set "{LAYOUT}" in {self.where} to "{BY_EXPERT}" if it was'
            f' trained with an older one, else to "{RANK_MAJOR}"'
        )

    def saves(self, path: str) -> bool:
        """Whether ``path`` is or lies in one of ``modules_to_save``."""
        return self.saved.match(path)

    def targets(self, path: str) -> bool:
        """Whether PEFT would give the module at ``path`` an adapter."""
        if _means(self.excluded, path) or self.saves(path):
            return False
        if self.tying and path.rpartition(".")[2] in HEADS:
            return True  # with the embedding, where the base ties the two
        wanted = self.raw.get("target_modules")
        if wanted is None and not self.target_parameters:
            return True  # PEFT knows targets for each architecture
        if wanted == "all-linear":
            return True
        if isinstance(self.targeted, Expression) or path in self.targeted:
            return _means(self.targeted, path)  # a full name is meant, in whatever layer
        return _means(self.targeted, path) and self._in_layers(path)

    def _in_layers(self, path: str) -> bool:
        layers = self.raw.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        check_name(path, f"{self.where}: layers_to_transform")
        matches = (expression.match(path) for expression in self.layers)
        found = next(filter(None, matches), None) if self.layers else LAYER.match(path)
        wanted = [layers] if isinstance(layers, int) else layers
        return found is not None and int(found["idx"]) in wanted

    def _patterns(self, field: str) -> Patterns:
        return Patterns(self.fields.mapping(field).values, f"{self.where}: {field}")

    def _names(self, field: str) -> Suffixes | Expression:
        found = self.fields.names(field)
        if isinstance(found, str):
            return Expression(found, Clock(f"{self.where}: {field}"))
        return Suffixes(found)


def write_config(
    config: Mapping[str, Any],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    *,
    rslora: bool,
) -> dict[str, Any]:
    """Return ``config`` for modules with these ranks and alphas, everything else kept.

    The general rank is the largest (servers size their buffers by it), the general alpha the one
    of that rank; patterns name the modules that differ, and only those.
    """
    rank = max(ranks.values())
    alpha = next(alphas[name] for name in ranks if ranks[name] == rank)
    pruned = config.get("peft_type") == ADALORA
    written = {key: value for key, value in config.items() if not (pruned and key in SCHEDULE)}
    written |= {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": number(alpha),
        "rank_pattern": write_pattern(ranks, rank),
        "alpha_pattern": write_pattern(alphas, alpha),
        "use_rslora": rslora,
    }
    if isinstance(config.get("init_lora_weights"), str):
        # Initialisers run again when an adapter is loaded, and some refuse ranks or need a base.
        written |= {"init_lora_weights": True, "eva_config": None}
    return dict(sorted(written.items()))


def config_of(modules: Sequence[Module], base: str | None) -> dict[str, Any]:
    """Return a configuration for modules that came without one.

    Every target is named in full: an ending such as ``q_proj`` would target layers, too, that
    the adapter does not have.
    """
    owners = dict.fromkeys(m.owner for m in modules if not isinstance(m.site, Experts))
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": any(m.site == Linear(transposed=True) for m in modules),
        "inference_mode": True,
        "lora_bias": any("bias" in m.parts for m in modules),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "target_modules": list(owners),
        "target_parameters": [m.name for m in modules if isinstance(m.site, Experts)] or None,
        "task_type": None,
        "use_dora": any("magnitude" in m.parts for m in modules),
    }


def retargeted(config: Mapping[str, Any], modules: Sequence[Module]) -> dict[str, Any]:
    """Return the fields that say which modules have an adapter, for these and no others."""
    fresh = config_of(modules, None)
    others = ("exclude_modules", "layers_pattern", "layers_to_transform")
    targets = {field: fresh[field] for field in ("target_modules", "target_parameters")}
    return targets | {field: None for field in others if field in config}


def base_model(config: Mapping[str, Any]) -> str | None:
    """Return the name or path of the base model, if the configuration has one."""
    return Fields(CONFIG, config).text("base_model_name_or_path") or None


def _means(names: Suffixes | Expression, path: str) -> bool:
    if isinstance(names, Expression):
        return bool(names.text) and names.is_whole(path)
    return names.first(path) is not None
