"""vLLM: one folder of PEFT, one maximum of ranks, nothing but factors."""

from lora_tools.runtimes.base import Rule, Runtime, Subject, Verdict
from lora_tools.runtimes.fields import sets
from lora_tools.runtimes.fixes import lowered, refolded, uniform
from lora_tools.runtimes.limits import RANKS, REFUSES
from lora_tools.runtimes.rules import CONFIG, DORA, fields, keys, tensor_file, types
from lora_tools.runtimes.scales import read_at
from lora_tools.runtimes.vllm import configuration, ranks, tensors

MAX_RANK = 16
"""What `--max-lora-rank` is if it is not given."""


def runtime(max_lora_rank: int = MAX_RANK) -> Runtime:
    """Return the rules of a server that was started with `--max-lora-rank`."""

    def lower(subject: Subject) -> str | None:
        return lowered(subject, max(rank for rank in RANKS if rank <= max_lora_rank))

    return Runtime(
        "vllm",
        "0.33.0",
        "vllm/lora/peft_helper.py, lora_model.py, utils.py, model_manager.py; vllm/config/lora.py",
        (
            *DEMANDS,
            Rule(
                "max-rank",
                Verdict.REFUSED,
                "The largest of the configuration's r and of the ranks in rank_pattern must not"
                " exceed `--max-lora-rank`, which is 16 if it is not given.",
                ranks.max_rank(max_lora_rank),
                lower,
            ),
            Rule(
                "pattern-slips-through",
                Verdict.REFUSED,
                "Only r is compared with `--max-lora-rank`, so a larger rank of rank_pattern passes"
                " the check and fails when its factors are copied into smaller buffers.",
                ranks.slips_through(max_lora_rank),
                lower,
                until="0.32.0",
            ),
            *READINGS,
        ),
        RANKS,
        REFUSES,
    )


DEMANDS = (
    CONFIG,
    fields("r", "lora_alpha", "target_modules"),
    tensor_file(
        "The tensors are looked for in adapter_model.safetensors, .bin and .pt.",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "adapter_model.pt",
    ),
    types(),
    Rule("rank-zero", Verdict.REFUSED, "r must be positive.", configuration.rank_zero),
    Rule(
        "pattern-zero",
        Verdict.REFUSED,
        "The ranks of rank_pattern must be positive whole numbers.",
        configuration.pattern_zero,
        since="0.32.0",
    ),
    Rule(
        "expression",
        Verdict.REFUSED,
        "Patterns are regular expressions; one that cannot be compiled raises.",
        configuration.expression,
        since="0.32.0",
    ),
    Rule(
        "modules-to-save",
        Verdict.REFUSED,
        "modules_to_save must be empty, or name the head of a classifier: classifier or score.",
        configuration.saved,
    ),
    DORA,
    Rule(
        "lora-bias",
        Verdict.REFUSED,
        "A bias of B is not supported.",
        sets("lora_bias", "a bias of B is not supported"),
        since="0.32.0",
    ),
    Rule("bias", Verdict.REFUSED, "Trained biases are not supported.", configuration.bias),
    Rule(
        "initialiser",
        Verdict.REFUSED,
        "Initialisations that alter the base (PiSSA, OLoRA, CorDA, LoftQ) are not supported.",
        configuration.initialiser,
        since="0.32.0",
    ),
    *(
        Rule(
            name,
            Verdict.REFUSED,
            f"{title} is not supported.",
            sets(field, "not supported"),
            since="0.32.0",
        )
        for name, field, title in (
            ("alora", "alora_invocation_tokens", "Activated LoRA"),
            ("layer-replication", "layer_replication", "A stack of replicated layers"),
            ("bdlora", "use_bdlora", "Block-diagonal LoRA"),
            ("qalora", "use_qalora", "QA-LoRA"),
        )
    ),
    keys(
        "Every tensor must be a lora_A.weight, lora_B.weight, lora_embedding_A or lora_embedding_B"
        " (or belong to the head of a classifier).",
        tensors.named,
    ),
    Rule(
        "matrices",
        Verdict.REFUSED,
        "Linear layers and embeddings alone can be adapted, no convolutions.",
        tensors.convolutions,
    ),
)

READINGS = (
    Rule(
        "prefix",
        Verdict.WRONG,
        "Modules are found by their whole path in the model; one that is not found is left out"
        " without a warning, so that the answer is the base's.",
        tensors.prefix,
        whole=Verdict.NO_EFFECT,
    ),
    Rule(
        "stacked-experts",
        Verdict.LOADS,
        "Experts that are stacked in one tensor need a flag on models that hold them one by one.",
        tensors.experts,
    ),
    Rule(
        "one-scale",
        Verdict.WRONG,
        "One scale for the whole adapter, lora_alpha / r (or / √r) of the configuration;"
        " rank_pattern and alpha_pattern are never read.",
        read_at("vllm", ranks.one_scale, "reads one scale for all modules"),
        uniform,
        until="0.32.0",
    ),
    Rule(
        "rslora-experts",
        Verdict.WRONG,
        "Under rsLoRA experts are scaled by lora_alpha / r all the same.",
        tensors.rslora_experts,
        refolded,
        until="0.30.0",
    ),
)


VLLM = runtime()
