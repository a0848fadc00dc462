"""Files that other people made with other tools: read, or refused by name."""

import pytest
from conftest import REAL, REAL_PEFT, real

from lora_tools import LoraToolsError, read

KINDS = ("*.safetensors", "*.bin", "*.pt")
READ = (*REAL_PEFT, "mlx-qwen05b", "diffusers-sd15-catundchat")
FOLDERS = sorted(path.name for path in REAL.glob("*") if path.is_dir())


@pytest.mark.parametrize("name", FOLDERS or ["the folder of real adapters"])
def test_every_file_is_read_or_refused_by_name(name):
    files = [file for kind in KINDS for file in real(name).glob(kind)]
    for file in files:
        if name in READ:
            assert len(read(file)) > 0
        else:
            with pytest.raises(LoraToolsError, match=file.name):
                read(file)
