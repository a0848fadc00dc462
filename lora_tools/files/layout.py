"""Where every tensor of a file will be, before the first one exists."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from lora_tools.errors import CheckpointError
from lora_tools.files.dtypes import ORDER
from lora_tools.files.header import Slot, Spec


@dataclass(frozen=True, slots=True)
class Layout:
    """A file as its header describes it: the header's bytes and every slot."""

    header: bytes
    slots: Mapping[str, Slot]
    alignment: int = 1
    """What the size of the file is a multiple of."""

    @property
    def size(self) -> int:
        """Size of the whole file, in bytes."""
        stop = max((slot.stop for slot in self.slots.values()), default=len(self.header))
        return stop + -stop % self.alignment

    @property
    def overhead(self) -> int:
        """Bytes that are no tensor's, at most, whatever sizes its tensors come to have."""
        return len(self.header) + len(self.slots) * (self.alignment - 1)


def layout(specs: Mapping[str, Spec], metadata: Mapping[str, str] | None = None) -> Layout:
    """Lay a safetensors file out as ``safetensors.torch.save_file`` does, byte for byte.

    Tensors go by descending dtype, then by name; the header is compact JSON, padded with
    spaces to a multiple of 8 bytes. (save_file writes several metadata entries in random order;
    here they keep the order given.)
    """
    names = sorted(specs, key=lambda name: (-ORDER[specs[name].dtype], name))
    document: dict[str, object] = {}
    if metadata is not None:
        document["__metadata__"] = dict(metadata)
    offsets: dict[str, tuple[int, int]] = {}
    stop = 0
    for name in names:
        spec = specs[name]
        start, stop = stop, stop + spec.nbytes
        offsets[name] = (start, stop)
        document[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [start, stop],
        }
    try:
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, as pickles and JSON may hold
        raise CheckpointError(f"a name or its metadata is not text ({error})") from error
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    slots = {
        name: Slot(specs[name], len(header) + start, len(header) + stop)
        for name, (start, stop) in offsets.items()
    }
    return Layout(header, slots)
