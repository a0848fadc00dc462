"""What every test may use: shapes checked at run time, and where adapters of others lie."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"
REAL = Path(os.environ.get("LORA_TOOLS_REAL", ROOT.parent / "shared" / "real"))

# Tests import each other's judges (`reference`, `judges`) and the fixtures' base models.
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "formats"), str(FIXTURES)]

from fake_device import FakeDevice  # noqa: E402 - found since the line above
from hub_person import Person  # noqa: E402
from hub_server import HubServer  # noqa: E402
from marks import needs_gpu  # noqa: E402

# Every call of the mathematics is checked against the shapes in its signature.
install_import_hook(["lora_tools.linalg", "lora_tools.update"], "checker.checked")

# What whoever runs the tests has set for the Hub (offline, a token, a mirror) or for the terminal
# decides nothing here: a test that needs such a setting makes it.
for name in [*os.environ]:
    if name.startswith(("HF_", "HUGGING", "CLICOLOR")) or name in ("NO_COLOR", "FORCE_COLOR"):
        del os.environ[name]

# Where a shell runs the tests in the background, they begin deaf to Ctrl-C, and the processes that
# they interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

MADE = sorted(path.parent.name for path in FIXTURES.glob("*/adapter_config.json"))
REAL_PEFT = ("peft-gptneo125m-movies", "peft-opencalm1b-r1-fusedqkv")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub on loopback, with the base model that `make_adapter` names."""
    server = HubServer(tmp_path / "hub")
    server.publish("org/tiny-base", {"README.md": b"---\nlicense: apache-2.0\n---\n# Base\n"})
    yield server
    server.close()


@pytest.fixture
def alice(hub: HubServer, tmp_path: Path) -> Person:
    """Somebody with a token, an empty folder and an empty cache."""
    (tmp_path / "alice").mkdir()
    return Person(hub, tmp_path / "alice")


@pytest.fixture(params=[FakeDevice("cuda:0"), pytest.param(None, marks=needs_gpu("--device cuda"))])
def gpu(request: pytest.FixtureRequest) -> AbstractContextManager[object]:
    """A context in which there is a device "cuda": a fake one, and a real one wherever there is."""
    fake: FakeDevice | None = request.param
    if fake and torch.cuda.is_available():
        pytest.skip("the fake device stands back where there is a real one")
    return fake or nullcontext()


@pytest.fixture(params=MADE)
def made(request: pytest.FixtureRequest) -> Path:
    """Each adapter that `fixtures/make.py` made."""
    return FIXTURES / request.param


@pytest.fixture(params=[*MADE, *REAL_PEFT])
def adapter_path(request: pytest.FixtureRequest) -> Path:
    """Each adapter of ours, and each PEFT adapter that others trained."""
    if request.param in MADE:
        return FIXTURES / request.param
    return real(request.param)


def real(name: str) -> Path:
    """Return the folder of an adapter that somebody else trained, or skip the test loudly."""
    path = REAL / name
    if not path.is_dir():
        pytest.skip(f"SKIPPED FOR WANT OF {path}: set LORA_TOOLS_REAL to the real adapters' folder")
    return path
