"""Single numbers of a checkpoint, read without numpy and torch."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from lora_tools.errors import CheckpointError
from lora_tools.files.opening import open_checkpoint

NUMBERS = {
    "half": torch.tensor(0.1, dtype=torch.float16),
    "brain": torch.tensor(-3.0, dtype=torch.bfloat16),
    "single": torch.tensor([0.3]),
    "double": torch.tensor(0.1, dtype=torch.float64),
    "whole": torch.tensor(7, dtype=torch.int64),
}


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_every_type_is_read_exactly(ending, tmp_path):
    file = tmp_path / f"x.{ending}"
    tensors = NUMBERS | {"matrix": torch.ones(2, 2)}
    save_file(tensors, file) if ending == "safetensors" else torch.save(tensors, file)
    scalars = open_checkpoint(file).scalars
    assert dict(scalars) == {name: float(value) for name, value in NUMBERS.items()}
    assert len(scalars) == len(NUMBERS)
    assert "matrix" not in scalars
    with pytest.raises(CheckpointError, match=r"matrix has the shape \[2, 2\]"):
        scalars["matrix"]
    with pytest.raises(KeyError):
        scalars["nothing"]


def test_a_type_that_is_no_number_is_refused(tmp_path):
    save_file({"flag": torch.tensor(True)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="flag of type BOOL is no number"):
        open_checkpoint(tmp_path / "x.safetensors").scalars["flag"]


def test_neither_numpy_nor_torch_is_loaded(tmp_path):
    save_file(NUMBERS, tmp_path / "x.safetensors")
    code = (
        "import sys; from pathlib import Path;"
        "from lora_tools.files.opening import open_checkpoint;"
        "assert len(dict(open_checkpoint(Path(sys.argv[1])).scalars)) == 5;"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.safetensors")])
    assert done.returncode == 0
