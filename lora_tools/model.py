"""Models: the weights of a base or of a fine-tune, and what its configuration says of them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_tools.errors import CheckpointError
from lora_tools.files.address import Address, reopened
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.fingerprint import check_state, state
from lora_tools.files.inputs import is_present
from lora_tools.files.location import Location, entries
from lora_tools.files.objects import read_object
from lora_tools.files.opening import INDEX, open_checkpoint
from lora_tools.files.pipeline import is_pipeline
from lora_tools.files.typed import Fields

CONFIG = "config.json"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Model:
    """A model on disk: every tensor by name, each read when it is asked for."""

    path: Location
    """What was asked for: a folder or a file."""
    tensors: Checkpoint
    config: Mapping[str, Any]
    """Its config.json, or a pipeline's model_index.json; empty if there is none."""
    state: str = ""
    """A digest of when its files were last changed, as they were when it was opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an address: another process reads the headers for itself, once."""
        return reopened, (self.address,)

    @property
    def address(self) -> Address:
        """How another process opens it."""
        return Address(_open_again, (self.path.absolute(), self.state))

    @property
    def config_file(self) -> Location:
        """Where its configuration is, if it has one; a pipeline's says which models it has."""
        own = self.tensors.path
        return own if self.tensors.parts else own.parent / CONFIG

    @property
    def architecture(self) -> str | None:
        """The class that loads it (``LlamaForCausalLM``), if the configuration names one."""
        fields = self.fields
        return next(iter(fields.texts("architectures")), None) or fields.text("_class_name")

    @property
    def tied(self) -> bool:
        """Whether the configuration says that input and output embeddings are one tensor."""
        configs = (self.fields, self.fields.mapping("text_config"))
        stated = (f for f in configs if "tie_word_embeddings" in f.values)
        whole = next(stated, None)  # of two that contradict each other transformers 5 asks this one
        return whole is not None and whole.flag("tie_word_embeddings")

    @property
    def fields(self) -> Fields:
        """Its configuration, each field read by its type."""
        return Fields(CONFIG, self.config, CheckpointError)

    @property
    def params(self) -> int:
        """Elements of all its tensors."""
        return sum(spec.numel for spec in self.tensors.specs.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(spec.nbytes for spec in self.tensors.specs.values())


def is_model(path: Location) -> bool:
    """Whether a path looks like a model, rather than an adapter: by its files' names alone."""
    if not path.is_dir():
        return path.name.endswith(INDEX)
    if (path / ADAPTER).is_file():
        return False
    return is_pipeline(path) or (path / CONFIG).is_file() or bool(entries(path, f"*{INDEX}"))


def open_model(path: str | Location) -> Model:
    """Open a model's headers and configuration: a folder, an index of shards, or one file.

    The folder of a pipeline of diffusers is one model: its names begin with those of its folders.

    Raises `CheckpointError` if the weights are missing, damaged, or more than one checkpoint.
    """
    path = Path(path) if isinstance(path, str) else path
    tensors = open_checkpoint(path)
    model = Model(path, tensors, {})
    config = model.config_file
    stated = read_object(config) if is_present(config) else {}
    return replace(model, config=stated, state=tensors.state + state([config]))


def _open_again(path: Location, before: str) -> Model:
    """Open a model that another process has open."""
    model = open_model(path)
    check_state(path, model.state, before)
    return model
