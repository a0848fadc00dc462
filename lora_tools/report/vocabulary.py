"""The fields of every report: a name means one thing, whichever command has written it.

``_before`` and ``_after`` stand for the two sides of a change, ``_a`` and ``_b`` for the two
adapters of a diff. Without them ``rank``, ``params`` and ``bytes`` are those of what is described.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Field(NamedTuple):
    """What a field holds: its type in JSON, the unit, and what it means."""

    type: str
    meaning: str
    unit: str = ""


def field(path: str) -> Field:
    """Return the field at a path of a report, as in ``totals.modules``; KeyError if there is none.

    >>> field("modules[].norm").unit, field("modules").type, field("totals.modules").type
    ('of weights', 'list of objects', 'integer')
    """
    name = path.rpartition(".")[2]
    return FIELDS[path] if path in FIELDS else FIELDS[name]


TEXT, NAMES = "string", "list of strings"
LIST, OBJECT = "list of objects", "object"
WHOLE, REAL = "integer", "number"

FIELDS: Mapping[str, Field] = {
    # the document
    "schema": Field(TEXT, "name and version of the document"),
    "command": Field(TEXT, "the verb of lora-tools"),
    "arguments": Field(TEXT, "a whole command line; empty if the library was called"),
    "policy": Field(TEXT, "how ranks were lowered, in words; empty if they were not"),
    "totals": Field(OBJECT, "all modules and tensors together"),
    "modules": Field(LIST, "one per module"),
    "tensors": Field(LIST, "one per tensor that is reported by itself"),
    "groups": Field(LIST, "modules or tensors that differ only in numbers in their names"),
    "summary": Field(NAMES, "what it comes to, a sentence each, the verdict first"),
    "notes": Field(NAMES, "what a person should know, a sentence each"),
    "warning": Field("string or null", "what a person should know about what rounding took"),
    "problems": Field(NAMES, "contradictions, unknown keys, tensors with NaN or Inf"),
    "text": Field(TEXT, "the same in words"),
    # what was read
    "source": Field(TEXT, "what was read, as it was named; on the Hub, `hf://org/name@commit`"),
    "source_a": Field(TEXT, "the first adapter, as it was named"),
    "source_b": Field(TEXT, "the second adapter, as it was named"),
    "base": Field("string or null", "the base model, as it was named; null if none was given"),
    "tuned": Field(TEXT, "the fine-tuned model, as it was named"),
    "merged": Field(TEXT, "the merged model, as it was named"),
    "adapters": Field(LIST, "the adapters, in order"),
    "inputs": Field(LIST, "the files that it was made from; with `--push-to`"),
    "path": Field(TEXT, "a file or folder, as it was named"),
    "file": Field(TEXT, "name of a file"),
    "files": Field(LIST, "what belongs to the publication, the card (`README.md`) included"),
    "sha256": Field(TEXT, "SHA-256 of a file"),
    "weight": Field(REAL, "what an adapter's update is multiplied by, beside its scale"),
    "base_model": Field("string or null", "the base model that an adapter or its card names"),
    "base_model_a": Field("string or null", "the base model that A names"),
    "base_model_b": Field("string or null", "the base model that B names"),
    "format": Field(TEXT, "key naming and layout, such as `peft`"),
    "format_a": Field(TEXT, "format of A"),
    "format_b": Field(TEXT, "format of B"),
    "source_format": Field(TEXT, "the format that was read"),
    "target_format": Field(TEXT, "the format that was written"),
    "metadata": Field("object: string", "of the header"),
    "architecture": Field("string or null", "the class that loads it, as a config.json says"),
    "is_adapter": Field("boolean", "whether it seems to be an adapter that is not understood"),
    "variants": Field(NAMES, "`rsLoRA`, `DoRA`, `biases on B`, `AdaLoRA`, `experts`"),
    "task": Field("string or null", "`CAUSAL_LM`, …, as the configuration says"),
    "scale_model": Field(TEXT, "how scales follow from ranks and alphas, in words"),
    "trained_by": Field("list of pairs", "what is known of the training: label, value"),
    # a module or tensor
    "module": Field(TEXT, "path in the base model; for experts it ends with the parameter's name"),
    "module_a": Field("string or null", "the module's name in A; null if A lacks it"),
    "module_b": Field("string or null", "the module's name in B; null if B lacks it"),
    "tensor": Field(TEXT, "name of a tensor in its file"),
    "tensor_a": Field("string or null", "the tensor's name in A; null if A lacks it"),
    "tensor_b": Field("string or null", "the tensor's name in B; null if B lacks it"),
    "pattern": Field(TEXT, "names as one, with ranges of numbers"),
    "count": Field(WHOLE, "how many there are"),
    "key_prefix": Field(TEXT, "what the names of its tensors begin with in the file"),
    "kind": Field(
        TEXT,
        "a module: `linear`, `embedding`, `convolution`, `experts`; a tensor that belongs to no"
        " update: `modules_to_save`, `bias`, `trainable tokens`, `full weight`, `not understood`",
    ),
    "parts": Field(NAMES, "which tensors a module has: `a`, `b`, `magnitude`, `bias`"),
    "outcome": Field(TEXT, "what became of it: the words are listed with each document"),
    "reason": Field(TEXT, "why, in words; may be empty"),
    "shape": Field("list of integers", "of the weight; as the file has it", "elements"),
    "shape_a": Field("list of integers or null", "of the weight, in A", "elements"),
    "shape_b": Field("list of integers or null", "of the weight, in B", "elements"),
    "dtype": Field(TEXT, "of the factors, or of the tensor: `F16`, `BF16`, `F32`, `F64`, …"),
    "dtype_a": Field("string or null", "the same in A"),
    "dtype_b": Field("string or null", "the same in B"),
    "dtypes": Field("object: integer", "dtypes, and how many tensors have each", "tensors"),
    # ranks and scales
    "rank": Field(WHOLE, "as configurations count it"),
    "rank_a": Field("integer or null", "rank in A"),
    "rank_b": Field("integer or null", "rank in B"),
    "rank_before": Field(WHOLE, "rank of what was read"),
    "rank_after": Field(WHOLE, "rank that is kept; 0 where there are no factors"),
    "rank_stored": Field(WHOLE, "rank of the factors in the file: larger where zeros fill them up"),
    "alpha": Field("number or null", "alpha in the file; null where it has none"),
    "scale": Field(REAL, "the factor of B·A in the file"),
    "scale_a": Field("number or null", "the factor of B·A in A"),
    "scale_b": Field("number or null", "the factor of B·A in B"),
    "scale_before": Field(REAL, "the factor of B·A in the source"),
    "module_scales": Field("object: number", "modules added to a tensor, with scale times weight"),
    # sizes
    "params": Field(WHOLE, "of all its tensors", "elements"),
    "params_before": Field(WHOLE, "of all tensors of what was read", "elements"),
    "params_after": Field(WHOLE, "of all tensors of what is written", "elements"),
    "bytes": Field(WHOLE, "size of its tensors, or of its file", "bytes"),
    "bytes_before": Field(WHOLE, "size of what was read, headers of files included", "bytes"),
    "bytes_after": Field(WHOLE, "size of what is written, headers of files included", "bytes"),
    "base_params": Field("integer or null", "of all tensors of the base", "elements"),
    "base_bytes": Field("integer or null", "of all tensors of the base", "bytes"),
    "totals.modules": Field(WHOLE, "how many there are", "modules"),
    "totals.tensors": Field(WHOLE, "how many there are", "tensors"),
    "outcomes": Field("object: integer", "how many modules and tensors have each outcome"),
    "shards": Field(WHOLE, "files of weights", "files"),
    "part": Field(WHOLE, "the number of a part, from 1"),
    "part_count": Field(WHOLE, "how many parts there are"),
    "pieces": Field(WHOLE, "finished files of a part, whatever call finished them", "files"),
    "resumed_pieces": Field(WHOLE, "those of them that an earlier call had finished", "files"),
    "total_pieces": Field(WHOLE, "files that all parts have together", "files"),
    "waiting": Field("boolean", "whether a part has more to do when all others are as far"),
    "resumed_shards": Field(WHOLE, "files that an interrupted run had finished", "files"),
    "seconds": Field(REAL, "time taken", "seconds"),
    "estimated_seconds": Field(REAL, "time that it would take, about", "seconds"),
    # figures of an update
    "norm": Field("number or null", "‖ΔW‖, scale included; null if not finite", "of weights"),
    "norm_a": Field("number or null", "‖ΔW_A‖; 0 for what is not there", "of weights"),
    "norm_b": Field("number or null", "‖ΔW_B‖; 0 for what is not there", "of weights"),
    "relative_norm": Field("number or null", "‖ΔW‖ / ‖W‖", "relative"),
    "energy": Field(REAL, "share of ‖ΔW‖² in the singular values kept", "0 to 1"),
    "error": Field(REAL, "‖ΔW − ΔW′‖ / ‖ΔW‖, ΔW′ as written", "relative"),
    "optimal_error": Field(REAL, "the least error at these ranks, before rounding", "relative"),
    "optimal_error_lower_bound": Field(
        "number or null",
        "certified: no update of this rank has less; null where `optimal_error` is exact",
        "relative",
    ),
    "allocated_error": Field(
        REAL, "the least error with as many parameters, allocated among the modules", "relative"
    ),
    "whole_model_error": Field(
        REAL, "the same as error, where what changed and was left out counts in full", "relative"
    ),
    "sigma": Field("list of numbers or null", "singular values, largest first", "of weights"),
    "sigma_max": Field("number or null", "the largest singular value of ΔW", "of weights"),
    "sigma_discarded": Field(REAL, "the largest singular value given up; 0 if none", "of weights"),
    "stable_rank": Field("number or null", "‖ΔW‖² / σ₁²; null if the update is zero"),
    "effective_rank": Field("number or null", "exponential of the entropy of σ; null if zero"),
    "energy_ranks": Field(
        "object: integer or null", "smallest ranks that keep 0.9, 0.95, 0.99, 0.999 of ‖ΔW‖²"
    ),
    "spectrum": Field("object or null", "the singular values in numbers; with `--spectrum`"),
    "state": Field(TEXT, "`finite`, `zero` or `not finite`"),
    "duplicate_of": Field(
        "string or null", "a module before it with the same factors, bit for bit"
    ),
    "updated_elements": Field(WHOLE, "elements whose update is not zero", "elements"),
    "lost_to_rounding": Field(
        REAL, "of these, the share that kept its value: the update was below half a step", "0 to 1"
    ),
    "method": Field(TEXT, "`krylov float32`, `krylov float64` or `gram`"),
    "steps": Field(WHOLE, "passes over ΔW that the method took"),
    "bound_tolerance": Field(
        REAL, "how far an error may lie above its bound, before rounding", "relative"
    ),
    "failure_probability": Field(REAL, "that any of the bounds does not hold"),
    # ranks to choose from
    "ranks": Field("list of objects or null", "what uniform ranks would cost"),
    "suggestion": Field("object or null", "the smallest of these that keeps 99 % of ‖ΔW‖²"),
    # a base beside an adapter
    "base_tensor": Field("string or null", "the base weight; null if the module has none"),
    "base_shape": Field("list of integers or null", "shape of the base weight", "elements"),
    "base_norm": Field("number or null", "‖W‖; null if its numbers are packed", "of weights"),
    "prefixes": Field("list of objects or null", "what changes before names, per component"),
    "from": Field(TEXT, "what names begin with in the file of `path`"),
    "to": Field(TEXT, "what they begin with in the base"),
    "family": Field(TEXT, "whose tables match them, where more than the prefix differs"),
    "unmatched": Field("list of strings or null", "modules without a matching base weight"),
    "misshapen": Field("list of objects or null", "modules whose base weight has another shape"),
    # what was not transformed
    "carried": Field("object: string", "tensors that were copied bit for bit, and their kind"),
    "dropped": Field("object: list of strings", "what `--drop` left out, by feature"),
    "orthogonal_to": Field(TEXT, "the adapter whose leading inputs were projected out"),
    "projected_share": Field(REAL, "what that took of the ‖ΔW‖ of all modules of both", "share"),
    "projected_out": Field("object: number", "what it took of the ‖ΔW‖ of each module", "share"),
    "removed": Field(
        "object: number",
        "modules that `--drop-modules` … left out, and their share of ‖ΔW‖",
        "share",
    ),
    "left_out": Field("object: string", "what is not in the result, and why"),
    "unchanged": Field(NAMES, "what is equal on both sides, bit for bit"),
    "unmatched_tensors": Field(LIST, "tensors of one model compared with none of the other"),
    "side": Field(TEXT, "the model that has the tensor: `base` or `tuned`"),
    "compared_base": Field(REAL, "parameters of the base that were compared", "share"),
    "compared_tuned": Field(REAL, "parameters of the fine-tune that were compared", "share"),
    "only_in_merged": Field(NAMES, "tensors that only the merged model has"),
    "missing_files": Field(NAMES, "shards that the index names and that are not there"),
    # a combination
    "contributions": Field(LIST, "what each adapter adds to each module"),
    "adapter_numbers": Field("list of integers", "places of adapters in the list, from 1"),
    "norms": Field("list of numbers", "‖w·ΔW‖ of each of these adapters", "of weights"),
    "remaining": Field(
        REAL, "`norm` over the sum of `norms`: 1 if all point one way, 0 if they cancel", "share"
    ),
    "adapter_pairs": Field(LIST, "these adapters two by two, without those that add nothing"),
    "conflicts": Field(NAMES, "where adapters fight, and what cancels, a sentence each"),
    # a comparison
    "tolerance": Field(REAL, "relative difference up to which modules are the same", "relative"),
    "same": Field("boolean", "whether every outcome is `same`: exit status 0, else 1"),
    "passed": Field("boolean", "whether every tensor is copied, exact or rounding: exit status 0"),
    "identical": Field("boolean", "factors and scale are the same numbers in the same dtype"),
    "difference": Field("number or null", "‖ΔW_A − ΔW_B‖", "of weights"),
    "relative_difference": Field(
        "number or null", "‖ΔW_A − ΔW_B‖ / ‖ΔW_A‖; null if only ΔW_A is zero", "relative"
    ),
    "noise": Field("number or null", "a bound on what rounding adds to `difference`", "of weights"),
    "cosine": Field("number or null", "⟨ΔW_A, ΔW_B⟩ / (‖ΔW_A‖·‖ΔW_B‖); null if one is zero"),
    "column_angles": Field(
        "list of numbers or null", "principal angles between column spaces, ascending", "radians"
    ),
    "row_angles": Field("list of numbers or null", "the same of the row spaces", "radians"),
    "new_columns": Field(
        "number or null", "what of ΔW_B lies outside A's columns", "share of norm"
    ),
    "new_rows": Field("number or null", "what of ΔW_B lies outside A's rows", "share of norm"),
    "lost_columns": Field(
        "number or null", "what of ΔW_A lies outside B's columns", "share of norm"
    ),
    "lost_rows": Field("number or null", "what of ΔW_A lies outside B's rows", "share of norm"),
    "magnitude_difference": Field(
        "number or null", "of DoRA's magnitudes; null if one of them has none", "relative"
    ),
    "bias_difference": Field("number or null", "of the biases of B, with their scales", "relative"),
    "strength": Field("number or null", "what the update seems to be multiplied by, where one is"),
    # runtimes
    "verdicts": Field(LIST, "one per runtime of `--for`"),
    "runtime": Field(TEXT, "whose rules"),
    "version": Field(TEXT, "as of which version"),
    "verdict": Field(
        TEXT,
        "`loads`, `loads at the wrong strength`, `loads but has no effect` or `refused`: the worst"
        " of the findings; findings that are `loads` are remarks",
    ),
    "findings": Field(LIST, "the rules that the adapter breaks"),
    "rule": Field(TEXT, "its name in [runtimes.md](runtimes.md)"),
    "where": Field(NAMES, "at most five of the names concerned"),
    "fix": Field("string or null", "the command line that fixes it"),
    # formats
    "formats": Field(LIST, "every format that can be read"),
    "tools": Field(TEXT, "whose format it is"),
    "write": Field("boolean", "whether it can be written"),
    "supports": Field(NAMES, "the features that it supports"),
    "features": Field("object: string", "every feature, and what it is"),
    "refused": Field(NAMES, "key namings that are known and refused, and why"),
    # the Hub
    "repo": Field(TEXT, "`org/name`"),
    "revision": Field("string or null", "the branch that was named; null for main"),
    "new_repo": Field("boolean", "whether the repository did not exist before"),
    "card": Field(TEXT, "the README.md that is published"),
    "commit": Field("string or null", "the commit that has all of it; null with `--dry-run`"),
    "url": Field("string or null", "its address"),
    "pull_request": Field("string or null", "the address of the pull request, if one was opened"),
    "verified": Field("boolean", "whether the checksums on the Hub were found equal afterwards"),
}
"""Every field, by its name; a name that means two things in two places has both paths here."""
