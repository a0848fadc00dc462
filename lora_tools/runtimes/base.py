"""What a runtime makes of an adapter: rules, and the verdicts that they give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from lora_tools.files.header import Spec
from lora_tools.files.location import Location
from lora_tools.formats.manifest import Manifest
from lora_tools.formats.peft.config import PeftConfig
from lora_tools.runtimes.keys import Pair

MOST_NAMED = 5
"""Offenders that a finding names; the others are counted."""


class Verdict(StrEnum):
    """What becomes of an adapter in a runtime, from best to worst."""

    LOADS = "loads"
    WRONG = "loads at the wrong strength"
    NO_EFFECT = "loads but has no effect"
    REFUSED = "refused"

    @property
    def severity(self) -> int:
        """Its place from best to worst."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Subject:
    """An adapter as it lies on disk, whether or not a format of ours can read it."""

    path: Location
    """What was asked for: a folder or a file."""
    file: str
    """Name of the tensor file."""
    files: tuple[str, ...]
    """Names of everything in its folder."""
    specs: Mapping[str, Spec]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None
    """adapter_config.json, or None if there is none that can be read."""
    manifest: Manifest | None
    """What a format of ours reads of it, or None."""
    pairs: tuple[Pair, ...]
    rest: tuple[str, ...]
    """Keys that are neither factors nor alphas."""
    scalars: Mapping[str, float]
    """The values of tensors of one element, by key."""
    truths: Mapping[str, float]
    """By a pair's key prefix, the scale that the adapter's own format gives it, where known."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The fields of the configuration; none if there is no configuration."""
        return self.config or {}

    @cached_property
    def peft(self) -> PeftConfig:
        """The configuration with PEFT's meanings and defaults."""
        return PeftConfig(self.fields)

    @cached_property
    def leaders(self) -> Mapping[str, Pair]:
        """The first pair of each component."""
        return {pair.component: pair for pair in reversed(self.pairs)}


class Breach(NamedTuple):
    """How a subject breaks a rule: a sentence, and the names that it is about."""

    why: str
    where: Sequence[str] = ()


Check: TypeAlias = Callable[[Subject], Breach | None]
Fix: TypeAlias = Callable[[Subject], str | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that a runtime demands; a verdict of `Verdict.LOADS` makes it a remark."""

    name: str
    verdict: Verdict
    """What happens to an adapter that breaks it."""
    text: str
    """What the runtime does, in a sentence."""
    check: Check
    fix: Fix | None = None
    """Makes the command after which the rule is kept."""
    whole: Verdict | None = None
    """The verdict if all factors are offenders, where that is another one."""
    final: bool = False
    """Whether the rules after it mean nothing once it is broken."""
    since: str | None = None
    """The first version that it holds for."""
    until: str | None = None
    """The first version that it no longer holds for."""

    def holds(self, version: str) -> bool:
        """Whether it is a rule of this version."""
        at = order(version)
        return (self.since is None or order(self.since) <= at) and (
            self.until is None or at < order(self.until)
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken rule."""

    rule: str
    verdict: Verdict
    why: str
    where: tuple[str, ...]
    fix: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, with at most five offenders and their count."""
        return {
            "rule": self.rule,
            "verdict": str(self.verdict),
            "reason": self.why,
            "where": list(self.where[:MOST_NAMED]),
            "count": len(self.where),
            "fix": self.fix,
        }


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a runtime makes of one adapter, and why."""

    runtime: str
    version: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of what was found."""
        found = (finding.verdict for finding in self.findings)
        return max(found, key=lambda verdict: verdict.severity, default=Verdict.LOADS)

    @property
    def loads(self) -> bool:
        """Whether the adapter loads as it is meant."""
        return self.verdict is Verdict.LOADS

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, as `report.schemas` describes it."""
        return {
            "runtime": self.runtime,
            "version": self.version,
            "verdict": str(self.verdict),
            "findings": [finding.to_dict() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime that loads adapters, and its rules as of a version."""

    name: str
    version: str
    """The version whose code the rules were read in, or an older one to be judged for."""
    source: str
    """Where its loader is."""
    rules: tuple[Rule, ...]
    ranks: tuple[int, ...] = ()
    """The ranks that it allows for a whole adapter, if it has a list."""
    refuses: frozenset[str] = field(default_factory=frozenset)
    """Kinds of tensors that it does not load."""
    own: tuple[str, tuple[Rule, ...]] | None = None
    """How the files of a container of its own end, and the rules for them instead of the others."""

    def rules_for(self, file: str) -> tuple[Rule, ...]:
        """Return the rules for a tensor file of this name."""
        ending, rules = self.own or ("", ())
        return rules if self.own and file.endswith(ending) else self.rules


def judge(subject: Subject, runtime: Runtime) -> Judgement:
    """Hold an adapter against a runtime's rules, in their order.

    Costs names and shapes alone. Nothing is said of the strength of what has no effect. A rule that
    only versions before the runtime's have makes a remark of what they would do.
    """
    findings = []
    for rule in runtime.rules_for(subject.file):
        holds = rule.holds(runtime.version)
        past = rule.until is not None and order(rule.until) <= order(runtime.version)
        breach = rule.check(subject) if holds or past else None
        if breach is None:
            continue
        verdict = _verdict(rule, breach, subject)
        why = breach.why
        if past:
            why = f"before {runtime.name} {rule.until}: {verdict}. {why}"
            verdict = Verdict.LOADS
        fix = rule.fix(subject) if rule.fix else None
        findings.append(Finding(rule.name, verdict, why, tuple(breach.where), fix))
        if verdict is Verdict.NO_EFFECT or (rule.final and not past):
            break
    findings.sort(key=lambda finding: -finding.verdict.severity)
    return Judgement(runtime.name, runtime.version, tuple(findings))


def order(version: str) -> tuple[int, ...]:
    """Return a version as numbers, which compare as versions do.

    >>> order("0.9.1") < order("0.11")
    True
    """
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _verdict(rule: Rule, breach: Breach, subject: Subject) -> Verdict:
    if rule.whole is None or not subject.pairs:
        return rule.verdict
    offenders = set(breach.where)
    hit = (offenders & {pair.path, pair.key_prefix, *pair.keys} for pair in subject.pairs)
    return rule.whole if all(hit) else rule.verdict
