"""The report of an extraction, from the rows of its items."""

from collections.abc import Iterator, Sequence

from lora_tools.formats.manifest import Manifest
from lora_tools.linalg.rank import RankPolicy
from lora_tools.verbs.extract import output
from lora_tools.verbs.extract.plan import ExtractPlan, Item
from lora_tools.verbs.extract.rows import Compared, ExtractReport, ExtractRow, UnmatchedRow
from lora_tools.verbs.extract.sites import by_token


def concluded(
    plan: ExtractPlan,
    policy: RankPolicy,
    items: Sequence[Item],
    rows: Sequence[ExtractRow],
    manifest: Manifest,
) -> ExtractReport:
    """Return the report of an adapter that was written, with the notes a person should read."""
    return ExtractReport(
        base=str(plan.base.path),
        tuned=str(plan.tuned.path),
        policy=str(policy),
        tolerance=plan.options.precision.tolerance,
        chance=plan.options.precision.chance,
        rows=_as_in_base(plan, items, rows),
        params=sum(spec.numel for spec in manifest.specs.values()),
        nbytes=output.plan_file(manifest).size,
        notes=(*plan.pairs.notes, *_notes(plan, rows)),
        unmatched=[
            UnmatchedRow(each.name, each.side, each.spec.shape, each.spec.numel, each.reason)
            for each in plan.pairs.unmatched
        ],
        compared=Compared(*(_compared(plan, side) for side in ("base", "tuned"))),
    )


def _as_in_base(
    plan: ExtractPlan, items: Sequence[Item], rows: Sequence[ExtractRow]
) -> list[ExtractRow]:
    order = {pair.name: number for number, pair in enumerate(plan.pairs.both)}
    pairs = sorted(zip(items, rows, strict=True), key=lambda both: order[both[0].pair.name])
    return [row for _, row in pairs]


def _compared(plan: ExtractPlan, side: str) -> float:
    """Return the share of a model's parameters that is compared with the other's."""
    weights = plan.weights[side == "tuned"]
    whole = sum(spec.numel for spec in weights.specs.values())
    rest = sum(each.spec.numel for each in plan.pairs.unmatched if each.side == side)
    return 1 - rest / whole if whole else 1.0


def _notes(plan: ExtractPlan, rows: Sequence[ExtractRow]) -> Iterator[str]:
    for item in plan.items:
        if item.pair.grown:
            before, after = item.pair.spec.shape[0], item.pair.tuned_spec.shape[0]
            yield (
                f"{item.name} has {before:,} rows in the base and {after:,} in the tuned model;"
                " only those that both have are compared."
            )
    if plan.tied:
        for item, row in zip(plan.items, rows, strict=True):
            place = item.pair.place
            if row.outcome == "extracted" and place and by_token(place):
                yield (
                    f"{item.name} is tied to the head: this update is added to the input side"
                    " alone, but for PEFT's own merge. --embeddings full is of both sides,"
                    " --embeddings skip leaves it out."
                )
    if plan.options.base_model is None:
        yield "The adapter does not name its base; --base-model ID does."
    if any(row.outcome == "extracted" and row.rank_after * 2 >= min(row.shape[:2]) for row in rows):
        yield "Some ranks are half of a full one or more: those modules are no smaller than ΔW."
