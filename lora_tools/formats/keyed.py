"""What the formats that name modules by path have in common: from tensors to modules and back."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.header import Spec
from lora_tools.formats.algorithms import describe
from lora_tools.formats.folding import factor_shapes
from lora_tools.formats.manifest import Module, Part, Role
from lora_tools.formats.numbers import narrowest
from lora_tools.formats.sites import Convolution


def described(
    found: Mapping[str, Mapping[Role, Part]],
    path: Callable[[str], str | None],
    scalars: Mapping[str, float],
) -> tuple[Module, ...]:
    """Describe the modules of a file, each by the path that its key prefix stands for.

    Raises `FormatError` for key prefixes that stand for none, or for the same.
    """
    paths = {key_prefix: path(key_prefix) for key_prefix in found}
    if strange := [key_prefix for key_prefix, name in paths.items() if name is None]:
        raise FormatError(f"modules that are not in this naming: {some(strange)}")
    counts = Counter(paths.values())
    if twice := [name for name, count in counts.items() if count > 1]:
        raise FormatError(f"two modules are the same: {some(twice)}")
    return tuple(
        describe(
            str(paths[key_prefix]),
            key_prefix,
            parts,
            scalars[parts["alpha"].key] if "alpha" in parts else None,
        )
        for key_prefix, parts in found.items()
    )


def rekeyed(module: Module, key_prefix: str, suffixes: Mapping[Role, str]) -> Module:
    """Name the keys of a module as a pair of factors under another key prefix.

    Its alpha becomes a tensor, in a dtype that holds it exactly, if there is a suffix for
    that; norms get the shape that numpy would broadcast over the weight. Raises `UnsupportedError`
    for parts that the naming has no suffix for.
    """
    if unmatched := module.parts.keys() - {"alpha"} - suffixes.keys():
        keys = some(module.parts[role].key for role in sorted(unmatched))
        raise UnsupportedError(f"{module.name}: this naming has no name for {keys}")
    shapes: dict[Role, tuple[int, ...]] = dict(zip(("b", "a"), factor_shapes(module), strict=True))
    ones = (1,) * (len(module.site.kernel) if isinstance(module.site, Convolution) else 0)
    for role, part in module.parts.items():
        if role in ("magnitude", "columns"):
            numel = part.spec.numel
            shapes[role] = (numel, 1, *ones) if role == "magnitude" else (1, numel, *ones)
        elif role == "bias":
            shapes[role] = part.spec.shape
    parts = {
        role: Part(key_prefix + suffixes[role], Spec(part.spec.dtype, shapes[role]))
        for role, part in module.parts.items()
        if role in shapes
    }
    alpha = module.scale * module.r if module.rslora else module.alpha
    if alpha is not None and "alpha" in suffixes:
        if not alpha:
            raise UnsupportedError(f"{module.name}: alpha is 0, which is read as a scale of 1")
        old = module.parts.get("alpha")
        code = narrowest(alpha, old.spec.dtype if old else "F32")
        parts["alpha"] = Part(key_prefix + suffixes["alpha"], Spec(code, ()))
    return replace(module, parts=parts, key_prefix=key_prefix, alpha=alpha, rslora=False)
