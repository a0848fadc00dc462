"""vLLM: one folder of PEFT, one maximum of ranks, nothing but factors."""

from lora_tools.consumers.base import Breach, Check, Consumer, Rule, Subject, Verdict
from lora_tools.consumers.checks import (
    KINDS,
    config_scale,
    failing,
    has_config,
    has_fields,
    has_file,
    number,
    peft_of,
    ranks_of,
    read_at,
    sets,
    typed,
)
from lora_tools.consumers.keys import PREFIX, Pair
from lora_tools.consumers.limits import RANKS, REFUSES
from lora_tools.consumers.mends import lowered, rebaked, uniform
from lora_tools.names import NUMBER

MAX_RANK = 16
"""What `--max-lora-rank` is if it is not given."""

HEADS = ("classifier", "score")
SKIPPED = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
INITIALISERS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
BACKBONE = ("layers", "h", "blocks")


def consumer(max_lora_rank: int = MAX_RANK) -> Consumer:
    """Return the rules of a server that was started with `--max-lora-rank`."""

    def lower(subject: Subject) -> str | None:
        return lowered(subject, max(rank for rank in RANKS if rank <= max_lora_rank))

    return Consumer(
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
                _max_rank(max_lora_rank),
                lower,
            ),
            Rule(
                "pattern-slips-through",
                Verdict.REFUSED,
                "Only r is compared with `--max-lora-rank`, so a larger rank of rank_pattern passes"
                " the check and fails when its factors are copied into smaller buffers.",
                _slips_through(max_lora_rank),
                lower,
                until="0.32.0",
            ),
            *READINGS,
        ),
        RANKS,
        REFUSES,
    )


def _max_rank(most: int) -> Check:
    def check(subject: Subject) -> Breach | None:
        ranks = [*ranks_of(subject.config or {}), *(pair.rank or 0 for pair in _plain(subject))]
        largest = max(ranks, default=0)
        if largest <= most:
            return None
        enough = next((rank for rank in RANKS if rank >= largest), None)
        flag = f"`--max-lora-rank {enough}` would take it" if enough else "no value of it is enough"
        over = [pair.path for pair in _plain(subject) if (pair.rank or 0) > most]
        return Breach(f"rank {largest} is above --max-lora-rank {most}; {flag}", over)

    return check


def _slips_through(most: int) -> Check:
    def check(subject: Subject) -> Breach | None:
        general = (subject.config or {}).get("r")
        over = [pair.path for pair in _plain(subject) if (pair.rank or 0) > most]
        if not isinstance(general, int) or general > most or not over:
            return None
        top = max(pair.rank or 0 for pair in _plain(subject))
        return Breach(f"r is {general}, but {len(over)} modules have ranks up to {top}", over)

    return check


def _plain(subject: Subject) -> list[Pair]:
    """Return the pairs but for stacked experts, whose factors hold a rank for each expert."""
    stacked = (subject.config or {}).get("target_parameters")
    return [p for p in subject.pairs if not (stacked and p.path.endswith("experts"))]


def _rank_zero(subject: Subject) -> Breach | None:
    general = number((subject.config or {}).get("r", 1))
    return Breach(f"r is {general:g}", ["r"]) if general is not None and general <= 0 else None


def _pattern_zero(subject: Subject) -> Breach | None:
    pattern = dict((subject.config or {}).get("rank_pattern") or {})
    low = [key for key, rank in pattern.items() if not isinstance(rank, int) or rank <= 0]
    return Breach(f"rank_pattern gives {low[0]} the rank {pattern[low[0]]!r}", low) if low else None


def _expression(subject: Subject) -> Breach | None:
    peft, paths = peft_of(subject), [pair.path for pair in subject.pairs]
    error = failing(peft.rank, paths) or failing(peft.alpha, paths)
    return Breach(f"a pattern is no regular expression: {error}") if error else None


def _saved(subject: Subject) -> Breach | None:
    saved = (subject.config or {}).get("modules_to_save") or []
    others = [name for name in saved if name not in HEADS]
    if not others:
        return None
    return Breach("modules_to_save holds more than a classifier's head", others)


def _bias(subject: Subject) -> Breach | None:
    bias = (subject.config or {}).get("bias", "none")
    return Breach(f"bias is {bias!r}", ["bias"]) if bias != "none" else None


def _initialiser(subject: Subject) -> Breach | None:
    start = (subject.config or {}).get("init_lora_weights", True)
    if not isinstance(start, str) or start.lower() in INITIALISERS:
        return None
    return Breach(f"init_lora_weights is {start!r}: the adapter belongs to an altered base")


def _named(subject: Subject) -> Breach | None:
    heads = (subject.config or {}).get("modules_to_save") or []
    strange = [
        key
        for key in subject.specs
        if not key.endswith((*SKIPPED, ".lora_A.weight", ".lora_B.weight"))
        and not key.endswith((".lora_embedding_A", ".lora_embedding_B"))
        and not any(key.endswith((f".{head}.weight", f".{head}.bias")) for head in HEADS if heads)
    ]
    return (
        Breach(f"{len(strange)} tensors are not factors as it names them", strange)
        if strange
        else None
    )


def _named_mend(subject: Subject) -> str | None:
    """Mend names that keep the adapter's name in them; other tensors cannot be served at all."""
    named = {key for pair in subject.pairs if pair.spelling == "peft, named" for key in pair.keys}
    breach = _named(subject)
    return uniform(subject) if breach and set(breach.where) <= named else None


def _prefix(subject: Subject) -> Breach | None:
    """Find modules that no causal model of vLLM has: layers without the model around them."""
    lost = [
        pair.path
        for pair in subject.pairs
        if (path := pair.stem.removeprefix(PREFIX)).startswith("base_model.")
        or (path.partition(".")[0] in BACKBONE and NUMBER.search(path))
    ]
    if not lost:
        return None
    return Breach(
        f"{lost[0]} does not begin at the top of a model, whose layers lie under `model.` or the"
        " like: no module has that name, and the base answers without a warning",
        lost,
    )


def _convolutions(subject: Subject) -> Breach | None:
    deep = [
        p.path
        for p in subject.pairs
        if p.down and len(p.down.spec.shape) > 2 and ".experts" not in p.path
    ]
    return Breach(f"{len(deep)} modules are convolutions", deep) if deep else None


def _experts(subject: Subject) -> Breach | None:
    stacked = [pair.path for pair in subject.pairs if pair not in _plain(subject)]
    if not stacked:
        return None
    return Breach(
        "experts are stacked in one tensor: on models whose experts vLLM holds one by one it needs"
        " --enable-mixed-moe-lora-format, and is_3d_lora_weight in the request",
        stacked,
    )


def _rslora_experts(subject: Subject) -> Breach | None:
    if not (subject.config or {}).get("use_rslora"):
        return None
    experts = [pair.path for pair in subject.pairs if ".experts" in pair.path]
    return (
        Breach(f"use_rslora is set, and {len(experts)} modules are experts", experts)
        if experts
        else None
    )


DEMANDS = (
    Rule(
        "config",
        Verdict.REFUSED,
        "adapter_config.json must lie beside the tensors.",
        has_config,
        final=True,
    ),
    Rule(
        "fields",
        Verdict.REFUSED,
        "The configuration must have r, lora_alpha and target_modules.",
        has_fields("r", "lora_alpha", "target_modules"),
    ),
    Rule(
        "tensor-file",
        Verdict.REFUSED,
        "The tensors are looked for in adapter_model.safetensors, .bin and .pt.",
        has_file("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt"),
        final=True,
    ),
    Rule(
        "types",
        Verdict.REFUSED,
        "Numbers must be numbers, names names, and patterns pairs of them.",
        typed(*KINDS),
        final=True,
    ),
    Rule("rank-zero", Verdict.REFUSED, "r must be positive.", _rank_zero),
    Rule(
        "pattern-zero",
        Verdict.REFUSED,
        "The ranks of rank_pattern must be positive whole numbers.",
        _pattern_zero,
        since="0.32.0",
    ),
    Rule(
        "expression",
        Verdict.REFUSED,
        "Patterns are regular expressions; one that cannot be compiled raises.",
        _expression,
        since="0.32.0",
    ),
    Rule(
        "modules-to-save",
        Verdict.REFUSED,
        "modules_to_save must be empty, or name the head of a classifier: classifier or score.",
        _saved,
    ),
    Rule(
        "dora", Verdict.REFUSED, "DoRA is not supported.", sets("use_dora", "DoRA is not supported")
    ),
    Rule(
        "lora-bias",
        Verdict.REFUSED,
        "A bias of B is not supported.",
        sets("lora_bias", "a bias of B is not supported"),
        since="0.32.0",
    ),
    Rule("bias", Verdict.REFUSED, "Trained biases are not supported.", _bias),
    Rule(
        "initialiser",
        Verdict.REFUSED,
        "Initialisations that alter the base (PiSSA, OLoRA, CorDA, LoftQ) are not supported.",
        _initialiser,
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
    Rule(
        "keys",
        Verdict.REFUSED,
        "Every tensor must be a lora_A.weight, lora_B.weight, lora_embedding_A or lora_embedding_B"
        " (or belong to the head of a classifier).",
        _named,
        _named_mend,
    ),
    Rule(
        "matrices",
        Verdict.REFUSED,
        "Linear layers and embeddings alone can be adapted, no convolutions.",
        _convolutions,
    ),
)

READINGS = (
    Rule(
        "prefix",
        Verdict.WRONG,
        "Modules are found by their whole path in the model; one that is not found is left out"
        " without a warning, so that the answer is the base's.",
        _prefix,
        whole=Verdict.NOTHING,
    ),
    Rule(
        "stacked-experts",
        Verdict.LOADS,
        "Experts that are stacked in one tensor need a flag on models that hold them one by one.",
        _experts,
    ),
    Rule(
        "one-scale",
        Verdict.WRONG,
        "One scale for the whole adapter, lora_alpha / r (or / √r) of the configuration;"
        " rank_pattern and alpha_pattern are never read.",
        read_at(
            "vllm", lambda subject, pair: _one_scale(subject), "reads one scale for all modules"
        ),
        uniform,
        until="0.32.0",
    ),
    Rule(
        "rslora-experts",
        Verdict.WRONG,
        "Under rsLoRA experts are scaled by lora_alpha / r all the same.",
        _rslora_experts,
        rebaked,
        until="0.30.0",
    ),
)


def _one_scale(subject: Subject) -> float | None:
    factor, rank = config_scale(subject), (subject.config or {}).get("r")
    rslora = (subject.config or {}).get("use_rslora")
    return factor * rank**0.5 if factor is not None and rank and rslora else factor


VLLM = consumer()
