"""What a part of a command did, which others or a later call of the command take over."""

from dataclasses import dataclass

from lora_tools.files.parts import Part
from lora_tools.text import json_text

SCHEMA = "lora-tools/part/1"


@dataclass(frozen=True, slots=True)
class PartReport:
    """The pieces of a part, which are files beside the output."""

    command: str
    part: Part
    pieces: int
    """Those of this part, all finished."""
    resumed: int
    """Those of them that earlier calls had finished."""
    total: int
    """Those of all parts."""
    waiting: bool = False
    """Whether this part has more to do once all others have come as far."""

    def to_json(self) -> str:
        """Return it as JSON, as `report.schemas` describes it."""
        return json_text(
            {
                "schema": SCHEMA,
                "command": self.command,
                "part": self.part.number,
                "part_count": self.part.count,
                "pieces": self.pieces,
                "resumed_pieces": self.resumed,
                "total_pieces": self.total,
                "waiting": self.waiting,
            }
        )

    def to_text(self) -> str:
        """Return it as a sentence, and what comes next as another."""
        done = f"part {self.part}: {self.pieces:,} of {self.total:,} pieces finished"
        if self.resumed:
            done += f", {self.resumed:,} of them earlier"
        if self.waiting:
            return (
                f"{done}: the spectra, from which ranks are chosen when all parts have theirs\n"
                f"next: the same {self.command} again for each part, or once without --part"
            )
        return f"{done}\nnext: the same {self.command} without --part, when all parts are done"
