"""What an output path must not touch."""

from lora_tools.files.location import Location


def inputs(name: str, path: Location, beside: str | None) -> dict[str, Location]:
    """Return an input, and its folder where that is a part of it, by what messages call them.

    A file is an input by itself; one with its configuration ``beside`` it stands for its folder.
    """
    found = {name: path}
    if beside and not path.is_dir() and (path.parent / beside).is_file():
        found[f"folder of the {name}"] = path.parent
    return found
