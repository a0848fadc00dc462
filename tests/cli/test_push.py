"""Publishing from outside: the real command and the real client against the loopback Hub."""

import hashlib
import json
import re
import signal
import time
from pathlib import Path

import hostile
import pytest
from hub_person import ALICE, Person, make_adapter
from hub_server import HubServer

XET, LFS = {}, {"HF_HUB_DISABLE_XET": "1"}
both_ways = pytest.mark.parametrize("way", [XET, LFS], ids=["xet", "lfs"])

WRITES = ("POST", "PUT")


def writes(hub: HubServer) -> list[str]:
    return [request.path for request in hub.requests if request.method in WRITES]


@pytest.fixture
def mine(alice: Person) -> Path:
    return make_adapter(alice.folder / "mine")


@both_ways
def test_thirty_megabytes_go_up_come_down_and_are_not_sent_again(way, hub, alice):
    alice.settings |= way
    folder = make_adapter(alice.folder / "big", modules=8, wide=7500, rank=64)
    weights = folder / "adapter_model.safetensors"
    assert weights.stat().st_size > 30_000_000
    done = json.loads(alice.does("push", "big", "alice/big", "--public", "--json"))
    assert done["verified"]
    assert {file["outcome"] for file in done["files"]} == {"new"}
    repository = hub.repositories["alice/big"]
    assert repository.resolve("main") == done["commit"]
    assert len(repository.log()) == 2  # the first one is the Hub's own

    entries = {entry.path: entry for entry in repository.entries(done["commit"])}
    assert set(entries) == {
        ".gitattributes",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    sent = sum(request.received for request in hub.seen("PUT", origin="store"))
    assert (sent == weights.stat().st_size) == (way is LFS)
    assert bool(hub.xet_files()) == (way is XET)

    reader = alice.fresh("reader")
    path = reader.python(
        "from huggingface_hub import hf_hub_download;"
        "print(hf_hub_download('alice/big', 'adapter_model.safetensors'), end='')"
    )
    assert Path(path).read_bytes() == weights.read_bytes()

    before = len(hub.requests)
    assert "nothing was sent" in alice.does("push", "big", "alice/big", "--public")
    assert {request.method for request in hub.requests[before:]} <= {"GET", "HEAD"}
    assert repository.resolve("main") == done["commit"]


@both_ways
def test_the_token_never_reaches_another_origin(way, hub, alice, mine):
    alice.settings |= way
    alice.does("push", mine, "alice/x", "--private")
    reader = alice.fresh("reader", ALICE)
    reader.does("inspect", "alice/x")  # by ranges
    reader.does("shrink", "alice/x", "small", "--rank", 2)  # downloaded
    store = hub.seen(origin="store")
    assert store
    assert all(request.token is None for request in store)
    assert all(
        request.token == ALICE
        for request in hub.seen(path="alice/x", origin="hub")
        if "/lfs/complete/" not in request.path
    )


def test_a_dry_run_touches_nothing(hub, alice, mine):
    done = alice.does("push", mine, "alice/x", "--dry-run")
    assert "new        adapter_model.safetensors" in done
    assert "which would be new; nothing was sent" in done
    assert "base_model: org/tiny-base" in done
    assert writes(hub) == []
    assert "alice/x" not in hub.repositories


def test_a_dry_run_tells_new_changed_and_unchanged_files(hub, alice, mine):
    alice.does("push", mine, "alice/x", "--public")
    (mine / "LICENSE").write_text("Do what you like.")
    config = json.loads((mine / "adapter_config.json").read_text()) | {"lora_dropout": 0.1}
    (mine / "adapter_config.json").write_text(json.dumps(config))
    before = len(hub.requests)
    done = json.loads(alice.does("push", mine, "alice/x", "--dry-run", "--json"))
    states = {file["file"]: file["outcome"] for file in done["files"]}
    assert states == {
        "LICENSE": "new",
        "README.md": "changed",  # it lists the checksum of the configuration
        "adapter_config.json": "changed",
        "adapter_model.safetensors": "unchanged",
    }
    assert {request.method for request in hub.requests[before:]} <= {"GET", "HEAD"}
    alice.does("push", mine, "alice/x")
    assert not hub.seen("PUT", origin="store")
    assert len(hub.xet_files()) == 1


@both_ways
def test_a_failed_commit_is_resumed_by_running_it_again(way, hub, alice, mine):
    alice.settings |= way
    hub.fail("POST", "/commit/", 403, message="not today")
    failed = alice.run("push", mine, "alice/x", "--public")
    assert failed.returncode == 1
    assert "the token may not do this (not today" in failed.stderr
    assert len(hub.repositories["alice/x"].log()) == 1  # nothing of it is to be seen
    before = len(hub.requests)
    alice.does("push", mine, "alice/x", "--public")
    again = hub.requests[before:]
    assert not [request for request in again if request.method == "PUT"]
    assert len(hub.repositories["alice/x"].log()) == 2


@both_ways
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/repos/create"),
        ("POST", "/api/validate-yaml"),
        ("POST", "/branch/"),
        ("POST", "/preupload/"),
        ("POST", "/commit/"),
        ("GET", "/tree/"),
    ],
)
def test_what_passes_is_tried_again(way, method, path, hub, alice, mine):
    alice.settings |= way
    hub.fail(method, path, 503)
    alice.does("push", mine, "alice/x", "--public", "--revision", "exp/one")
    repository = hub.repositories["alice/x"]
    assert len(repository.log("exp/one")) == 2
    assert len(repository.log("main")) == 1
    assert len(hub.seen(method, path)) >= 2


@pytest.mark.parametrize("fault", [{}, {"status": 400, "times": 9}], ids=["dropped", "refused"])
def test_an_answer_that_is_lost_never_changes_what_is_published(fault, hub, alice, mine):
    hub.create("alice/x")
    push = ("push", mine, "alice/x", "--base-model", "org/tiny-base", "--dry-run")
    meant = alice.does(*push)
    assert "license: apache-2.0" in meant
    paths = sorted({request.path.partition("?")[0] for request in hub.seen("GET", origin="hub")})
    assert "/api/models/org/tiny-base" in paths
    for path in paths:
        hub.faults.clear()
        hub.fail("GET", f"{re.escape(path)}($|[?])", **fault)
        done = alice.run(*push)
        assert (done.returncode == 1 and "error: " in done.stderr) or done.stdout == meant, path


def test_the_license_of_a_base_that_may_not_be_read_is_left_out(alice, mine):
    done = alice.does("push", mine, "alice/x", "--base-model", "org/none", "--dry-run")
    assert "base_model: org/none" in done
    assert "license" not in done


@pytest.mark.parametrize("status", [429, 500])
def test_a_server_that_asks_to_wait_is_given_time(status, hub, alice, mine):
    hub.fail("POST", "/commit/", status, headers={"Retry-After": "3"})
    began = time.monotonic()
    alice.does("push", mine, "alice/x", "--public")
    assert time.monotonic() - began > 3


def test_a_put_that_breaks_off_is_sent_again(hub, alice, mine):
    alice.settings |= LFS
    hub.fail("PUT", "/objects/")
    alice.does("push", mine, "alice/x", "--public")
    assert len(hub.seen("PUT", "/objects/")) == 2


@both_ways
def test_a_lost_answer_does_not_commit_twice(way, hub, alice, mine):
    alice.settings |= way
    hub.fail("POST", "/commit/", after=True)
    done = json.loads(alice.does("push", mine, "alice/x", "--public", "--json"))
    repository = hub.repositories["alice/x"]
    assert len(repository.log()) == 2
    assert repository.resolve("main") == done["commit"]
    assert done["verified"]


def test_a_lost_answer_to_a_pull_request_does_not_open_two(hub, alice, mine):
    hub.create("bob/x")
    hub.fail("POST", "/commit/", after=True)
    failed = alice.run("push", mine, "bob/x", "--create-pr")
    assert failed.returncode == 1
    assert "cannot be reached" in failed.stderr
    assert hub.repositories["bob/x"].pulls == 1


@both_ways
def test_a_pull_request_to_somebody_elses_repository(way, hub, alice, mine):
    alice.settings |= way
    repository = hub.create("bob/x")
    before = repository.resolve("main")
    done = json.loads(alice.does("push", mine, "bob/x", "--create-pr", "--json"))
    assert done["pull_request"].endswith("/bob/x/discussions/1")
    assert repository.resolve("main") == before
    assert repository.resolve("refs/pr/1") == done["commit"]
    inspected = json.loads(alice.does("inspect", "hf://bob/x@refs/pr/1", "--json"))
    assert inspected["source"] == f"hf://bob/x@{done['commit']}"


def test_there_is_nothing_to_propose_to_a_repository_that_is_not_there(hub, alice, mine):
    refused = alice.run("push", mine, "alice/x", "--create-pr")
    assert refused.returncode == 1
    assert "alice/x: no such repository to propose changes to" in refused.stderr
    refused = alice.run("push", mine, "org/tiny-base", "--create-pr", "--revision", "dev")
    assert refused.returncode == 2
    assert "--create-pr proposes changes to main" in refused.stderr
    assert writes(hub) == []


def test_a_branch_is_made_when_it_is_missing(hub, alice, mine):
    alice.does("push", mine, "alice/x", "--public", "--revision", "exp/one")
    repository = hub.repositories["alice/x"]
    assert len(repository.entries(repository.resolve("main"))) == 1
    assert len(repository.entries(repository.resolve("exp/one"))) == 4
    assert "exp%2Fone" in hub.seen("POST", "/commit/")[0].path
    alice.does("inspect", "hf://alice/x@exp%2Fone")


def test_a_new_repository_needs_a_word_on_who_may_see_it(hub, alice, mine):
    refused = alice.run("push", mine, "alice/x")
    assert refused.returncode == 2
    assert "alice/x is new: say --private or --public" in refused.stderr
    assert writes(hub) == []
    alice.does("push", mine, "alice/x", "--private")
    assert hub.repositories["alice/x"].private
    alice.does("push", mine, "alice/x")  # it is not new any more


def test_private_is_not_granted_by_a_public_repository(hub, alice, mine):
    hub.create("alice/x")
    refused = alice.run("push", mine, "alice/x", "--private")
    assert refused.returncode == 1
    assert "is public on the Hub, and --private was asked for" in refused.stderr
    assert writes(hub) == []


@pytest.mark.parametrize(
    ("token", "repo", "message", "hint"),
    [
        (None, "alice/x", "publishing needs a token", "hf auth login"),
        ("hf_unknown", "alice/x", "the token is not valid", "hf auth login"),
        (ALICE, "bob/x", "the token may not do this (You don't have the rights", "write access"),
    ],
)
def test_who_may_not_write_is_told_why(token, repo, message, hint, hub, alice, mine):
    alice.token = token
    refused = alice.run("push", mine, repo, "--public")
    assert refused.returncode == 1
    assert message in refused.stderr
    assert hint in refused.stderr
    assert repo not in hub.repositories


def test_a_private_repository_is_nobody_elses_business(hub, alice, mine):
    alice.does("push", mine, "alice/x", "--private")
    for token, message in (
        (None, "no such repository, or it is private"),
        ("hf_bob_writes", "or it is private and the token may not see it"),
        ("hf_wrong", "the token is not valid"),
    ):
        refused = alice.fresh("other", token).run("inspect", "hf://alice/x")
        assert refused.returncode == 1
        assert message in refused.stderr
    assert "4 modules" in alice.fresh("again", ALICE).does("inspect", "hf://alice/x")


def test_a_secret_stops_it_before_anything_is_sent(hub, alice, mine):
    (mine / "README.md").write_text("# Mine\n\nexport HF_TOKEN=hf_" + "a1B2" * 8 + "\n")
    (mine / "training_config.json").write_text('{"output_dir": "/home/alice/runs/7"}')
    refused = alice.run("push", mine, "alice/x", "--public")
    assert refused.returncode == 1
    assert "training_config.json, line 1: a private path (/home/alice/runs/7)" in refused.stderr
    assert writes(hub) == []
    (mine / "training_config.json").unlink()
    refused = alice.run("push", mine, "alice/x", "--public")
    assert "README.md, line 3: a Hugging Face token (hf_a1B…)" in refused.stderr
    assert "a1B2a1B2" not in refused.stderr
    assert writes(hub) == []


@pytest.mark.parametrize("name", ["run.log", "prod.env", "x.jsonl", "x.ipynb", "x.csv", "x.ini"])
def test_what_is_included_is_searched_too(name, hub, alice, mine):
    (mine / name).write_bytes(("login " + "hf_" + "a1B2" * 8 + "\n").encode("utf-16"))
    refused = alice.run("push", mine, "alice/x", "--public", "--include", "*.*")
    assert refused.returncode == 1
    assert f"{name}, line 1: a Hugging Face token (hf_a1B…)" in refused.stderr
    assert "revoke it at https://huggingface.co/settings/tokens" in refused.stderr
    assert writes(hub) == []


def test_a_workflow_in_an_image_is_searched(hub, alice, mine):
    from judges import judge

    info = judge("PIL.PngImagePlugin").PngInfo()
    info.add_text("workflow", '{"path": "/home/alice/ComfyUI/models"}', zip=True)
    judge("PIL.Image").new("L", (8, 8)).save(mine / "sample.png", pnginfo=info)
    refused = alice.run("push", mine, "alice/x", "--public")
    assert refused.returncode == 1
    assert (
        "sample.png, text workflow: a private path (/home/alice/ComfyUI/models)" in refused.stderr
    )
    assert "saved without metadata" in refused.stderr
    assert writes(hub) == []


def test_what_cannot_be_searched_stays_here(hub, alice, mine):
    (mine / "adapter_extension.so").write_bytes(b"\x7fELF" + bytes(99))
    done = alice.does("push", mine, "alice/x", "--public", "--include", "*.so")
    assert "left out: adapter_extension.so (neither text, weights nor an image:" in done
    repository = hub.repositories["alice/x"]
    files = {entry.path for entry in repository.entries(repository.resolve("main"))}
    assert "adapter_extension.so" not in files


def test_metadata_is_stripped_from_a_copy(hub, alice):
    metadata = {"format": "pt", "ss_output_dir": "/home/alice/out", "ss_network_dim": "4"}
    mine = make_adapter(alice.folder / "mine", metadata=metadata)
    before = (mine / "adapter_model.safetensors").read_bytes()
    refused = alice.run("push", mine, "alice/x", "--public")
    assert "adapter_model.safetensors, metadata ss_output_dir: a private path" in refused.stderr
    assert "hint: --strip-metadata" in refused.stderr
    assert writes(hub) == []
    alice.does("push", mine, "alice/x", "--public", "--strip-metadata")
    assert (mine / "adapter_model.safetensors").read_bytes() == before
    found = alice.python(
        "from huggingface_hub import hf_hub_download; from safetensors import safe_open;"
        "f = safe_open(hf_hub_download('alice/x', 'adapter_model.safetensors'), 'np');"
        f"g = safe_open({str(mine / 'adapter_model.safetensors')!r}, 'np');"
        "assert all((f.get_tensor(k) == g.get_tensor(k)).all() for k in g.keys());"
        "print(sorted(f.metadata().items()))"
    )
    assert found == "[('format', 'pt'), ('ss_network_dim', '4')]\n"
    assert "nothing was sent" in alice.does("push", mine, "alice/x", "--strip-metadata")


def test_a_base_that_is_a_local_path_is_refused_until_it_has_a_name(hub, alice):
    mine = make_adapter(alice.folder / "mine", base="/home/alice/models/tiny")
    refused = alice.run("push", mine, "alice/x", "--public")
    assert refused.returncode == 1
    assert "its base model is /home/alice/models/tiny, a path of this machine" in refused.stderr
    assert "--base-model ORG/NAME" in refused.stderr
    assert writes(hub) == []
    alice.does("push", mine, "alice/x", "--public", "--base-model", "org/tiny-base")
    config = alice.python(
        "from huggingface_hub import hf_hub_download;"
        "print(open(hf_hub_download('alice/x', 'adapter_config.json')).read())"
    )
    assert json.loads(config)["base_model_name_or_path"] == "org/tiny-base"
    assert "/home/alice" in (mine / "adapter_config.json").read_text()  # the folder stays


def test_an_adapter_that_contradicts_itself_is_not_published(hub, alice):
    mine = make_adapter(alice.folder / "mine", r=16)
    refused = alice.run("push", mine, "alice/x", "--public")
    assert refused.returncode == 1
    assert "configuration and tensors do not fit together" in refused.stderr
    assert writes(hub) == []


def test_a_link_out_of_the_folder_is_refused(hub, alice, mine):
    (alice.folder / "diary.txt").write_text("private")
    (mine / "LICENSE").symlink_to(alice.folder / "diary.txt")
    refused = alice.run("push", mine, "alice/x", "--public")
    assert refused.returncode == 1
    assert "links lead out of the folder: LICENSE →" in refused.stderr
    assert writes(hub) == []


def test_other_files_are_left_out_and_listed(hub, alice, mine):
    for name in (".env", "optimizer.pt", "notes.txt", "run.py"):
        (mine / name).write_text("x")
    (mine / "checkpoint-7").mkdir()
    (mine / "checkpoint-7" / "adapter_model.safetensors").write_text("x")
    done = json.loads(
        alice.does("push", mine, "alice/x", "--public", "--include", "run.py", "--json")
    )
    assert set(done["left_out"]) == {".env", "optimizer.pt", "notes.txt", "checkpoint-7/"}
    assert {file["file"] for file in done["files"]} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "run.py",
    }


def test_my_readme_stays_mine(hub, alice, mine):
    words = "---\nlicense: mit  # my choice\ntags:\n- cats\n---\n# Cat\n\nPurrs.\n"
    (mine / "README.md").write_text(words)
    alice.does("push", mine, "alice/x", "--public")
    assert (mine / "README.md").read_text() == words
    read = (
        "from huggingface_hub import hf_hub_download;"
        "print(open(hf_hub_download('alice/x', 'README.md')).read(), end='')"
    )
    first = alice.python(read)
    assert "license: mit  # my choice\n" in first
    assert "- cats\n- lora\n- lora-tools\n- base_model:adapter:org/tiny-base\n" in first
    assert "# Cat\n\nPurrs.\n" in first
    (mine / "README.md").unlink()  # somebody writes on the Hub: that stays, too
    repository = hub.repositories["alice/x"]
    edited = first.replace("Purrs.", "Purrs, loudly.").encode()
    repository.commit("main", repository.resolve("main"), "edit", {"README.md": edited})
    assert "nothing was sent" in alice.does("push", mine, "alice/x")
    assert "Purrs, loudly." in alice.python(read)


def test_card_only_writes_the_card_and_sends_nothing(hub, alice, mine):
    alice.token = None
    named = ("--base-model", "org/tiny-base")
    done = alice.run("push", mine, "alice/x", "--card-only", *named, picture=True)
    assert done.returncode == 0
    assert {path.name for path in mine.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert done.stdout == ""
    text = (mine / "README.md").read_text()
    assert "license: apache-2.0" in text
    assert 'PeftModel.from_pretrained(base, "alice/x")' in text
    assert writes(hub) == []
    alice.run("push", mine, "alice/x", "--card-only")
    assert (mine / "README.md").read_text() == text


@pytest.mark.parametrize(
    ("way", "method", "path"),
    [(LFS, "PUT", "/objects/"), (LFS, "POST", "/commit/"), (XET, "POST", "/commit/")],
)
def test_an_interrupted_push_has_published_nothing_and_is_resumed(
    way, method, path, hub, alice, mine
):
    alice.settings |= way
    (mine / "extra.safetensors").write_bytes((mine / "adapter_model.safetensors").read_bytes())
    slow = hub.fail(method, path, status=500, delay=60)
    process = alice.start("push", mine, "alice/x", "--public", "--no-picture")
    while slow.times and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Interrupted." in err
    assert len(hub.repositories["alice/x"].log()) == 1
    alice.does("push", mine, "alice/x", "--public")
    assert len(hub.repositories["alice/x"].log()) == 2


def test_shrink_publishes_what_it_wrote(hub, alice, mine):
    done = alice.run("shrink", mine, "small", "--rank", 2, "--push-to", "alice/small", "--public")
    assert done.returncode == 0, done.stderr
    assert "published: " in done.stderr
    repository = hub.repositories["alice/small"]
    files = {entry.path for entry in repository.entries(repository.resolve("main"))}
    assert "lora_tools_report.json" in files
    inspected = json.loads(alice.does("inspect", "hf://alice/small", "--json"))
    assert {module["rank"] for module in inspected["modules"]} == {2}
    readme = alice.python(
        "from huggingface_hub import hf_hub_download;"
        "print(open(hf_hub_download('alice/small', 'README.md')).read())"
    )
    assert "`lora-tools shrink` (rank 2) from `mine`:" in readme
    assert "lora-tools shrink mine small --rank 2 --push-to alice/small --public" in readme
    assert "| best possible" in readme
    assert str(alice.folder) not in readme
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        sha256 = hashlib.sha256((mine / name).read_bytes()).hexdigest()
        assert re.search(rf"\| `mine` +\| `{name}` +\| `{sha256}` \|", readme)
    again = json.loads(alice.does("push", "small", "alice/small", "--json", picture=True))
    assert {file["outcome"] for file in again["files"]} == {"unchanged"}


def test_inputs_on_the_hub_are_named_by_the_hubs_own_checksums(hub, alice, mine):
    files = {path.name: path.read_bytes() for path in mine.iterdir()}
    hub.publish("bob/cat", files)
    alice.does("shrink", "bob/cat", "small", "--rank", 2, "--push-to", "alice/small", "--public")
    report = json.loads((alice.folder / "small" / "lora_tools_report.json").read_text())
    path = f"hf://bob/cat@{hub.repositories['bob/cat'].resolve('main')}"
    assert report["inputs"] == [
        {"path": path, "file": name, "sha256": hashlib.sha256(files[name]).hexdigest()}
        for name in ("adapter_config.json", "adapter_model.safetensors")
    ]


def test_merge_and_convert_publish_what_they_wrote(hub, alice, mine):
    import numpy as np
    from safetensors.numpy import save_file

    from lora_tools import read

    base = alice.folder / "base"
    base.mkdir()
    weights = {
        f"{module.name}.weight": np.zeros(module.shape, np.float32)
        for module in read(mine).manifest.modules
    }
    save_file(weights, base / "model.safetensors")
    (base / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    for name, arguments in (
        ("merged", ("merge", "base", "mine", "merged")),
        ("converted", ("convert", "mine", "converted", "--to", "mlx")),
        ("extracted", ("extract", "base", "merged", "extracted", "--rank", 2, *TO)),
    ):
        done = alice.run(*arguments, "--push-to", f"alice/{name}", "--public")
        assert done.returncode == 0, done.stderr
        assert "published: " in done.stderr
        assert f"alice/{name}" in hub.repositories
    refused = alice.run("convert", "mine", "a.safetensors", "--to", "kohya", "--push-to", "alice/a")
    assert refused.returncode == 2
    assert "OUT is a file" in refused.stderr


TO = ("--base-model", "org/tiny-base")


def test_the_card_has_a_picture_that_is_not_drawn_anew_each_time(hub, alice, mine):
    done = json.loads(alice.does("push", mine, "alice/x", "--public", "--json", picture=True))
    assert "](lora_tools_spectra.png)" in done["card"]
    repository = hub.repositories["alice/x"]
    drawn = repository.entry(repository.resolve("main"), "lora_tools_spectra.png")
    assert hub.content(drawn.lfs).read_bytes().startswith(b"\x89PNG")
    assert not (mine / "lora_tools_spectra.png").exists()
    assert "nothing was sent" in alice.does("push", mine, "alice/x", picture=True)


def test_without_matplotlib_there_is_a_card_without_a_picture(hub, alice, mine):
    (alice.folder / "matplotlib.py").write_text("raise ImportError('not here')")
    done = alice.run("push", mine, "alice/x", "--public", "--json", picture=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'lora-tools[report]'" in done.stderr
    assert "![" not in json.loads(done.stdout)["card"]


def test_push_to_is_refused_before_the_work_is_done(hub, alice, mine):
    for more, status, message in (
        ([], 2, "say --private or --public"),
        (["--public", "--dry-run"], 2, "--push-to publishes OUT"),
    ):
        done = alice.run("shrink", mine, "small", "--rank", 2, "--push-to", "alice/s", *more)
        assert done.returncode == status
        assert message in done.stderr
        assert not (alice.folder / "small").exists()
    alone = alice.run("shrink", mine, "small", "--rank", 2, "--public")
    assert alone.returncode == 2
    assert "go with --push-to" in alone.stderr


def test_a_merged_model_is_published_as_one(hub, alice):
    import numpy as np
    from safetensors.numpy import save_file

    model = alice.folder / "merged"
    model.mkdir()
    save_file({"model.layers.0.q.weight": np.ones((8, 8), np.float32)}, model / "model.safetensors")
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    out = alice.run("push", model, "alice/m", "--public", "--base-model", "org/tiny-base", "--json")
    assert out.returncode == 0, out.stderr
    card = alice.python(
        "from huggingface_hub import ModelCard; c = ModelCard.load('alice/m');"
        "print(c.data.base_model, c.data.library_name, c.data.license, c.data.tags)"
    )
    assert card == "org/tiny-base transformers apache-2.0 ['lora', 'lora-tools']\n"


def test_a_base_that_a_file_names_is_not_looked_up(hub, alice, mine):
    config = json.loads((mine / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny-base"
    hub.requests.clear()
    done = alice.run("push", mine, "alice/x", "--public", "--no-picture")
    assert done.returncode == 0, done.stderr
    assert "names no license" in done.stderr
    assert not [request.path for request in hub.requests if "tiny-base" in request.path]
    again = alice.run("push", mine, "alice/x", "--base-model", "org/tiny-base", "--no-picture")
    assert again.returncode == 0, again.stderr
    assert [request.path for request in hub.requests if "tiny-base" in request.path]


def test_a_base_model_that_is_a_folder_here_is_refused(hub, alice, mine):
    (alice.folder / "org" / "here").mkdir(parents=True)
    done = alice.run("push", mine, "alice/x", "--public", "--base-model", "org/here")
    assert done.returncode == 1
    assert "a path of this machine" in done.stderr
    assert writes(hub) == []


def test_a_readme_that_is_not_utf8_is_refused_before_anything_is_sent(hub, alice, mine):
    (mine / "README.md").write_bytes("# Café\n".encode("latin-1"))
    done = alice.run("push", mine, "alice/x", "--public", "--no-picture")
    assert done.returncode == 1
    assert "README.md: is not UTF-8" in done.stderr
    assert writes(hub) == []


def test_what_is_pushed_acts_on_no_terminal(hub, alice):
    folder = hostile.adapter(alice.folder / "hostile")
    named = ("--base-model", "org/tiny-base", "--dry-run", "--include", "*.txt")
    done = alice.run("push", folder, "alice/x", *named)
    assert done.returncode == 0, done.stderr
    assert hostile.unseen(done.stdout + done.stderr) == []
    assert "\\x1b[31m" in done.stdout
    shown = json.loads(alice.does("push", folder, "alice/x", *named, "--json"))
    assert f"side {hostile.ESCAPES[0]}.txt" in {file["file"] for file in shown["files"]}
    ours = shown["card"].partition("<!-- lora-tools: begin -->")[2]
    assert hostile.unseen(ours) == []
    refused = alice.run("push", folder, "alice/x", "--dry-run")
    assert refused.returncode == 1
    assert hostile.unseen(refused.stderr) == []
