"""The documents: which fields each has, where, and which words its outcomes are."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

Objects = Mapping[str, tuple[str, ...]]
"""The names of the fields of each object of a document, by its path; that of the document is empty.

A field that may be absent ends with a question mark.
"""


class Schema(NamedTuple):
    """One document."""

    origin: str
    """What prints or writes it."""
    objects: Objects
    outcomes: Mapping[str, str] = {}
    """The words of ``outcome``, and what they mean."""
    remark: str = ""

    def paths(self) -> Iterator[str]:
        """Yield the path of every field."""
        for path, names in self.objects.items():
            yield from (f"{path}.{name.rstrip('?')}".lstrip(".") for name in names)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MADE: Objects = {"inputs[]": _names("path file sha256")}
ADAPTERS: Objects = {"adapters[]": _names("path weight")}
PREFIXES: Objects = {"prefixes[]": _names("path from to count family")}
RANKS: Objects = {"ranks[]": _names("rank_after bytes_after optimal_error allocated_error")}
VERDICTS: Objects = {
    "verdicts[]": _names("runtime version verdict findings"),
    "verdicts[].findings[]": _names("rule verdict reason where count fix"),
}
FIGURES = "norm_a norm_b difference relative_difference noise cosine"

REWRITE: Objects = {
    "": _names(
        "schema command policy source source_format target_format arguments totals modules"
        " carried dropped removed left_out notes orthogonal_to? projected_share? projected_out?"
        " inputs?"
    ),
    "totals": _names(
        "modules outcomes error optimal_error params_before params_after bytes_before"
        " bytes_after seconds"
    ),
    "modules[]": _names(
        "module key_prefix shape rank_before rank_after rank_stored scale_before scale"
        " alpha dtype norm energy error optimal_error optimal_error_lower_bound sigma_max"
        " sigma_discarded outcome"
    ),
    **MADE,
}
REWRITTEN = {
    "shrunk": "the rank was lowered",
    "reduced": "to the rank that the update has, less than that of its stacked factors",
    "rescaled": "the rank stayed, the scale or the dtype of the factors changed",
    "refactored": "the source has no pair of factors",
    "padded": "the factors are the same, bit for bit, filled up with zeros",
    "kept": "the factors are the same, bit for bit",
    "removed": "the policy has chosen rank 0, as `--min-rank 0` allows: nothing is written",
    "zero": "the update is zero, and its errors are given as 0",
}

SCHEMAS: Mapping[str, Schema] = {
    "lora-tools/report/3": Schema(
        "`shrink` and `convert --json`, `shrink --report FILE`, `lora_tools_report.json` in OUT",
        REWRITE,
        REWRITTEN,
        "Errors below 10⁻⁸ are [noise](mathematics.md#the-error-that-is-written), an exact 0 is"
        " exact. With `lora_bias`, rounding of the bias counts into `error`. For DoRA, all figures"
        " are those of the low-rank direction. `sigma_max` is null where no singular value had to"
        " be computed. With `--dry-run` the report is the same: the factors are computed and"
        " measured, and not written.",
    ),
    "lora-tools/combine/1": Schema(
        "`combine --json`, `lora_tools_report.json` in OUT",
        {
            **REWRITE,
            **ADAPTERS,
            "": (*REWRITE[""], "adapters", "contributions", "conflicts"),
            "contributions[]": _names("module adapter_numbers norms norm remaining adapter_pairs"),
            "contributions[].adapter_pairs[]": _names(
                "adapter_numbers cosine column_angles row_angles"
            ),
        },
        REWRITTEN | {"stacked": "a sum, the factors of its summands side by side"},
        "The fields of `lora-tools/report/3`, where errors are against the exact weighted sum."
        " Angles are the smallest and the largest, of the weighted updates as `cosine` is.",
    ),
    "lora-tools/ranks/2": Schema(
        "`shrink --dry-run --json` without a policy",
        {"": _names("schema ranks"), **RANKS},
        remark="Powers of two up to the largest rank, and that rank. Ranks that the other options"
        " forbid are absent.",
    ),
    "lora-tools/inspect/2": Schema(
        "`inspect --json` of an adapter",
        {
            "": _names(
                "schema source format variants base_model task scale_model trained_by totals groups"
                " modules tensors problems notes ranks suggestion base prefixes unmatched misshapen"
                " verdicts"
            ),
            "totals": _names("modules params bytes dtypes norm base_params base_bytes"),
            "groups[]": _names("pattern count kind shape rank alpha scale dtype parts params"),
            "modules[]": _names(
                "module kind rank alpha scale shape dtype params bytes parts spectrum base_tensor"
                " base_norm relative_norm"
            ),
            "modules[].spectrum": _names(
                "state norm sigma_max stable_rank effective_rank energy_ranks sigma duplicate_of"
            ),
            "tensors[]": _names("tensor kind dtype shape bytes"),
            **RANKS,
            "suggestion": _names(
                "rank_after energy optimal_error bytes_before bytes_after arguments text"
            ),
            **PREFIXES,
            "misshapen[]": _names("module shape base_tensor base_shape"),
            **VERDICTS,
        },
        remark="What was not asked for is null: spectra, ranks and suggestion without `--spectrum`,"
        " what is said of the base without `--base`. Values that are not finite are null, too. The"
        " `sigma` of a stack are pooled, `sigma_max` is the largest of all its updates. `tensors`"
        " are those that belong to no update. `ranks` is empty if the adapter cannot be shrunk as"
        " it is.",
    ),
    "lora-tools/tensors/2": Schema(
        "`inspect --json` of any other checkpoint",
        {
            "": _names(
                "schema source architecture is_adapter reason totals groups verdicts metadata"
            ),
            "totals": _names("tensors params bytes dtypes"),
            "groups[]": _names("pattern count dtype shape params bytes"),
            **VERDICTS,
        },
        remark="`reason` says why it was not read as an adapter. `dtype` and `shape` of a group are"
        " those of each of its tensors, `params` and `bytes` those of all.",
    ),
    "lora-tools/extraction/2": Schema(
        "`extract --json`, `lora_tools_report.json` in OUT",
        {
            "": _names(
                "schema command policy base tuned arguments bound_tolerance failure_probability"
                " totals modules tensors unchanged unmatched_tensors notes inputs?"
            ),
            "totals": _names(
                "modules outcomes params_after bytes_after relative_norm energy error"
                " optimal_error_lower_bound whole_model_error compared_base compared_tuned"
            ),
            "unmatched_tensors[]": _names("tensor side shape params reason"),
            "modules[]": _names(
                "module shape bytes_before rank_after rank_stored norm relative_norm energy error"
                " optimal_error_lower_bound method steps outcome"
            ),
            "tensors[]": _names("tensor shape bytes_before norm relative_norm outcome reason"),
            **MADE,
        },
        {
            "extracted": "a module of the adapter",
            "carried": "stored whole",
            "left out": "changed and not in the adapter",
            "not finite": "left out because of NaN or Inf (`--skip-bad`)",
            "unchanged": "equal, bit for bit",
        },
        "`bytes_before` is the size of a tensor in the fine-tuned model. `norm` is null where no"
        " difference was formed. The report has no times in it, so that equal inputs give equal"
        " bytes.",
    ),
    "lora-tools/extraction-plan/2": Schema(
        "`extract --dry-run --json`",
        {
            "": _names("schema command totals modules"),
            "totals": _names("modules params_after bytes_after estimated_seconds"),
            "modules[]": _names("module shape outcome reason rank_after"),
        },
        {
            "extracted": "would be a module of the adapter",
            "carried": "would be stored whole",
            "left out": "would not be in the adapter",
        },
        "What would become of each tensor if it changed; sizes are the largest possible.",
    ),
    "lora-tools/part/1": Schema(
        "`extract` and `merge --part I/N --json`",
        {"": _names("schema command part part_count pieces resumed_pieces total_pieces waiting")},
    ),
    "lora-tools/merge/2": Schema(
        "`merge --json`, `lora_tools_report.json` in OUT",
        {
            "": _names(
                "schema command base adapters arguments totals warning tensors removed left_out"
                " prefixes notes inputs?"
            ),
            "totals": _names(
                "tensors outcomes error lost_to_rounding bytes_after shards resumed_shards seconds"
            ),
            "tensors[]": _names(
                "tensor shape dtype outcome module_scales norm error updated_elements"
                " lost_to_rounding"
            ),
            **ADAPTERS,
            **PREFIXES,
            **MADE,
        },
        {
            "merged": "with updates or trained rows",
            "replaced": "an adapter holds it whole",
            "cast": "otherwise untouched, in another dtype",
            "copied": "its bytes are the base's",
        },
        "`tensors` are those that are not copied; `error` is what rounding took, ‖(W′ − W) − ΔW‖ /"
        " ‖ΔW‖. With `--dry-run`, `tensors` is empty and what has to be computed is 0.",
    ),
    "lora-tools/verify/2": Schema(
        "`verify --json`",
        {
            "": _names(
                "schema command merged base adapters passed totals tensors missing_files"
                " only_in_merged left_out prefixes"
            ),
            "totals": _names("tensors outcomes"),
            "tensors[]": _names("tensor outcome reason strength"),
            **ADAPTERS,
            **PREFIXES,
        },
        {
            "copied": "its bytes are the base's",
            "exact": "the correctly rounded sum",
            "rounding": "within one step of it",
            "not merged": "the base's, where an update should be",
            "wrong strength": "the update, multiplied by another number",
            "different": "anything else",
            "untouched changed": "differs from the base, and no adapter changes it",
            "missing": "not in the merged model",
        },
        "`tensors` are those that are not copied, under their names in the base. `strength` is the"
        " multiple of the update asked for that fits best, where one explains the tensor.",
    ),
    "lora-tools/diff/2": Schema(
        "`diff --json`",
        {
            "": _names(
                "schema source_a source_b format_a format_b base_model_a base_model_b tolerance"
                " same summary totals modules tensors notes"
            ),
            "totals": _names(f"modules tensors outcomes {FIGURES}"),
            "modules[]": _names(
                "module module_a module_b outcome identical shape_a shape_b dtype_a dtype_b rank_a"
                f" rank_b scale_a scale_b {FIGURES} column_angles row_angles new_columns new_rows"
                " lost_columns lost_rows magnitude_difference bias_difference"
            ),
            "tensors[]": _names(
                "tensor tensor_a tensor_b outcome identical shape_a shape_b dtype_a dtype_b"
                " relative_difference"
            ),
        },
        {
            "same": "no relative difference exceeds the tolerance, of the update, the magnitude or"
            " the bias; a module that only one adapter has is the same if it adds nothing",
            "different": "one does",
            "only in A": "B lacks it",
            "only in B": "A lacks it",
            "other shape": "A and B cannot be subtracted",
        },
        "A and B are the first and the second argument; `module` and `tensor` are what A calls it,"
        " or else B. Modules are in A's order, then those of B alone. Where the shapes differ,"
        " everything from `norm_a` on is null. `totals` are those of all modules as blocks of one"
        " matrix: a module that one adapter lacks is zero there, one whose shapes differ is not in"
        " them. The angles of a stack are those of all its members. `tensors` are those that belong"
        " to no update.",
    ),
    "lora-tools/push/2": Schema(
        "`push --json`",
        {
            "": _names(
                "schema source repo revision new_repo base_model files left_out notes card commit"
                " url pull_request verified"
            ),
            "files[]": _names("file outcome bytes sha256"),
        },
        {
            "new": "not on the Hub before the push",
            "changed": "another file of that name was",
            "unchanged": "the same file was",
        },
        "`file` is the name in the repository. If the checksums on the Hub differ afterwards, the"
        " command fails.",
    ),
    "lora-tools/formats/2": Schema(
        "`formats --json`",
        {
            "": _names("schema formats features refused"),
            "formats[]": _names("format tools write supports"),
        },
    ),
}
