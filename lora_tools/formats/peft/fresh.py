"""The configuration of an adapter that PEFT did not make: the safe profile, and exact targets."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from lora_tools.architectures.conventions import EXPERT_PARAMETERS, RENAMED_EXPERTS, ROUTERS
from lora_tools.formats.manifest import Extra, Module
from lora_tools.formats.patterns import Suffixes
from lora_tools.formats.peft.keys import PREFIX, WRAPPED
from lora_tools.formats.sites import Experts, Linear

STACKS_SINCE = "0.19.1"
"""The version of PEFT since which the A of a stack of experts reads their input."""


def targeted(modules: Sequence[Module], others: Collection[str]) -> tuple[Module, ...]:
    """Return the modules as PEFT can target them in a base that has ``others``, too.

    Where experts are stacked, PEFT 0.19 and later read ``down_proj`` among the targets as the
    stack's (`_convert_peft_config_moe`). A layer of that name, as the experts' shared one, is
    adapted by its parameter; so is a router, which is no layer there.
    """
    if not any(name.endswith(".experts") for name in others):
        return tuple(modules)
    return tuple(
        replace(m, name=f"{m.name}.weight", owner=f"{m.name}.weight", site=Experts("weight", 1))
        if m.site == Linear() and _leaf(m.name) in RENAMED_EXPERTS | ROUTERS
        else m
        for m in modules
    )


def fresh_config(
    modules: Sequence[Module],
    others: Collection[str],
    extras: Sequence[Extra],
    base_model: str | None,
) -> dict[str, Any]:
    """Return the configuration under which PEFT adapts these modules of a base, and no others.

    ``others`` are the base's further modules. Ranks and alphas are not in it yet.
    """
    names = [module.name for module in modules if not isinstance(module.site, Experts)]
    targets = target_modules(names, others)
    selected = Suffixes(targets)
    excluded = [other for other in others if selected.first(other) is not None]
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "target_modules": targets,
        "exclude_modules": sorted(excluded) or None,
        "target_parameters": sorted(m.name for m in modules if isinstance(m.site, Experts)) or None,
        "modules_to_save": _saved(extras) or None,
        "bias": "all" if any(extra.kind == "bias" for extra in extras) else "none",
        "fan_in_fan_out": any(m.site == Linear(transposed=True) for m in modules),
        "init_lora_weights": True,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "task_type": None,
        **({"peft_version": STACKS_SINCE} if len(names) < len(modules) else {}),
    }


def target_modules(names: Sequence[str], others: Collection[str]) -> list[str]:
    """Return last names where all modules of that name are meant, and full names elsewhere.

    A number is no name: beside the layers that have weights, others may have it that have none.

    >>> target_modules(["l.0.q", "l.1.q", "l.0.v", "mlp.2"], ["l.1.v"])
    ['l.0.v', 'mlp.2', 'q']
    """
    foreign = {_leaf(other) for other in others}
    leaves = {_leaf(name) for name in names}
    short = {leaf for leaf in leaves - foreign if not leaf.isdigit()}
    return sorted({_leaf(name) if _leaf(name) in short else name for name in names})


def key_prefixes(modules: Sequence[Module]) -> dict[str, str]:
    """Return what PEFT puts before ``.lora_A`` for each module.

    Wrappers of several parameters of one module nest, the first parameter innermost.
    """
    result = {module.name: PREFIX + module.name for module in modules}
    owners: dict[str, list[str]] = {}
    for module in modules:
        if isinstance(module.site, Experts):
            owner, _, parameter = module.name.rpartition(".")
            owners.setdefault(owner, []).append(parameter)
    for owner, parameters in owners.items():
        ordered = sorted(parameters, key=lambda name: (*EXPERT_PARAMETERS, name).index(name))
        for depth, parameter in enumerate(reversed(ordered)):
            result[f"{owner}.{parameter}"] = PREFIX + owner + WRAPPED * depth
    return result


def extra_key(name: str, kind: str, adapted: Collection[str]) -> str:
    """Return how PEFT calls a tensor that is stored in full."""
    module, _, parameter = name.rpartition(".")
    wrapped = WRAPPED if kind == "bias" and module in adapted else ""
    return f"{PREFIX}{module}{wrapped}.{parameter}"


def _saved(extras: Sequence[Extra]) -> list[str]:
    """Return the modules' names as they are: PEFT compares them with ends of names."""
    kept = (extra.key for extra in extras if extra.kind == "modules_to_save")
    return sorted({key.removeprefix(PREFIX).rpartition(".")[0] for key in kept})


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
