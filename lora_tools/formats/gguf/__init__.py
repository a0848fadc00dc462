"""llama.cpp's GGUF adapters: ``blk.0.attn_q.weight.lora_a`` and ``.lora_b``, one alpha for all."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.architectures.dialects import Counterpart, candidate_of
from lora_tools.architectures.layout import Interleaved, Numbers
from lora_tools.architectures.numbers import numbers_of
from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.container import GGUF, Container
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.fields import Field, text_of
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.gguf.header import (
    ARCHITECTURE,
    alpha_of,
    base_of,
    check_kind,
    common_alpha,
    header,
)
from lora_tools.formats.gguf.names import (
    DIALECT,
    architecture_of,
    beginnings,
    check_head,
    check_places,
    models_of,
    path_of,
    place_of,
)
from lora_tools.formats.manifest import Extra, Manifest, Module, Part, Role
from lora_tools.formats.rotary import Paired, from_file, paired, to_file
from lora_tools.formats.sites import Embedding, Linear

if TYPE_CHECKING:
    from lora_tools.update import Array, Update


KEY = re.compile(r"(?P<key_prefix>.+)\.weight\.lora_(?P<role>[ab])")


NORM = "_norm.weight"
"""How tensors end that llama.cpp skips."""


class LlamaCpp:
    """The format that llama.cpp's ``--lora`` loads and ``convert_lora_to_gguf.py`` writes."""

    name = "gguf"
    about = "llama.cpp"
    supports: frozenset[str] | None = frozenset({"embedding"})
    container: Container = GGUF
    names: Names = "any"
    files: tuple[str, ...] = ()
    config_file: str | None = None

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise GGUF by llama.cpp's names of weights before its suffixes."""
        return any(KEY.fullmatch(key) and key.startswith(beginnings()) for key in specs)

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter, its modules under transformers' names.

        The rows of a Llama's queries and keys have the interleaved RoPE layout; how many heads
        share them is known from ``contents.base`` alone. Raises `UnsupportedError` for other
        architectures and for aLoRA.
        """
        metadata = contents.metadata
        check_kind(metadata)
        name = metadata.get(ARCHITECTURE, "")
        models = models_of(name)
        if contents.base:
            models = (candidate_of(contents.base, "llama.cpp", DIALECT),)
            if (own := models[0].family.ids[DIALECT]) != name:
                raise FormatError(
                    f"the adapter is for the architecture {name}, the base is {own}"
                ).hint("Give the base model that the adapter was trained on.")
        found: dict[str, dict[Role, Part]] = {}
        extras: list[Extra] = []
        for key, spec in contents.specs.items():
            match = KEY.fullmatch(key)
            if match and spec.dtype in FLOATS:
                role: Role = "a" if match["role"] == "a" else "b"
                found.setdefault(match["key_prefix"], {})[role] = Part(key, spec)
            elif key.endswith(NORM):
                extras.append(Extra(key, spec, "full weight"))
            else:
                raise FormatError(f"{key} of type {spec.dtype} is not understood")
        alpha, heads = alpha_of(metadata), numbers_of(contents.base)
        modules = tuple(
            _module(key_prefix, parts, alpha, path_of(key_prefix, models, name), heads)
            for key_prefix, parts in found.items()
        )
        return Manifest(
            self.name,
            modules,
            tuple(extras),
            {},
            metadata,
            base_of(metadata),
            tuple(_notes(modules, extras)),
        )

    def write(self, manifest: Manifest) -> Manifest:
        """Name the keys as llama.cpp does, under the one alpha that the most of them have.

        The architecture is that of the file, or of ``manifest.base``. Raises `UnsupportedError`
        for modules that llama.cpp has no name for, and without a base.
        """
        own = manifest.format == self.name
        name, models = architecture_of(manifest, own=own)
        places = {m.name: place for m in manifest.modules if (place := place_of(m, models))}
        check_places(manifest, places, name, own=own)
        check_head(manifest.base or {}, places, models)
        heads = numbers_of(manifest.base)
        if not own and not heads and any(place.order for place in places.values()):
            raise FormatError("the base model's config.json has no num_attention_heads")
        modules = tuple(
            _rekeyed(module, places[module.name], heads, own=own) for module in manifest.modules
        )
        key_prefixes = Counter(module.key_prefix for module in modules)
        if twice := [module.name for module in modules if key_prefixes[module.key_prefix] > 1]:
            raise UnsupportedError(f"llama.cpp has one name for these: {some(twice)}")
        alpha = common_alpha(modules)
        metadata = dict(manifest.metadata)
        if not own:  # text that only looks like a typed field is text
            metadata.pop("format", None)  # "pt": what other containers hold
            metadata = {key: text_of(Field("STRING", text)) for key, text in metadata.items()}
        return replace(
            manifest,
            format=self.name,
            modules=tuple(replace(module, alpha=alpha, rslora=False) for module in modules),
            config={},
            metadata=header(
                metadata,
                name,
                alpha,
                [part.spec.dtype for module in modules for part in module.parts.values()],
                manifest.base_model,
            ),
        )

    def update(self, module: Module, tensors: Mapping[str, "Array"]) -> "Update":
        """Make a module's update from the tensors of the file, rows in transformers' order."""
        from lora_tools.update import LowRank  # numpy is not needed for headers

        b, a = (tensors[module.parts[role].key] for role in ("b", "a"))
        if isinstance(module.site, Embedding):
            a = a.T
        return LowRank(a, from_file(module.rows, b), module.alpha, module.rslora)

    def tensors(self, module: Module, update: "Update") -> dict[str, "Array"]:
        """Make the file's tensors of a module from its update."""
        from lora_tools.update import factors

        low = factors(update)
        a = low.a.T if isinstance(module.site, Embedding) else low.a
        return {module.parts["a"].key: a, module.parts["b"].key: to_file(module.rows, low.b)}


def _module(
    key_prefix: str,
    parts: Mapping[Role, Part],
    alpha: float | None,
    found: Counterpart,
    heads: Numbers,
) -> Module:
    if parts.keys() != {"a", "b"}:
        raise FormatError(f"{key_prefix} has no lora_{'b' if 'a' in parts else 'a'}")
    a, b = parts["a"].spec.shape, parts["b"].spec.shape
    flipped = found.role == "embedding"  # llama.cpp looks rows of A up, one for each token
    turned = a[::-1] if flipped else a
    if len(a) != 2 or len(b) != 2 or turned[0] != b[1] or min(*a, *b) < 1:
        raise FormatError(
            f"{key_prefix}: lora_a {list(a)} and lora_b {list(b)} are no pair of factors"
        )
    (rank, inp), (out, _) = turned, b
    name, site = found.path, Embedding() if flipped else Linear()
    rows = _rows(name, out, found, heads)
    ordered: dict[Role, Part] = {"a": parts["a"], "b": parts["b"]}
    return Module(name, site, out, inp, rank, alpha, False, ordered, key_prefix, name, rows)


def _rows(name: str, out: int, found: Counterpart, heads: Numbers) -> Paired | None:
    """Return the order of a module's rows in the file, if it is not that of transformers."""
    if not isinstance(found.order, Interleaved):
        return None
    return paired(name, out, heads.get(found.order.heads))


def _rekeyed(module: Module, place: Counterpart, heads: Numbers, *, own: bool) -> Module:
    key_prefix = place.path
    a = (module.rank, module.inp)
    shapes: dict[Role, tuple[int, ...]] = {
        "a": a[::-1] if isinstance(module.site, Embedding) else a,
        "b": (module.out, module.rank),
    }
    # llama.cpp's kernels have no float64.
    types = {role: module.parts[role].spec.dtype.replace("F64", "F32") for role in shapes}
    parts: dict[Role, Part] = {
        role: Part(f"{key_prefix}.weight.lora_{role}", Spec(types[role], shape))
        for role, shape in shapes.items()
    }
    rows = module.rows if own else _rows(module.name, module.out, place, heads)
    return replace(module, parts=parts, key_prefix=key_prefix, rows=rows)


def _notes(modules: Iterable[Module], extras: list[Extra]) -> Iterator[str]:
    unknown = [module.name for module in modules if module.rows == Paired(None)]
    if unknown:
        yield (
            f"The rows of {len(unknown)} modules have the interleaved RoPE layout, and the file"
            f" does not say how many heads share them, as --base MODEL does: {some(unknown, 2)}."
        )
    if extras:
        yield f"{len(extras)} norms are replaced as a whole; llama.cpp skips them."
