"""Locations on the Hub, read through the real client from the loopback Hub."""

import json
from pathlib import Path

import pytest
from hub_person import ALICE, Person, make_adapter
from hub_server import HubServer

from lora_tools.files.header import Spec
from lora_tools.files.layout import layout
from lora_tools.hub import is_remote, locate

LFS = {"HF_HUB_DISABLE_XET": "1"}
LAYERS = 80


def published(hub: HubServer, folder: Path, name: str = "bob/cat", **how) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.publish(name, files, **how)
    return files


def big_model(hub: HubServer, name: str, shards: int, size: int) -> None:
    """Publish a model of bf16 layers, of which only the headers take space on the disk."""
    weight_map, files = {}, {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        layers = range(shard * LAYERS // shards, (shard + 1) * LAYERS // shards)
        wide = size // len(layers) // 2 // 4096
        specs = {f"model.layers.{i}.mlp.up_proj.weight": Spec("BF16", (4096, wide)) for i in layers}
        plan = layout(specs, {"format": "pt"})
        files[file] = (bytes(plan.header), plan.size)
        weight_map |= dict.fromkeys(specs, file)
    index = {"metadata": {}, "weight_map": weight_map}
    config = {"architectures": ["LlamaForCausalLM"]}
    hub.publish(
        name,
        {
            "config.json": json.dumps(config).encode(),
            "model.safetensors.index.json": json.dumps(index).encode(),
        },
    )
    hub.publish_sparse(name, files)


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ("hf://org/name", True),
        ("hf://org/name@main/sub/adapter_model.safetensors", True),
        ("https://huggingface.co/org/name/tree/main", True),
        ("org/name", True),
        ("org/name@refs/pr/3", True),
        ("org/name@v1.0", True),
        ("org/name/file", False),
        ("name", False),
        ("./org/name", False),
        ("../name", False),
        ("/org/name", False),
        ("~/name", False),
        ("org/name with spaces", False),
    ],
)
def test_what_means_the_hub(text, remote):
    assert is_remote(text) == remote


def test_what_exists_here_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not is_remote("org/name")
    assert locate("org/name") == Path("org/name")
    (tmp_path / "org" / "gone").symlink_to("nowhere")  # it is not there, and yet it is meant
    assert not is_remote("org/gone")


def test_local_paths_load_no_huggingface_hub(alice):
    folder = make_adapter(alice.folder / "mine")
    alice.python(
        "import sys; from lora_tools.cli import cli;"
        f"cli.main(['inspect', {str(folder)!r}], standalone_mode=False);"
        "assert not {'huggingface_hub', 'httpx2'} & set(sys.modules)"
    )


@pytest.mark.parametrize(
    "address", ["bob/cat", "hf://bob/cat", "hf://bob/cat/adapter_model.safetensors", "bob/cat@main"]
)
def test_inspect_reads_the_header_only(address, hub, alice):
    folder = make_adapter(alice.folder / "mine", modules=8, wide=8192, rank=32)
    published(hub, folder)
    local = json.loads(alice.does("inspect", "mine", "--json"))
    done = alice.run("inspect", address, "--json")
    commit = hub.repositories["bob/cat"].resolve("main")
    assert f"{address}: hf://bob/cat@{commit}" in done.stderr
    found = json.loads(done.stdout)
    assert found.pop("source").startswith(f"hf://bob/cat@{commit}")
    local.pop("source")
    assert found == local
    assert found["totals"]["bytes"] > 16_000_000
    assert sum(request.sent for request in hub.requests) < 50_000
    assert {request.token for request in hub.requests if request.origin == "store"} == {None}
    assert len(hub.seen("GET", "/api/models/")) == 2, "its commit, and one listing of that"


def test_a_local_folder_of_that_name_wins(hub, alice):
    make_adapter(alice.folder / "bob" / "cat")
    done = alice.run("inspect", "bob/cat", "--json")
    assert json.loads(done.stdout)["source"] == "bob/cat"
    assert done.stderr == ""
    assert hub.requests == []


def test_the_table_of_a_model_of_ten_gigabytes_costs_its_headers(hub, alice):
    big_model(hub, "bob/llama", shards=4, size=2_500_000_000)
    text = alice.does("inspect", "bob/llama")
    assert "LlamaForCausalLM" in text
    assert "model.layers.[0..79].mlp.up_proj.weight" in text
    assert "80 tensors, 4,999,741,440 parameters, 10.00 GB" in text
    assert len(hub.seen("GET", "/api/models/")) == 2, "however many threads read headers"
    assert sum(request.sent for request in hub.requests) < 200_000
    assert not list((alice.folder / "home").rglob("*.safetensors"))


def test_a_longer_header_takes_a_second_request(hub, alice):
    folder = make_adapter(alice.folder / "mine", modules=300, wide=16)
    files = published(hub, folder)
    length = 8 + int.from_bytes(files["adapter_model.safetensors"][:8], "little")
    assert length > 1 << 15
    assert "300 modules" in alice.does("inspect", "bob/cat")
    sent = sum(request.sent for request in hub.seen("GET", origin="store"))
    assert length <= sent < length + (1 << 16)


def test_engines_judge_it_as_they_judge_a_local_one(hub, alice):
    published(hub, make_adapter(alice.folder / "mine"))
    asked = ("--for", "all", "--json")
    here, there = (alice.run("inspect", path, *asked).stdout for path in ("mine", "bob/cat"))
    commit = hub.repositories["bob/cat"].resolve("main")
    there = there.replace(f"hf://bob/cat@{commit}", "mine").replace(".gitattributes, ", "")
    assert json.loads(there) == json.loads(here)


def test_pieces_are_read_by_ranges_and_many_at_once(hub, alice):
    folder = make_adapter(alice.folder / "mine", modules=8, wide=4096, rank=32)
    published(hub, folder)
    done = alice.python(
        "from lora_tools.hub import locate\n"
        f"local = open({str(folder / 'adapter_model.safetensors')!r}, 'rb')\n"
        "path = locate('bob/cat') / 'adapter_model.safetensors'\n"
        "with path.open() as file:\n"
        "    for at in (100, 5_000_000, 40_000, 0):\n"
        "        assert file.seek(at) == local.seek(at) == at == file.tell()\n"
        "        assert file.read(70_000) == local.read(70_000)\n"
        "    assert file.seek(-10, 2) == local.seek(-10, 2)\n"
        "    assert file.read() == local.read()\n"
        "    assert file.seek(10, 2) and file.read() == b''\n"
        "print(path.is_here(), end=' ')\n"
        "for _ in range(10):\n"
        "    path.open().read(8)\n"
        "print(path.is_here())"
    )
    assert done == "False True\n"


def test_shrink_downloads_through_the_ordinary_cache(hub, alice):
    folder = make_adapter(alice.folder / "mine")
    files = published(hub, folder)
    alice.does("shrink", "mine", "here", "--rank", 2)
    report = json.loads(alice.does("shrink", "bob/cat", "there", "--rank", 2, "--json"))
    commit = hub.repositories["bob/cat"].resolve("main")
    assert report["source"] == f"hf://bob/cat@{commit}"
    name = "adapter_model.safetensors"
    assert (alice.folder / "there" / name).read_bytes() == (
        alice.folder / "here" / name
    ).read_bytes()
    cached = alice.folder / "home/hub/models--bob--cat/snapshots" / commit
    assert (cached / name).read_bytes() == files[name]
    before = len(hub.requests)
    alice.does("shrink", "bob/cat", "again", "--rank", 2)
    assert not [request for request in hub.requests[before:] if "/resolve/" in request.path]


def test_one_command_sees_one_commit(hub, alice):
    published(hub, make_adapter(alice.folder / "mine"))
    alice.python(
        "from lora_tools.hub import locate; a, b = locate('bob/cat'), locate('hf://bob/cat');"
        "assert a == b and a.snapshot is b.snapshot; import pickle;"
        "b = a / 'adapter_config.json'; c = pickle.loads(pickle.dumps(b));"
        "assert c == b and hash(c) == hash(b);"
        "from lora_tools.files.fingerprint import fingerprint;"
        "from lora_tools.files.inputs import read_input, read_text;"
        "assert read_text(c) == b.fetch().read_text();"
        "assert fingerprint(c) == [str(c), len(read_input(c)), 0];"
        "assert str(c) == f'{a}/adapter_config.json' and c.parent == a and c.absolute() is c;"
        "assert str(a) == f'hf://bob/cat@{a.snapshot.commit}' and a.parent == a and a.name == 'cat'"
    )
    assert len(hub.seen("GET", "/api/models/bob/cat$")) == 1


JOBS = """
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from lora_tools import locate, read
from lora_tools.rewrite.source import source
from lora_tools.rewrite.survey import jobs
from lora_tools.rewrite.tasks import decompose

todo = jobs(source(read(locate("bob/cat"))), "cpu")
assert max(len(pickle.dumps(job)) for job in todo) < 4096
with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
    there = [found.s.tobytes() for found in pool.map(decompose, todo)]
assert there == [decompose(job).s.tobytes() for job in todo]
print(len(there))
"""


def test_jobs_of_an_adapter_on_the_hub_are_small_and_done_in_another_process(hub, alice):
    files = {path.name: path.read_bytes() for path in make_adapter(alice.folder / "mine").iterdir()}
    more = {f"logs/run-{number}.txt": str(number).encode() for number in range(200)}
    hub.publish("bob/cat", files | more)
    assert alice.python(JOBS) == "4\n"


def test_a_folder_in_a_repository(hub, alice):
    folder = make_adapter(alice.folder / "mine")
    files = {f"deep/er/{path.name}": path.read_bytes() for path in folder.iterdir()}
    hub.publish("bob/deep", files | {"README.md": b"# Deep\n"})
    assert "4 modules" in alice.does("inspect", "hf://bob/deep/deep/er")
    done = alice.python(
        "from lora_tools.hub import locate; p = locate('bob/deep');"
        "print(sorted(q.name for q in p.iterdir()), [q.name for q in (p / 'deep').iterdir()],"
        "p.is_dir(), (p / 'deep' / 'er').is_dir(), (p / 'no').exists())"
    )
    assert done == "['.gitattributes', 'README.md', 'deep'] ['er'] True True False\n"


def test_an_older_revision_by_branch_tag_and_commit(hub, alice):
    published(hub, make_adapter(alice.folder / "one", rank=4))
    repository = hub.repositories["bob/cat"]
    old = repository.resolve("main")
    repository.git("update-ref", "refs/heads/v1", old)
    repository.commit("main", old, "gone", {}, ("adapter_model.safetensors",))
    for revision in ("v1", old):
        assert "rank" in alice.does("inspect", f"bob/cat@{revision}")
    refused = alice.run("inspect", "bob/cat")
    assert refused.returncode == 1
    assert "holds no adapter" in refused.stderr


def test_a_download_that_breaks_off_is_resumed(hub, alice):
    alice.settings |= LFS
    folder = make_adapter(alice.folder / "mine", modules=8, wide=7500, rank=64)
    files = published(hub, folder)
    hub.fail("GET", "/objects/", bytes=25_000_000, times=2)  # the header's request is shorter
    alice.does("shrink", "bob/cat", "small", "--rank", 2)
    size = len(files["adapter_model.safetensors"])
    _, broken, rest = (request.sent for request in hub.seen("GET", "/objects/"))
    assert broken == 25_000_000
    assert rest == size - 2 * 10 * 1024**2  # the client writes, and counts, pieces of 10 MiB


@pytest.mark.parametrize("path", ["/api/models/bob/cat$", "/tree/", "/resolve/", "/objects/"])
def test_answers_that_pass_are_asked_for_again(path, hub, alice):
    published(hub, make_adapter(alice.folder / "mine"))
    hub.fail("GET", path, 503)
    assert "4 modules" in alice.does("inspect", "hf://bob/cat")


def refusals(hub: HubServer, alice: Person) -> None:
    published(hub, make_adapter(alice.folder / "mine"))
    published(hub, alice.folder / "mine", "bob/private", private=True)
    published(hub, alice.folder / "mine", "bob/gated")
    hub.repositories["bob/gated"].gated = True


@pytest.mark.parametrize(
    ("address", "token", "message", "hint"),
    [
        ("hf://bob/none", ALICE, "hf://bob/none: no such repository", "Check its name"),
        ("bob/none", ALICE, "no such repository", "no local file or folder bob/none either"),
        ("hf://bob/none", None, "no such repository, or it is private", "hf auth login"),
        ("hf://bob/private", None, "no such repository, or it is private", "hf auth login"),
        ("hf://bob/private", ALICE, "the token may not see it", "the token's rights"),
        ("hf://bob/cat", "hf_wrong", "the token is not valid", "/settings/tokens"),
        ("hf://bob/gated", ALICE, "gated: its owner wants to know", "Accept the conditions"),
        ("hf://bob/gated", None, "gated: its owner wants to know", "hf auth login"),
        ("hf://bob/cat@nope", ALICE, "has no revision nope", "branches and tags"),
        ("hf://bob/cat/x.bin", ALICE, "x.bin: no such file in the repository", "It has .git"),
        ("hf://cat", ALICE, "hf://cat: not an address on the Hub", "hf://org/name"),
        ("hf://datasets/bob/cat", ALICE, "a dataset; adapters and models", ""),
    ],
)
def test_refusals_say_what_to_do(address, token, message, hint, hub, alice):
    refusals(hub, alice)
    alice.token = token
    done = alice.run("inspect", address)
    assert done.returncode == 1
    assert message in done.stderr
    assert hint in done.stderr
    assert done.stdout == ""


def test_offline_what_the_cache_has_is_read(hub, alice):
    published(hub, make_adapter(alice.folder / "mine"))
    alice.does("shrink", "bob/cat", "one", "--rank", 2)
    before = len(hub.requests)
    alice.settings["HF_HUB_OFFLINE"] = "1"
    done = alice.run("shrink", "bob/cat", "two", "--rank", 2)
    assert done.returncode == 0, done.stderr
    assert "offline: as much of it as the cache has" in done.stderr
    refused = alice.run("inspect", "hf://org/tiny-base")
    assert refused.returncode == 1
    assert "not in the cache, and HF_HUB_OFFLINE is set" in refused.stderr
    assert "Unset HF_HUB_OFFLINE" in refused.stderr
    assert len(hub.requests) == before


def test_without_a_network_the_remedy_is_named(hub, alice):
    hub.close()
    done = alice.run("inspect", "hf://bob/cat")
    assert done.returncode == 1
    assert "hf://bob/cat: the Hub cannot be reached" in done.stderr
    assert f"HF_ENDPOINT ({hub.url})" in done.stderr


def test_what_is_not_there_or_is_a_folder_is_refused_as_it_is_here(hub, alice):
    published(hub, make_adapter(alice.folder / "mine"))
    done = alice.python(
        "from lora_tools import LoraToolsError; from lora_tools.hub import locate\n"
        "from lora_tools.files.inputs import open_input\n"
        "from lora_tools.files.fingerprint import state\n"
        "from pathlib import Path\n"
        "for place in (Path('mine'), locate('bob/cat')):\n"
        "    for file in (place / 'none.safetensors', place):\n"
        "        try: open_input(file)\n"
        "        except (OSError, LoraToolsError) as error:\n"
        "            print(type(error).__name__, str(error).partition(': ')[2])\n"
        "    assert state([place / 'none']) != state([place / 'adapter_config.json'])\n"
    )
    assert done.splitlines() == [
        "FileNotFoundError 'mine/none.safetensors'",
        "CheckpointError a folder, not a regular file",
        "FileNotFoundError no such file in the repository",
        "CheckpointError a folder, not a regular file",
    ]


def test_the_output_is_local_whatever_the_source_is(hub, alice):
    published(hub, make_adapter(alice.folder / "mine"))
    out = alice.run("shrink", "bob/cat", "bob/cat", "--rank", 2)
    assert out.returncode == 0  # OUT is a local path, whatever SOURCE is
    assert (alice.folder / "bob" / "cat" / "adapter_model.safetensors").is_file()


EVICT = """
import os
from pathlib import Path
from lora_tools.hub import locate
from lora_tools.files.transient import TransientFiles
from lora_tools.files.opening import open_checkpoint

def disk():
    files = {f.resolve() for f in Path(os.environ["HF_HOME"]).rglob("*") if f.is_file()}
    return sum(f.stat().st_size for f in files if f.stat().st_size > 100_000)

keep = WARM and locate("bob/llama") / "model-00002-of-00004.safetensors"
if keep:
    keep.fetch()
start = disk()
model = open_checkpoint(locate("bob/llama"))
guests = TransientFiles(model.file(name) for name in model)
arrays, most = model.arrays, 0
for number, name in enumerate(model):
    array = arrays[name] if number % 2 else model[name].numpy()
    assert array.shape == (256, 256) and array.flat[0] == number, (name, array)
    most = max(most, disk() - start)
    guests.done(model.file(name))
print(most, disk() - start)
if keep:
    assert keep.is_here()
"""


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("way", [{}, LFS], ids=["xet", "lfs"])
def test_shards_are_fetched_when_read_and_evicted_after_their_last_use(way, warm, hub, alice):
    import numpy as np
    from safetensors.numpy import save_file

    alice.settings |= way
    names = [f"layers.{i:02d}.weight" for i in range(16)]
    folder = alice.folder / "llama"
    folder.mkdir()
    weight_map = {}
    for shard in range(4):
        file = f"model-{shard + 1:05d}-of-00004.safetensors"
        some = {
            names[i]: np.full((256, 256), i, np.float32) for i in range(4 * shard, 4 * shard + 4)
        }
        save_file(some, folder / file)
        weight_map |= dict.fromkeys(some, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    if way:
        published(hub, folder, "bob/llama")
    else:  # through the real client, so that it comes back through Xet
        bob = alice.fresh("bob", "hf_bob_writes")
        bob.does("push", folder, "bob/llama", "--public", "--base-model", "org/tiny-base")
    shard = 4 * 256 * 256 * 4 + 1000
    most, left = map(int, alice.python(EVICT.replace("WARM", str(warm))).split())
    assert 0 < most < shard + 1000
    assert left == 0
