"""MLX (mlx-lm): adapters.safetensors, transposed factors, a scale in the configuration."""

import re
from collections.abc import Mapping
from typing import Any

from lora_tools.errors import some
from lora_tools.files.typed import is_count, shown
from lora_tools.runtimes.base import Breach, Rule, Runtime, Subject, Verdict
from lora_tools.runtimes.checks import breach, has_only
from lora_tools.runtimes.keys import Pair
from lora_tools.runtimes.rules import CONFIG, tensor_file

LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.")
NEEDED = ("rank", "scale", "dropout")


def _parameters(subject: Subject) -> Mapping[str, Any] | None:
    found = subject.fields.get("lora_parameters")
    return found if isinstance(found, Mapping) else None


def _kind(subject: Subject) -> str:
    found = subject.fields.get("fine_tune_type", "lora")
    return found if isinstance(found, str) else shown(found)


def _fields(subject: Subject) -> Breach | None:
    if subject.config is None or _kind(subject) == "full":
        return None
    missing = [name for name in ("num_layers", "lora_parameters") if name not in subject.config]
    parameters = _parameters(subject)
    if parameters is not None:
        missing += [f"lora_parameters.{name}" for name in NEEDED if name not in parameters]
    return breach(missing, f"adapter_config.json lacks {some(missing)}")


def _is_known(subject: Subject, key: str) -> bool:
    leaves = ("lora_a", "lora_b", "m") if _kind(subject) == "dora" else ("lora_a", "lora_b")
    return _kind(subject) == "full" or key.rpartition(".")[2] in leaves


def _ranks(subject: Subject) -> Breach | None:
    rank = (_parameters(subject) or {}).get("rank")
    if not is_count(rank) or not isinstance(rank, int):
        return None
    wrong = {
        pair.key_prefix: pair
        for pair in subject.pairs
        if pair.naming == "mlx" and _misfits(pair, rank)
    }
    if not wrong:
        return None
    first = next(iter(wrong.values()))
    turned = all(_misfits(_turned(pair), rank) is False for pair in wrong.values())
    shapes = some(list(part.spec.shape) for part in (first.down, first.up) if part)
    why = "lora_a is (in, rank) and lora_b (rank, out)" if turned else f"the rank should be {rank}"
    stated = "transposed" if turned else "of another rank"
    return Breach(
        f"{len(wrong)} pairs are {stated}: {first.key_prefix} has {shapes}; {why}", list(wrong)
    )


def _misfits(pair: Pair, rank: int) -> bool:
    down, up = (part.spec.shape if part else () for part in (pair.down, pair.up))
    if len(down) == 3 or len(up) == 3:  # experts: (experts, rank, in) and (experts, out, rank)
        return down[1:2] != (rank,) or up[2:] != (rank,)
    return (bool(down) and down[-1:] != (rank,)) or (bool(up) and up[:1] != (rank,))


def _turned(pair: Pair) -> Pair:
    def turn(part: Any) -> Any:
        return part and part._replace(spec=type(part.spec)(part.spec.dtype, part.spec.shape[::-1]))

    return pair._replace(down=turn(pair.down), up=turn(pair.up))


def _layers(subject: Subject) -> Breach | None:
    count = subject.fields.get("num_layers")
    if (
        not isinstance(count, int)
        or not is_count(count)
        or not count
        or (_parameters(subject) or {}).get("keys")
    ):
        return None  # -1 is all; keys name modules wherever they are
    found = {key: int(match[1]) for key in subject.specs if (match := LAYER.search(key))}
    low, high = min(found.values(), default=0), max(found.values(), default=0)
    if high - low < count:
        return None
    return Breach(
        f"num_layers is {count}, the last of the model, but the file has layers {low} to {high}",
        [key for key, layer in found.items() if layer <= high - count],
    )


def _alpha(subject: Subject) -> Breach | None:
    parameters = _parameters(subject) or {}
    if not {"alpha", "scale"} <= parameters.keys():
        return None
    alpha, factor = parameters["alpha"], parameters["scale"]
    why = f"alpha {shown(alpha)} is not read; the scale is {shown(factor)}"
    return Breach(why, ["lora_parameters.alpha"])


MLX = Runtime(
    "mlx",
    "0.32.2",
    "mlx_lm/tuner/utils.py, lora.py",
    (
        CONFIG,
        tensor_file("The tensors are read from adapters.safetensors.", "adapters.safetensors"),
        Rule(
            "fields",
            Verdict.REFUSED,
            "The configuration must have num_layers, and in lora_parameters rank, scale, dropout.",
            _fields,
        ),
        Rule(
            "keys",
            Verdict.REFUSED,
            "Every tensor must be a lora_a or lora_b, or, of DoRA, an m.",
            has_only(_is_known, "are not parameters of an adapter"),
        ),
        Rule(
            "shapes",
            Verdict.REFUSED,
            "lora_a is (in, rank) and lora_b (rank, out), transposed against PEFT's, of one rank.",
            _ranks,
        ),
        Rule(
            "layers",
            Verdict.REFUSED,
            "The last num_layers blocks of the model are adapted; tensors of others are refused.",
            _layers,
        ),
        Rule(
            "alpha",
            Verdict.LOADS,
            "The scale is `scale` itself; an alpha is not read.",
            _alpha,
        ),
    ),
)
