"""diffusers: names begin with a component; alphas or metadata say the scale, else it is 1."""

from lora_tools.architectures.family import NATIVE
from lora_tools.architectures.pipelines import beginnings, loaded
from lora_tools.errors import CheckpointError, some
from lora_tools.files.objects import json_value
from lora_tools.runtimes.base import Breach, Rule, Runtime, Subject, Verdict
from lora_tools.runtimes.checks import breach
from lora_tools.runtimes.fixes import even
from lora_tools.runtimes.keys import PREFIX, Pair
from lora_tools.runtimes.scales import read_at

COMPONENTS = (
    "unet.",
    "transformer.",
    "transformer_2.",
    "text_encoder.",
    "text_encoder_2.",
    "text_encoder_3.",
    "prior.",
)
KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_transformer_")
OTHERS = (NATIVE, "transformer_", "lycoris_")
"""What else is converted: the second is looked for within names."""
METADATA = "lora_adapter_metadata"


def _is_language(subject: Subject, pair: Pair) -> bool:
    """Whether a name is of PEFT for a model that is no part of a diffusion pipeline."""
    return pair.key_prefix.startswith(f"{PREFIX}model.") or pair.naming in (
        "mlx",
        "torchtune",
        "loralib",
    )


def _elsewhere(subject: Subject) -> Breach | None:
    """Find names that no pipeline's loader maps to a component."""
    own = tuple(f"{word}." for words in loaded("diffusers").values() for word in words)
    lost = [
        pair.key_prefix
        for pair in subject.pairs
        if not f"{pair.key_prefix}.".startswith((*COMPONENTS, *KOHYA, *OTHERS, *own))
        and (_is_language(subject, pair) or not _is_unet_or_dit(pair))
    ]
    return breach(
        lost,
        f"{len(lost)} of {len(subject.pairs)} names begin with no component of a pipeline (unet.,"
        f" transformer., text_encoder.) and with nothing that is converted to one",
    )


def _is_unet_or_dit(pair: Pair) -> bool:
    """Whether a name is one of a diffusion model saved by itself, which some pipelines convert."""
    path = pair.key_prefix.removeprefix(PREFIX)
    return pair.key_prefix.startswith(PREFIX) and f"{path}.".startswith(beginnings("transformer"))


def _bare_processors(subject: Subject) -> Breach | None:
    bare = [
        pair.key_prefix
        for pair in subject.pairs
        if pair.naming == "processor" and pair.key_prefix.startswith(beginnings("unet"))
    ]
    return breach(
        bare,
        f"{len(bare)} names of attention processors lack the prefix `unet.` that load_lora_weights"
        " looks for, so their tensors are ignored",
    )


def _no_lora(subject: Subject) -> Breach | None:
    if any("lora" in key or "lokr" in key for key in subject.specs):
        return None
    return Breach(f"no name has 'lora' in it: they are {some(subject.specs, 3)}")


def _no_b_at_all(subject: Subject) -> Breach | None:
    if not subject.pairs or any(pair.up for pair in subject.pairs):
        return None
    return Breach("no pair has its second factor, from which ranks are read")


def _incomplete(subject: Subject) -> Breach | None:
    lone = [pair.key_prefix for pair in subject.pairs if (pair.down is None) != (pair.up is None)]
    if _no_b_at_all(subject):
        return None
    return breach(lone, f"{len(lone)} of {len(subject.pairs)} pairs lack a factor")


def _without_lora(subject: Subject) -> Breach | None:
    strange = [key for key in subject.specs if "lora" not in key and "dora_scale" not in key]
    if not any(key.startswith(("unet.", *beginnings("unet"))) for key in subject.specs):
        return None  # only the loaders of UNets demand it of every name
    return breach(strange, f"{len(strange)} names have no 'lora' in them")


def _two_scales(subject: Subject) -> Breach | None:
    if METADATA not in subject.metadata or not any(pair.alpha for pair in subject.pairs):
        return None
    return Breach("both alphas and lora_adapter_metadata say the scale")


def _bad_metadata(subject: Subject) -> Breach | None:
    if METADATA not in subject.metadata:
        return None
    try:
        json_value(subject.metadata[METADATA], METADATA)
    except CheckpointError as error:
        return Breach(str(error))
    return None


def _dora(subject: Subject) -> Breach | None:
    scales = [key for key in subject.specs if key.endswith(".dora_scale")]
    return breach(
        scales, f"{len(scales)} dora_scale tensors are taken out, the rest is loaded as LoRA"
    )


def _known(subject: Subject, pair: Pair) -> float | None:
    """Return the scale that diffusers gives a pair: alpha / rank, by metadata, or else 1."""
    if pair.alpha or METADATA in subject.metadata:
        return None  # as the format means it
    return 1.0


def _first_alpha(subject: Subject, pair: Pair) -> float | None:
    if pair.alpha or METADATA in subject.metadata or not pair.rank:
        return None
    return (subject.leaders[pair.component].rank or pair.rank) / pair.rank


DIFFUSERS = Runtime(
    "diffusers",
    "0.42.1",
    "diffusers/loaders/lora_pipeline.py, lora_base.py, peft.py; diffusers/utils/peft_utils.py",
    (
        Rule(
            "no-lora",
            Verdict.REFUSED,
            "Some name must have 'lora' or 'lokr' in it.",
            _no_lora,
            final=True,
        ),
        Rule(
            "names-with-lora",
            Verdict.REFUSED,
            "The loaders of UNets demand that every name has 'lora' in it.",
            _without_lora,
        ),
        Rule(
            "two-scales",
            Verdict.REFUSED,
            "Alphas and lora_adapter_metadata exclude each other.",
            _two_scales,
        ),
        Rule(
            "metadata",
            Verdict.REFUSED,
            "lora_adapter_metadata in the header must be JSON.",
            _bad_metadata,
        ),
        Rule(
            "component",
            Verdict.WRONG,
            "Names begin with the pipeline's component, or are of a naming that is converted to"
            " that; others are ignored with a warning at most.",
            _elsewhere,
            whole=Verdict.NO_EFFECT,
        ),
        Rule(
            "processors",
            Verdict.WRONG,
            "Attention processors are loaded with the prefix `unet.` only.",
            _bare_processors,
            whole=Verdict.NO_EFFECT,
        ),
        Rule(
            "no-b",
            Verdict.REFUSED,
            "Ranks are read from second factors, of which there must be one.",
            _no_b_at_all,
        ),
        Rule(
            "incomplete",
            Verdict.WRONG,
            "A factor that the file lacks keeps its first value: the first is random, the second"
            " zero.",
            _incomplete,
        ),
        Rule(
            "dora-scale",
            Verdict.WRONG,
            "kohya's dora_scale is taken out.",
            _dora,
        ),
        Rule(
            "scale-one",
            Verdict.WRONG,
            "Without alphas and metadata the scale is 1: adapter_config.json is not read.",
            read_at("diffusers", _known, "reads no adapter_config.json and takes scale 1"),
            even,
        ),
        Rule(
            "first-alpha",
            Verdict.WRONG,
            "Without alphas and metadata, the rank of the first tensor was everyone's alpha.",
            read_at(
                "diffusers", _first_alpha, "takes the first module's rank for everyone's alpha"
            ),
            until="0.40.0",
        ),
    ),
)
