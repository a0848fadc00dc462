"""Where an adapter comes from: what trained it, for which task, and how its scale is meant."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from lora_tools.files.typed import shown
from lora_tools.formats.manifest import Manifest
from lora_tools.formats.sites import Experts
from lora_tools.report import size

# Of the hundred fields that kohya's scripts write into a header, those that tell one training
# from another. `ss_` is theirs, `modelspec.` the Stability AI model metadata standard's.
TRAINING = (
    "ss_output_name",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "ss_learning_rate",
    "ss_optimizer",
    "ss_num_epochs",
    "ss_steps",
    "ss_num_train_images",
    "ss_resolution",
    "ss_training_comment",
    "ss_sd_scripts_commit_hash",
    "modelspec.title",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.author",
    "modelspec.date",
    "modelspec.license",
    "modelspec.resolution",
    "software",
    "version",
    "name",
)
LONGEST = 120
"""Characters of a value of metadata that are worth a line."""


def variants(manifest: Manifest) -> list[str]:
    """Return what the adapter is besides a plain LoRA."""
    modules = manifest.modules
    found = {
        "rsLoRA": any(module.rslora for module in modules),
        "DoRA": any("magnitude" in module.parts for module in modules),
        "biases on B": any("bias" in module.parts for module in modules),
        "AdaLoRA": any("lora_E" in module.parts for module in modules),
        "experts": any(isinstance(module.site, Experts) for module in modules),
    }
    return [name for name, holds in found.items() if holds]


def task(manifest: Manifest) -> str | None:
    """Return what the configuration says the model does."""
    value = manifest.config.get("task_type")
    return _stated(value) if value else None


def scale_model(manifest: Manifest) -> str:
    """Say in words how ranks and alphas make scales, and which scales there are."""
    modules = manifest.modules
    forms = [
        form
        for form, holds in {
            "alpha / r": any(m.alpha is not None and not m.rslora for m in modules),
            "alpha / √r (rsLoRA)": any(m.alpha is not None and m.rslora for m in modules),
            "1 where there is no alpha": any(m.alpha is None for m in modules),
        }.items()
        if holds
    ]
    counts = [
        f"{len(entries)} {name}{'s' * (len(entries) > 1)}"
        for name, field in (("rank pattern", "rank_pattern"), ("alpha pattern", "alpha_pattern"))
        if isinstance(entries := manifest.config.get(field), Mapping) and entries
    ]
    scales = Counter(module.scale for module in modules)
    values = ", ".join(f"{value:.4g}" for value in sorted(scales)[:5])
    more = f" and {len(scales) - 5} more" if len(scales) > 5 else ""
    return f"{', '.join([*forms, *counts])} = {values}{more}" if modules else "no modules"


def trained_by(manifest: Manifest) -> list[tuple[str, str]]:
    """Return (label, value) of what configuration and metadata say of the training."""
    return [*_configured(manifest.config), *_stamped(manifest.metadata)]


def _configured(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if version := config.get("peft_version"):
        yield "peft", _stated(version)
    mapping = config.get("auto_mapping")
    if isinstance(mapping, Mapping) and mapping.get("unsloth_fixed"):
        yield "unsloth", "yes"
    for field, label in (("revision", "base revision"), ("init_lora_weights", "initialised as")):
        value = config.get(field)
        if isinstance(value, str) and value:
            yield label, value
    if dropout := config.get("lora_dropout"):
        yield "dropout", _stated(dropout)


def _stated(value: object) -> str:
    """Return a value that only people read, whatever it is."""
    return value if isinstance(value, str) else shown(value)


def _stamped(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for field in TRAINING:
        value = metadata.get(field, "").strip()
        if value and value != "None":
            yield field, value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
    rest = [field for field in metadata if field not in TRAINING and field != "format"]
    if rest:
        nbytes = sum(len(metadata[field].encode()) for field in rest)
        yield "other metadata", f"{len(rest)} fields, {size(nbytes)}"
