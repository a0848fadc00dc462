"""The rules there are: ours, and those of other packages."""

from functools import cache

from lora_tools.errors import PackageError, PolicyError
from lora_tools.rules.cores import core_ties, iso, knots, tsv
from lora_tools.rules.elementwise import dare, dare_ties, magnitude, ties
from lora_tools.rules.rule import Rule

RULES = (
    Rule("ties", "trim, elect signs, average (Yadav et al. 2023)", "dense", ties),
    Rule("dare", "drop at random, rescale, add (Yu et al. 2023)", "dense", dare),
    Rule("dare-ties", "drop at random, elect signs, average (Yu et al. 2023)", "dense", dare_ties),
    Rule("magnitude", "trim by magnitude, add", "dense", magnitude),
    Rule("knots", "align by one SVD, then TIES (Stoica et al. 2024)", "rows", knots),
    Rule("tsv", "leading vectors, made orthonormal (Gargiulo et al. 2025)", "core", tsv),
    Rule("iso", "one singular value for all (Marczak et al. 2025)", "core", iso),
    Rule("core-ties", "TIES in core space (Panariello et al. 2025)", "core", core_ties),
)

PLUGINS = "lora_tools.rules"
"""The group of entry points under which other packages offer rules."""


def rule_named(name: str) -> Rule:
    """Return the rule of a name; `PolicyError` if there is none."""
    known = {rule.name: rule for rule in RULES}
    if name not in known:
        known |= {rule.name: rule for rule in plugins()}
    if name not in known:
        raise PolicyError(f"there is no method {name}").hint(
            f"Methods: concat, {', '.join(known)}."
        )
    return known[name]


@cache
def plugins() -> tuple[Rule, ...]:
    """Return the rules of other packages. Raises `PackageError` for one that cannot be loaded."""
    from importlib.metadata import entry_points  # takes as long as a small command

    rules = []
    for entry in entry_points(group=PLUGINS):
        try:
            rule = entry.load()
        except Exception as error:  # anybody's code
            raise PackageError(
                f"{entry.value}: the rule {entry.name} of another package cannot be loaded"
                f" ({type(error).__name__}: {error})"
            ).hint("Update that package, or uninstall it.") from error
        if not isinstance(rule, Rule):
            raise PackageError(f"{entry.value}: {entry.name} is no rule")
        rules.append(rule)
    return tuple(rules)
