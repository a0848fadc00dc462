"""PEFT itself: what `PeftModel.from_pretrained` makes of an adapter, on the base it belongs to."""

from lora_tools.runtimes.base import Rule, Runtime, Verdict
from lora_tools.runtimes.checks import has_pairs
from lora_tools.runtimes.fixes import refolded
from lora_tools.runtimes.peft import configuration, tensors
from lora_tools.runtimes.rules import CONFIG, tensor_file, types

PEFT = Runtime(
    "peft",
    "0.21.2",
    "peft/config.py, peft/utils/save_and_load.py, peft/utils/other.py, peft/tuners/lora",
    (
        CONFIG,
        Rule(
            "kind",
            Verdict.REFUSED,
            "The configuration must say its peft_type.",
            configuration.kind,
            final=True,
        ),
        tensor_file(
            "The tensors are looked for in adapter_model.safetensors and adapter_model.bin.",
            "adapter_model.safetensors",
            "adapter_model.bin",
        ),
        types(of=configuration.of_lora),  # AdaLoRA's patterns are masks
        Rule(
            "expression",
            Verdict.REFUSED,
            "Patterns are regular expressions, `(.*\\.)?key$`; one that cannot be compiled raises.",
            configuration.expression,
            final=True,
        ),
        Rule(
            "rank-zero",
            Verdict.REFUSED,
            "A rank of 0 is refused, also one that rank_pattern gives.",
            configuration.rank_zero,
        ),
        Rule(
            "shapes",
            Verdict.REFUSED,
            "The tensors must have the rank that the configuration gives the module; patterns match"
            " as a suffix that begins at a dot, and the first match wins.",
            tensors.shapes,
        ),
        Rule(
            "modules-to-save",
            Verdict.REFUSED,
            "The tensors of modules_to_save must be in the file.",
            configuration.missing_saved,
        ),
        Rule(
            "tokens",
            Verdict.REFUSED,
            "The rows of trainable_token_indices must be in the file.",
            configuration.missing_tokens,
        ),
        Rule(
            "experts-order",
            Verdict.WRONG,
            "The B of stacked experts has its columns by rank, and not by expert as Unsloth's had.",
            configuration.grouped_experts,
            refolded,
        ),
        Rule(
            "saved-names",
            Verdict.REFUSED,
            "Tensors of modules_to_save and trained tokens have PEFT's names: it looks for each.",
            tensors.unsaved,
            refolded,
        ),
        Rule(
            "no-factors",
            Verdict.NO_EFFECT,
            "Tensors that are not named as PEFT names them are ignored.",
            configuration.of_lora(has_pairs),
        ),
        Rule(
            "prefix",
            Verdict.WRONG,
            "Names begin with `base_model.model.`; others are ignored without a warning.",
            tensors.unprefixed,
            refolded,
            whole=Verdict.NO_EFFECT,
        ),
        Rule(
            "wrapped",
            Verdict.WRONG,
            "Names do not hold what wrapped the model in training (`_orig_mod`,"
            " `_checkpoint_wrapped_module`, `module`, PEFT itself a second time); tensors whose"
            " names do are ignored.",
            tensors.wrapped,
            refolded,
            whole=Verdict.NO_EFFECT,
        ),
        Rule(
            "adapter-name",
            Verdict.WRONG,
            "Names do not hold the adapter's own, unless that is `default`; tensors whose names do"
            " are ignored.",
            tensors.named,
            refolded,
            whole=Verdict.NO_EFFECT,
        ),
        Rule(
            "targets",
            Verdict.WRONG,
            "Only modules that target_modules names are adapted; other tensors are ignored.",
            tensors.untargeted,
            whole=Verdict.NO_EFFECT,
        ),
        Rule(
            "no-b",
            Verdict.WRONG,
            "A lora_B that the file lacks is zero.",
            tensors.no_b,
            whole=Verdict.NO_EFFECT,
        ),
        Rule("no-a", Verdict.WRONG, "A lora_A that the file lacks is random.", tensors.no_a),
        Rule(
            "magnitude",
            Verdict.WRONG,
            "Magnitude vectors are read if, and only if, use_dora is set.",
            tensors.mismatched_dora,
        ),
        Rule(
            "lora-bias",
            Verdict.WRONG,
            "A bias of B is read only if lora_bias is set.",
            tensors.dropped_bias,
        ),
        Rule(
            "method",
            Verdict.LOADS,
            "Methods other than LoRA have rules of their own, which are not judged here.",
            configuration.method,
        ),
        Rule(
            "hot-swap",
            Verdict.LOADS,
            "Hot-swapping into a compiled model needs equal ranks, or padding to the largest.",
            tensors.mixed_ranks,
        ),
    ),
)
