"""A shrunk adapter before it is computed: every shape is known, no factor has been made."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from lora_tools.adapter import laid_out
from lora_tools.executors import Executor
from lora_tools.files.layout import Layout
from lora_tools.formats.manifest import Manifest
from lora_tools.report import Change, Report
from lora_tools.verbs.shrink.source import Source
from lora_tools.verbs.shrink.tasks import Rewrite, rewrite


@dataclass(frozen=True, slots=True)
class Shrunk:
    """An adapter at other ranks: its layout at once, its updates when it is iterated.

    Each iteration reads the factors again and computes the same changes.
    """

    source: Source
    manifest: Manifest
    jobs: tuple[Rewrite, ...]
    executor: Executor

    def __iter__(self) -> Iterator[Change]:
        return self.executor.map(rewrite, self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def layout(self) -> Layout:
        """Where every tensor of the file will be."""
        return laid_out(self.source.format, self.manifest)

    def report(self, policy: str, began: float | None = None) -> Report:
        """Return the report of this shrink, with all that is known before it is computed.

        ``began`` is the `time.monotonic` from which its seconds count.
        """
        return Report(
            "shrink",
            policy=policy,
            source=str(self.source.path),
            params=(self.source.params, sum(s.numel for s in self.manifest.specs.values())),
            nbytes=(self.source.nbytes, self.layout.size),
            carried={extra.key: extra.kind for extra in self.manifest.extras},
            left_out=self.source.side_files().left_out,
            notes=self.manifest.notes,
            started=time.monotonic() if began is None else began,
        )
