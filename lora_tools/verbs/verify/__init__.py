"""Verify: prove that a merged model is its base and its adapters, whoever merged them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lora_tools.base import base_of
from lora_tools.executors import Executor, Serial
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.header import Spec
from lora_tools.linalg.stored import DIGITS
from lora_tools.matching import Prefixes, Swap, align, listed
from lora_tools.merging import MergeOptions, MergePlan, TensorPlan, WeightedAdapter, general, plan
from lora_tools.model import Model
from lora_tools.names import collapse, template
from lora_tools.report import Document, grouped, outcomes, remarks, table
from lora_tools.text import joined, label
from lora_tools.verbs.verify.evidence import Evidence, VerifyJob, chunks, coarsest, examine
from lora_tools.verbs.verify.verdict import MergeVerdict, Outcome, judge

__all__ = [
    "MergeOptions",
    "MergeVerdict",
    "Proof",
    "WeightedAdapter",
    "decoded_dtype",
    "plan",
    "verify",
]

SCHEMA = "lora-tools/verify/2"


@dataclass(slots=True)
class Proof(Document):
    """The verdicts on all tensors of a merged model."""

    merged: str
    base: str
    adapters: tuple[tuple[str, float], ...]
    verdicts: list[MergeVerdict] = field(default_factory=list)
    missing_files: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    """Tensors of the merged model that its base does not have."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, tuple[Swap, ...]] = field(default_factory=dict)
    """What changes before the names of each adapter, and of the base where it was merged."""

    @property
    def passed(self) -> bool:
        """Whether every tensor is what a merge may make of it."""
        return all(verdict.passed for verdict in self.verdicts) and not self.missing_files

    def to_dict(self) -> dict[str, Any]:
        """Return the proof as plain data, as `report.schemas` describes it."""
        return {
            "schema": SCHEMA,
            "command": "verify",
            "merged": self.merged,
            "base": self.base,
            "adapters": [{"path": path, "weight": weight} for path, weight in self.adapters],
            "passed": self.passed,
            "totals": {"tensors": len(self.verdicts), "outcomes": outcomes(self.verdicts)},
            "tensors": [asdict(v) for v in self.verdicts if v.outcome != "copied"],
            "missing_files": list(self.missing_files),
            "only_in_merged": list(self.extra),
            "left_out": dict(self.left_out),
            "prefixes": listed(self.prefixes),
        }

    def table(self, style: str) -> str:
        """Return the verdicts as a table, what failed first."""
        lines = [
            (collapse([v.tensor for v in group]), len(group), group[0].outcome, _reason(group))
            for group in grouped((v for v in self.verdicts if v.outcome != "copied"), _key)
        ]
        headers = ("tensor", "count", "outcome", "reason")
        return table(lines, headers, style)

    def summary(self) -> str:
        """Return how many tensors have each verdict, and what is missing or too many."""
        counts = ", ".join(
            f"{count} {outcome}" for outcome, count in outcomes(self.verdicts).items()
        )
        end = [f"{'passed' if self.passed else 'FAILED'}: {counts}"]
        end += [f"missing file: {label(name)}" for name in self.missing_files]
        if self.extra:
            names = ", ".join(map(label, self.extra[:5]))
            end.append(f"not in the base: {names} ({len(self.extra)} in all)")
        notes = [
            swap.sentence(label(path), "the base")
            for path, swaps in self.prefixes.items()
            for swap in swaps
        ]
        return joined([*end, *remarks(self.left_out, notes)])


def verify(
    merged: Checkpoint,
    merge_plan: MergePlan,
    executor: Executor | None = None,
    missing_files: Iterable[str] = (),
) -> Proof:
    """Compare every tensor of a merged model with what its merge plan makes.

    Sums are formed in float64. A model that was stored in another type is compared with the sums
    rounded to that one.
    """
    adapters = tuple((str(each.adapter.path), each.weight) for each in merge_plan.adapters)
    proof = Proof(
        str(merged.path),
        str(merge_plan.base.path),
        adapters,
        missing_files=tuple(missing_files),
        left_out=merge_plan.left_out,
    )
    prefix = _prefix(merge_plan, merged)
    moved = tuple(swap.inverse for swap in prefix.swaps(merge_plan.entries))
    proof.prefixes = {**merge_plan.swaps, str(merged.path): moved}
    found: dict[str, TensorPlan] = {}
    for key, entry in merge_plan.entries.items():
        name = prefix(key) or key
        spec = merged.specs.get(name)
        if spec is None:
            proof.verdicts.append(MergeVerdict(key, "missing"))
        elif spec.shape != entry.spec.shape or not _comparable(spec, entry.spec):
            stated = f"{spec.dtype} {list(spec.shape)} instead of {entry.spec.dtype}"
            outcome: Outcome = "untouched changed" if entry.plain else "different"
            proof.verdicts.append(MergeVerdict(key, outcome, f"{stated} {list(entry.spec.shape)}"))
        else:
            found[key] = replace(entry, spec=spec) if spec != entry.spec else entry
    jobs = _jobs(merge_plan, found, merged, prefix)
    total: dict[str, Evidence] = {}
    for each in (executor or Serial()).map(examine, jobs):
        total[each.key] = total.get(each.key, Evidence()) + each.evidence
    proof.verdicts += [judge(found[key], e, _cast(found[key])) for key, e in total.items()]
    known = {prefix(key) or key for key in merge_plan.entries}
    proof.extra = tuple(key for key in merged.specs if key not in known)
    return proof


def decoded_dtype(merged: Checkpoint, base: Model) -> str | None:
    """Return the type that the encoded weights of a base became in a merge; None if it has none.

    Raises `UnsupportedError` for a base that is not read.
    """
    weights = base_of(base, "Verify with the weights that it was quantised from.")
    return None if all(each.plain for each in weights.values()) else general(merged.specs)


def _jobs(
    merge_plan: MergePlan, found: Mapping[str, TensorPlan], merged: Checkpoint, prefix: Prefixes
) -> Iterator[VerifyJob]:
    for key, entry in found.items():
        for rows in chunks(entry):
            yield VerifyJob(merge_plan, key, rows, merged, prefix(key) or key, _cast(entry))


def _cast(entry: TensorPlan) -> str:
    """Return the coarsest type in which an update may have been before it was added."""
    kinds = {patch.module.dtype for patch in entry.patches}
    return coarsest(entry.spec.dtype, *kinds) if kinds else entry.spec.dtype


def _comparable(spec: Spec, wanted: Spec) -> bool:
    return spec.dtype == wanted.dtype or (spec.dtype in DIGITS and wanted.dtype in DIGITS)


def _prefix(merge_plan: MergePlan, merged: Checkpoint) -> Prefixes:
    """Return what other tools put before the names of a base's tensors."""
    keys = list(merge_plan.entries)
    if any(key in merged.specs for key in keys):
        return Prefixes()
    prefixes = align(keys, merged.specs.keys())
    return Prefixes() if prefixes.ties else prefixes


def _key(verdict: MergeVerdict) -> tuple[bool, str, str]:
    return verdict.passed, verdict.outcome, template(verdict.tensor)


def _reason(group: list[MergeVerdict]) -> str:
    reasons = list(dict.fromkeys(verdict.reason for verdict in group))
    return reasons[0] if len(reasons) == 1 else f"{reasons[0]} and others"
