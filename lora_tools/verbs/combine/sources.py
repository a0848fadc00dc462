"""One source of several: every module, with the weighted updates that it is the sum of."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.address import Address
from lora_tools.files.dtypes import widest
from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Module, Part, Role
from lora_tools.formats.rotary import Paired
from lora_tools.formats.sites import Convolution, Linear, Site
from lora_tools.matching import Swap
from lora_tools.model import Model
from lora_tools.rewrite.aligned import aligned
from lora_tools.rewrite.bases import BaseWeights, base_weights
from lora_tools.rewrite.selection import weigh
from lora_tools.rewrite.source import Made, Source, Sum, Term
from lora_tools.rules import ParametrisedRule
from lora_tools.selection import check_weights, fitting
from lora_tools.verbs.combine.dialects import check_dialects
from lora_tools.verbs.combine.weights import Weights


def combined(
    sources: Sequence[Source],
    weights: Weights,
    rule: ParametrisedRule | None = None,
    base: Model | None = None,
) -> Source:
    """Return the source whose modules are the weighted sums of those of the sources.

    With a rule they are what it makes of the weighted updates instead.

    All are in one format. What stands before the names of one is brought to that of those before
    it, and a module that some have counts as zero in the others; at a weight of 0 it goes. Reads
    no tensor. Raises `FormatError` for modules of one name whose shapes differ, and
    `UnsupportedError` for DoRA, which is no summand unless its ``base`` is given: then it is what
    PEFT would add to that.
    """
    names, swaps = _names(sources)
    check_dialects(sources, names)
    found = [
        [replace(module, name=renamed[module.name]) for module in source.manifest.modules]
        for source, renamed in zip(sources, names, strict=True)
    ]
    check_weights(weights.modules, found)
    terms: dict[str, list[Term]] = {}
    for number, (source, modules) in enumerate(zip(sources, found, strict=True), 1):
        fits = fitting([each.pattern for each in weights.modules], modules)
        for module, named in zip(source.manifest.modules, modules, strict=True):
            name = named.name
            if weight := weights.of(number, name, fits):
                terms.setdefault(name, []).append(Term(source, module, weight, number))
    gone = tuple(dict.fromkeys(n for each in names for n in each.values() if n not in terms))
    if not terms:
        raise UnsupportedError("no module is left: every weight is 0")
    weighed = _weighed(terms, sources, base) if not _is_one(terms, rule) else None
    _check(terms, rule, weighed)
    first = sources[0]
    sums = {name: Sum(tuple(each), rule, weighed) for name, each in terms.items()}
    whole = tuple(_module(name, each) for name, each in sums.items())
    origins: dict[str, Made] = {**sums}
    same = {module.name for module in first.manifest.modules} == terms.keys()
    manifest = replace(
        first.manifest,
        modules=whole,
        notes=(*_notes(sources, swaps), *_distinct(sources)),
        changed=first.manifest.changed or not same,
    )
    return Source(
        first.adapter,
        first.format,
        manifest,
        origins,
        Address(
            _again, (weights, rule, base and base.address, *(source.address for source in sources))
        ),
        _dropped(sources, gone),
        removed={name: norm for source in sources for name, norm in source.removed.items()},
        others=tuple(adapter for s in sources[1:] for adapter in s.adapters),
    )


def _dropped(sources: Sequence[Source], gone: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what is left out of any source, by feature, and the modules that have no weight."""
    found: dict[str, dict[str, None]] = {}
    for source in sources:
        for feature, names in source.dropped.items():
            found.setdefault(feature, {}).update(dict.fromkeys(names))
    found |= {"module of weight 0": dict.fromkeys(gone)} if gone else {}
    return {feature: tuple(names) for feature, names in found.items()}


def _again(
    weights: Weights, rule: ParametrisedRule | None, base: Model | None, *sources: Source
) -> Source:
    """Combine sources for the jobs of another process."""
    return combined(sources, weights, rule, base)


def _is_one(terms: Mapping[str, Sequence[Term]], rule: ParametrisedRule | None) -> bool:
    """Whether every module is that of one adapter, as it is."""
    every = all(len(each) == 1 and each[0].weight == 1.0 for each in terms.values())
    return rule is None and every


def _weighed(
    terms: Mapping[str, Sequence[Term]], sources: Sequence[Source], base: Model | None
) -> BaseWeights | None:
    """Return the base weights of the modules that have DoRA, if a base is given.

    Raises `UnsupportedError` where the adapters name different ones, and for magnitudes per input.
    """
    dora = {name: [t for t in each if t.module.is_dora] for name, each in terms.items()}
    found = [term for each in dora.values() for term in each]
    if base is None or not found:
        return None
    stated = {s.manifest.base_model: s for s in sources if s.manifest.base_model}
    if len(stated) > 1:
        named = " and ".join(f"{source.path} of {name}" for name, source in stated.items())
        raise UnsupportedError(
            f"DoRA of different bases: {named}; what it adds to one has no meaning for another"
        ).hint("Leave the magnitudes out: --drop DoRA.")
    if odd := [term for term in found if "columns" in term.module.parts]:
        raise UnsupportedError(
            f"{odd[0].source.path}: {odd[0].module.name}: DoRA by input column, of which a merge is"
            " not defined as PEFT's is"
        ).hint("Leave the magnitudes out: --drop DoRA.")
    for source in {id(term.source): term.source for term in found}.values():
        source.adapter.check_order()
    modules = [replace(each[0].module, name=name) for name, each in dora.items() if each]
    return base_weights(sources[0].adapter, modules, base)


def _names(
    sources: Sequence[Source],
) -> tuple[list[dict[str, str]], list[tuple[Source, tuple[Swap, ...]]]]:
    """Return what the modules of each source are called in the result, and what changed."""
    known: dict[str, None] = {}
    found, swaps = [], []
    for source in sources:
        names, changed = aligned(source, known)
        known |= dict.fromkeys(names.values())
        found.append(names)
        swaps.append((source, changed))
    return found, swaps


def _module(name: str, total: Sum) -> Module:
    """Describe a sum as its factors side by side; the rank that it has is found later."""
    terms, rule, dense = total.terms, total.rule, total.is_dense
    module = terms[0].module
    if name != module.name:
        module = replace(module, name=name, key_prefix=name, owner=name)
    if len(terms) == 1 and rule is None and not dense:
        return weigh(module, terms[0].weight)
    roles: tuple[Role, ...] = ("b", "a")
    dtypes = {role: widest(_dtypes(terms, roles if dense else (role,))) for role in roles}
    most = min(module.out, module.inp) * module.groups
    r = sum(term.module.r for term in terms)
    sized = module.resized(most if dense else r)
    parts: dict[Role, Part] = {
        role: part._replace(spec=Spec(dtypes.get(role, part.spec.dtype), part.spec.shape))
        for role, part in sized.parts.items()
        if role not in ("bias", "magnitude")
    }
    biases = [term.module.parts["bias"] for term in terms if "bias" in term.module.parts]
    if biases:
        code = widest({bias.spec.dtype for bias in biases})
        parts["bias"] = biases[0]._replace(spec=Spec(code, (module.out,)))
    return replace(sized, parts=parts)


def _dtypes(terms: Iterable[Term], roles: Sequence[Role]) -> set[str]:
    pairs = (term.module.resized(term.module.r) for term in terms)
    return {pair.parts[role].spec.dtype for pair in pairs for role in roles}


def _check(
    terms: Mapping[str, Sequence[Term]],
    rule: ParametrisedRule | None,
    weighed: BaseWeights | None,
) -> None:
    """Raise where the updates of a module are no summands of one."""
    for name, summands in terms.items():
        dora = [t for t in summands if t.module.is_dora]
        if dora and not weighed and not _is_one(terms, rule):
            raise UnsupportedError(
                f"{dora[0].source.path}: {name}: DoRA's update cannot be weighted or added to"
                " another: the merged weight is normalised after it is added"
            ).hint(
                "Give the base model that all were trained on, with a rank: --base BASE --rank N;"
                " or leave the magnitudes out: --drop DoRA."
            )
        if dora and rule and rule.rule.space != "dense":
            raise UnsupportedError(
                f"{dora[0].source.path}: {name}: {rule.rule.name} is for updates of low rank, and"
                " what DoRA adds to its base has full rank"
            ).hint("Leave the magnitudes out: --drop DoRA.")
        biased = [term for term in summands if "bias" in term.module.parts]
        if biased and (rule or dora):
            what = rule.rule.name if rule else "what DoRA adds"
            raise UnsupportedError(
                f"{biased[0].source.path}: {name}: {what} is for weights, and this has a"
                " bias of B, too"
            ).hint("Leave the biases out: --drop bias.")
        first = summands[0]
        for term in summands[1:]:
            if _form(term.module) != _form(first.module):
                raise FormatError(
                    f"{name} is {_shown(first.module)} in {first.source.path} and"
                    f" {_shown(term.module)} in {term.source.path}"
                ).hint("Are they adapters of the same base model?")
        unknown = [term for term in summands if term.module.rows == Paired(None)]
        if 0 < len(unknown) < len(summands):
            unknown[0].source.adapter.check_order()
    _check_owners(terms)


def _check_owners(terms: Mapping[str, Sequence[Term]]) -> None:
    """Raise `UnsupportedError` where modules of one owner, and so of one alpha, differ in scale."""
    scales: dict[str, tuple[str, list[float]]] = {}
    for name, summands in terms.items():
        owner = summands[0].module.owner
        found = [term.weight * term.module.scale for term in summands]
        other, before = scales.setdefault(owner, (name, found))
        if before != found and owner != name:
            raise UnsupportedError(
                f"{name} and {other} have one rank and one alpha, that of {owner}, and their"
                " updates would have several"
            )


def _form(module: Module) -> tuple[Site, int, int]:
    """Return what summands have to share; a 1x1 convolution is a linear layer."""
    site = module.site
    match site:
        case Linear():
            site = Linear()
        case Convolution(kernel=kernel, groups=1) if set(kernel) == {1}:
            site = Linear()
    return site, module.out, module.inp


def _shown(module: Module) -> str:
    kind = type(module.site).__name__.lower()
    return f"{kind} {'×'.join(map(str, module.shape))}"


def _notes(
    sources: Sequence[Source], swaps: Sequence[tuple[Source, tuple[Swap, ...]]]
) -> Iterator[str]:
    bases = dict.fromkeys(s.manifest.base_model for s in sources if s.manifest.base_model)
    if len(bases) > 1:
        yield f"The adapters name different base models: {', '.join(bases)}."
    for source, found in swaps:
        for swap in found:
            yield swap.sentence(str(source.path), "the adapters before it")


def _distinct(sources: Sequence[Source]) -> Iterator[str]:
    yield from dict.fromkeys(note for source in sources for note in source.manifest.notes)
