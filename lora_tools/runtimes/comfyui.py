"""ComfyUI: an alpha beside each pair, or scale 1; names that map to nothing do nothing."""

from lora_tools.architectures.pipelines import loaded
from lora_tools.errors import some
from lora_tools.runtimes.base import Breach, Rule, Runtime, Subject, Verdict
from lora_tools.runtimes.checks import breach
from lora_tools.runtimes.fixes import even
from lora_tools.runtimes.keys import PREFIX, Pair
from lora_tools.runtimes.scales import read_at

OTHERS = (".lokr_", ".hada_", ".oft_", ".diff", ".set_weight", "_norm", ".a1.weight", ".b1.weight")
"""Marks of what it loads beside pairs of factors."""
NAMINGS = ("peft", "loralib", "kohya", "processor", "diffusers", "text encoder")


def _nothing_known(subject: Subject) -> Breach | None:
    if subject.pairs or any(mark in key for key in subject.specs for mark in OTHERS):
        return None
    return Breach(f"no tensor is named as it knows them: they are {some(subject.specs, 3)}")


def _rekeyed(subject: Subject) -> Breach | None:
    lost = [pair.key_prefix for pair in subject.pairs if not _reads(pair)]
    if not lost:
        return None
    key = next(key for pair in subject.pairs if pair.key_prefix == lost[0] for key in pair.keys)
    return Breach(
        f"{len(lost)} of {len(subject.pairs)} pairs are named as it does not read them: {key}",
        lost,
    )


def _reads(pair: Pair) -> bool:
    named = pair.naming == "peft, named" and all(".default." in key for key in pair.keys)
    return pair.naming in NAMINGS or named


def _peft_names(subject: Subject) -> Breach | None:
    """Find names with PEFT's prefix, unless all are of models for which it is in the table."""
    prefixed = [pair for pair in subject.pairs if pair.key_prefix.startswith(PREFIX)]
    models = loaded("comfyui")
    tops = frozenset[str]().union(*models.values())
    strange = [
        p for p in prefixed if p.key_prefix.removeprefix(PREFIX).partition(".")[0] not in tops
    ]
    if not strange:
        return None
    return Breach(
        f"{len(prefixed)} names begin with {PREFIX!r}, which only {' and '.join(models)} have in"
        " the table, and these are not theirs",
        [pair.key_prefix for pair in prefixed],
    )


def _unet_names(subject: Subject) -> Breach | None:
    lost = [
        pair.key_prefix
        for pair in subject.pairs
        if pair.key_prefix.startswith("unet.")
        and ".to_" in pair.key_prefix
        and ".processor." not in pair.key_prefix
    ]
    return breach(
        lost,
        f"{len(lost)} names of attention lack `.processor`, as newer diffusers writes them, which"
        " ComfyUI does not know",
    )


def _incomplete(subject: Subject) -> Breach | None:
    lone = [p.key_prefix for p in subject.pairs if p.down is None and p.up is not None]
    return breach(lone, f"{len(lone)} pairs lack the first factor: a KeyError")


def _half(subject: Subject) -> Breach | None:
    lone = [p.key_prefix for p in subject.pairs if p.up is None]
    return breach(lone, f"{len(lone)} pairs lack the second factor and are ignored")


def _magnitude(subject: Subject) -> Breach | None:
    vectors = [key for key in subject.specs if "lora_magnitude_vector" in key]
    return breach(
        vectors, f"{len(vectors)} magnitude vectors are not read, the rest is loaded as LoRA"
    )


def _scale(subject: Subject, pair: Pair) -> float | None:
    if pair.alpha is None:
        return 1.0
    return subject.scalars[pair.alpha] / pair.rank if pair.rank else None


COMFYUI = Runtime(
    "comfyui",
    "0.38.1",
    "comfy/lora.py, comfy/weight_adapter/lora.py",
    (
        Rule(
            "no-factors",
            Verdict.NO_EFFECT,
            "A file without any tensor that it knows patches nothing.",
            _nothing_known,
        ),
        Rule("incomplete", Verdict.REFUSED, "A second factor needs its first one.", _incomplete),
        Rule(
            "half",
            Verdict.WRONG,
            "A first factor without its second one is ignored.",
            _half,
            whole=Verdict.NO_EFFECT,
        ),
        Rule(
            "naming",
            Verdict.WRONG,
            "Tensors are looked for under six key namings; others are ignored with a warning.",
            _rekeyed,
            whole=Verdict.NO_EFFECT,
        ),
        Rule(
            "peft-names",
            Verdict.WRONG,
            "PEFT's prefix is known for the modules of a few models alone; other names with it map"
            " to nothing.",
            _peft_names,
            whole=Verdict.NO_EFFECT,
        ),
        Rule(
            "unet-names",
            Verdict.WRONG,
            "Attention of a UNet is known as `unet.….processor.to_q` or in kohya's names; the newer"
            " `unet.….to_q` of diffusers maps to nothing.",
            _unet_names,
            whole=Verdict.NO_EFFECT,
        ),
        Rule(
            "magnitude",
            Verdict.WRONG,
            "DoRA is read from dora_scale, not from PEFT's magnitude vectors.",
            _magnitude,
        ),
        Rule(
            "alpha",
            Verdict.WRONG,
            "The scale is alpha / rank with an alpha beside the pair, and 1 without:"
            " adapter_config.json and the header are not read.",
            read_at("comfyui", _scale, "reads an alpha beside each pair, or takes scale 1"),
            even,
        ),
    ),
)
