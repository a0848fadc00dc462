"""llama.cpp's GGUF adapters: ``blk.0.attn_q.weight.lora_a`` and ``.lora_b``, one alpha for all."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.container import GGUF, Container
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.fields import Field, text_of
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents, Names
from lora_tools.formats.gguf.architectures import (
    HEAD,
    Architecture,
    architecture_of,
    key_prefix_of,
    named,
    path_of,
    text_config,
)
from lora_tools.formats.gguf.header import (
    ARCHITECTURE,
    alpha_of,
    base_of,
    check_kind,
    common_alpha,
    header,
)
from lora_tools.formats.manifest import Extra, Manifest, Module, Part, Role
from lora_tools.formats.rotary import Heads, Paired, from_file, heads_of, paired, to_file
from lora_tools.formats.sites import Embedding, Linear

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

KEY = re.compile(r"(?P<key_prefix>.+)\.weight\.lora_(?P<role>[ab])")
NORM = "_norm.weight"
"""How tensors end that llama.cpp skips."""

ROLES = {"a", "b", "alpha"}
"""The parts of a module that a GGUF file says: its alpha, if it is a tensor, in the header."""

OWN = ("blk.", "token_embd.", "output.")
TABLE = "token_embd"


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
        return any(KEY.fullmatch(key) and key.startswith(OWN) for key in specs)

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter, its modules under transformers' names.

        The rows of a Llama's queries and keys have the interleaved RoPE layout; how many heads
        share them is known from ``contents.base`` alone. Raises `UnsupportedError` for other
        architectures and for aLoRA.
        """
        metadata = contents.metadata
        check_kind(metadata)
        architecture = named(metadata.get(ARCHITECTURE, ""))
        if contents.base and (own := architecture_of(contents.base)) != architecture:
            raise FormatError(
                f"the adapter is for the architecture {architecture.name}, the base is {own.name}"
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
        alpha, heads = alpha_of(metadata), heads_of(contents.base)
        modules = tuple(
            _module(key_prefix, parts, alpha, architecture, heads)
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
        architecture, heads = _target(manifest, own=own)
        _check(manifest, architecture, own=own)
        modules = tuple(
            _rekeyed(module, architecture, heads, own=own) for module in manifest.modules
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
                architecture.name,
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
    architecture: Architecture,
    heads: Heads | None,
) -> Module:
    name = path_of(key_prefix, architecture)
    if name is None:
        raise UnsupportedError(f"{key_prefix}: no weight of {architecture.name} that is known here")
    if parts.keys() != {"a", "b"}:
        raise FormatError(f"{key_prefix} has no lora_{'b' if 'a' in parts else 'a'}")
    a, b = parts["a"].spec.shape, parts["b"].spec.shape
    flipped = key_prefix == TABLE  # llama.cpp looks rows of A up, one for each token
    turned = a[::-1] if flipped else a
    if len(a) != 2 or len(b) != 2 or turned[0] != b[1] or min(*a, *b) < 1:
        raise FormatError(
            f"{key_prefix}: lora_a {list(a)} and lora_b {list(b)} are no pair of factors"
        )
    (rank, inp), (out, _) = turned, b
    site = Embedding() if flipped else Linear()
    rows = _rows(name, out, architecture, heads)
    ordered: dict[Role, Part] = {"a": parts["a"], "b": parts["b"]}
    return Module(name, site, out, inp, rank, alpha, False, ordered, key_prefix, name, rows)


def _rows(name: str, out: int, architecture: Architecture, heads: Heads | None) -> Paired | None:
    """Return the order of a module's rows in the file, if it is not that of transformers."""
    which = {"q_proj": 0, "k_proj": 1}.get(name.rpartition(".")[2])
    if which is None or not architecture.paired:
        return None
    return paired(name, out, heads[which] if heads else None)


def _target(manifest: Manifest, *, own: bool) -> tuple[Architecture, Heads | None]:
    """Return the architecture to write for and the base's heads; a file's own rows are known."""
    if own:
        return named(manifest.metadata.get(ARCHITECTURE, "")), None
    if not manifest.base:
        raise UnsupportedError(
            "a GGUF adapter is for one architecture and its heads, which only the base model tells"
        ).hint("Give the base model, whose config.json says them: --base MODEL.")
    architecture, heads = architecture_of(manifest.base), heads_of(manifest.base)
    if heads is None and architecture.paired:
        raise FormatError("the base model's config.json has no num_attention_heads")
    return architecture, heads


def _check(manifest: Manifest, architecture: Architecture, *, own: bool) -> None:
    """Raise `UnsupportedError` for what the file has no place for."""
    modules = manifest.modules
    unmatched = [part.key for m in modules for role, part in m.parts.items() if role not in ROLES]
    if not own:
        unmatched += [extra.key for extra in manifest.extras]
    odd = [m.name for m in modules if not isinstance(m.site, Linear | Embedding)]
    odd += [m.name for m in modules if m.site == Linear(transposed=True)]
    odd += [m.name for m in modules if key_prefix_of(m.name, architecture) is None]
    odd += [
        m.name
        for m in modules
        if (key_prefix_of(m.name, architecture) == TABLE) != isinstance(m.site, Embedding)
    ]
    if unmatched or odd:
        names = some(dict.fromkeys([*unmatched, *odd]))
        raise UnsupportedError(f"llama.cpp's {architecture.name} has no place for {names}")
    heads = [module.name for module in modules if module.name.rpartition(".")[2] == HEAD]
    stated = text_config(manifest.base or {}).get("tie_word_embeddings")
    if heads and manifest.base and (architecture.tied if stated is None else stated):
        raise UnsupportedError(
            f"{heads[0]}: the base ties its head to its embedding, so llama.cpp has no such weight"
        ).hint("Leave it out of the training, or serve the model with the adapter merged into it.")


def _rekeyed(
    module: Module, architecture: Architecture, heads: Heads | None, *, own: bool
) -> Module:
    key_prefix = key_prefix_of(module.name, architecture) or module.name
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
    rows = module.rows if own else _rows(module.name, module.out, architecture, heads)
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
