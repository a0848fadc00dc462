"""What vLLM makes of the tensors, by their names and shapes."""

from lora_tools.architectures.conventions import EMBEDDING, HEAD
from lora_tools.names import NUMBER
from lora_tools.runtimes.base import Breach, Subject
from lora_tools.runtimes.checks import breach, has_only
from lora_tools.runtimes.keys import PREFIX
from lora_tools.runtimes.vllm.configuration import HEADS
from lora_tools.runtimes.vllm.ranks import plain

FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
SKIPPED = tuple(f".{name}.base_layer.weight" for name in (EMBEDDING, HEAD))
BACKBONE = ("layers", "h", "blocks")
"""What the layers of a model are called that has nothing around them."""


def _is_known(subject: Subject, key: str) -> bool:
    heads = HEADS if subject.fields.get("modules_to_save") else ()
    return key.endswith((*SKIPPED, *FACTORS)) or any(
        key.endswith((f".{head}.weight", f".{head}.bias")) for head in heads
    )


named = has_only(_is_known, "are not factors as it names them")


def prefix(subject: Subject) -> Breach | None:
    """Find modules that no causal model of vLLM has: layers without the model around them."""
    lost = [
        pair.path
        for pair in subject.pairs
        if (path := pair.key_prefix.removeprefix(PREFIX)).startswith("base_model.")
        or (path.partition(".")[0] in BACKBONE and NUMBER.search(path))
    ]
    if not lost:
        return None
    return Breach(
        f"{lost[0]} does not begin at the top of a model, whose layers lie under `model.` or the"
        " like: no module has that name, and the base answers without a warning",
        lost,
    )


def convolutions(subject: Subject) -> Breach | None:
    """Find factors that are more than matrices, experts aside."""
    deep = [
        p.path
        for p in subject.pairs
        if p.down and len(p.down.spec.shape) > 2 and ".experts" not in p.path
    ]
    return breach(deep, f"{len(deep)} modules are convolutions")


def experts(subject: Subject) -> Breach | None:
    """Find experts that share a tensor."""
    ones = set(plain(subject))
    return breach(
        [pair.path for pair in subject.pairs if pair not in ones],
        "experts are stacked in one tensor: on models whose experts vLLM holds one by one it needs"
        " --enable-mixed-moe-lora-format, and is_3d_lora_weight in the request",
    )


def rslora_experts(subject: Subject) -> Breach | None:
    """Find experts whose scale has a root in it."""
    if not subject.fields.get("use_rslora"):
        return None
    found = [pair.path for pair in subject.pairs if ".experts" in pair.path]
    return breach(found, f"use_rslora is set, and {len(found)} modules are experts")
