"""The UNets of Stable Diffusion 1.x, 2.x and XL: its authors' paths, and those of diffusers.

Nothing but names differs. What corresponds to what: sd-scripts' `sdxl_model_util` and `model_util`.
"""

import re
from collections.abc import Collection

RESNET = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
}
AUTHORS = re.compile(r"(input_blocks|output_blocks|middle_block)\.(\d+)\.(?:(\d+)\.)?(.+)")
DIFFUSERS = re.compile(
    r"(?:(?P<side>down|up)_blocks\.(?P<i>\d+)|mid_block)\."
    r"(?P<what>resnets|attentions|downsamplers|upsamplers)\.(?P<j>\d+)\.(?P<rest>.+)"
)


def to_diffusers(path: str) -> str | None:
    """Return diffusers' path of a module, or None if it is not one of these UNets'.

    >>> to_diffusers("input_blocks.4.1.proj_in"), to_diffusers("middle_block.2.in_layers.2")
    ('down_blocks.1.attentions.0.proj_in', 'mid_block.resnets.1.conv1')
    """
    if path in ENDS:
        return ENDS[path]
    match = AUTHORS.fullmatch(path)
    if match is None:
        return None
    block, number, place, rest = match.groups()
    n, k = int(number), int(place or 0)
    if block == "middle_block":
        rest = rest if place is None else f"{place}.{rest}"  # it is one level less deep
        return f"mid_block.attentions.0.{rest}" if n == 1 else _resnet("mid_block", n // 2, rest)
    if place is None:
        return None
    if block == "input_blocks":
        i, j = divmod(n - 1, 3)
        if j == 2:
            return f"down_blocks.{i}.downsamplers.0.conv" if rest == "op" else None
        return _inner(f"down_blocks.{i}", j, k, rest)
    i, j = divmod(n, 3)
    if rest == "conv":
        return f"up_blocks.{i}.upsamplers.0.conv"
    return _inner(f"up_blocks.{i}", j, k, rest)


def _inner(block: str, j: int, k: int, rest: str) -> str | None:
    return _resnet(block, j, rest) if k == 0 else f"{block}.attentions.{j}.{rest}"


def _resnet(block: str, j: int, rest: str) -> str | None:
    return f"{block}.resnets.{j}.{RESNET[rest]}" if rest in RESNET else None


def to_authors(path: str, *, xl: bool) -> str | None:
    """Return the authors' path of a module, or None if it is not one of these UNets'.

    ``xl``: of Stable Diffusion XL, whose first block upwards has attention.

    >>> to_authors("up_blocks.0.upsamplers.0.conv", xl=True)
    'output_blocks.2.2.conv'
    """
    for theirs, ours in ENDS.items():
        if path == ours:
            return theirs
    match = DIFFUSERS.fullmatch(path)
    if match is None:
        return None
    side, what, j, rest = match["side"], match["what"], int(match["j"]), match["rest"]
    if what == "resnets":
        found = next((theirs for theirs, ours in RESNET.items() if ours == rest), None)
        if found is None:
            return None
        rest = found
    if side is None:
        return f"middle_block.{1 if what == 'attentions' else 2 * j}.{rest}"
    i = int(match["i"])
    if what == "downsamplers":
        return f"input_blocks.{3 * (i + 1)}.0.op"
    if what == "upsamplers":
        return f"output_blocks.{3 * i + 2}.{2 if xl or i else 1}.{rest}"
    n = 3 * i + j + 1 if side == "down" else 3 * i + j
    return (
        f"{'input' if side == 'down' else 'output'}_blocks.{n}.{int(what == 'attentions')}.{rest}"
    )


def is_xl(paths: Collection[str]) -> bool:
    """Whether diffusers' paths are those of Stable Diffusion XL.

    Its blocks have several layers of attention, and the outermost have none; those of 1.x and 2.x
    have one each, and there are four blocks.
    """
    first = any(path.startswith(("down_blocks.3", "up_blocks.3")) for path in paths)
    outer = any(path.startswith("down_blocks.0.attentions") for path in paths)
    return not first and not outer
