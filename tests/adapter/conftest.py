from pathlib import Path

import pytest
from handmade import make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "adapter")
