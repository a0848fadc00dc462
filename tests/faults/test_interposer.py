"""The instruments themselves: a fault that does not happen, a cut that loses nothing, is none."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from faults.disk import Disk
from faults.forks import TESTS
from faults.order import Fault, Order

WAYS = {
    "Path.write_text": "Path('a').write_text('x' * 10)",
    "open": "f = open('a', 'wb'); f.write(b'x' * 10); f.close()",
    "append": "f = open('a', 'a', encoding='utf-8'); f.write('x' * 10); f.close()",
    "update": (
        "f = open('a', 'w+b'); f.seek(5); f.write(b'x' * 5);f.seek(0); f.write(b'x' * 5); f.close()"
    ),
    "os.pwrite": "d = os.open('a', os.O_CREAT | os.O_WRONLY); os.pwrite(d, b'x' * 10, 0)",
    "os.writev": "d = os.open('a', os.O_CREAT | os.O_WRONLY); os.writev(d, [b'x' * 5] * 2)",
    "shutil.copyfile": "shutil.copyfile('source', 'a')",
    "shutil.copy2": "shutil.copy2('source', 'a')",
    "copy_file_range": (
        "d = os.open('a', os.O_CREAT | os.O_WRONLY);"
        "os.copy_file_range(os.open('source', os.O_RDONLY), d, 10)"
    ),
    "tempfile": (
        "f = tempfile.NamedTemporaryFile(dir='.', delete=False); f.write(b'x' * 10); f.close();"
        "os.replace(f.name, 'a')"
    ),
}


def run(code: str, place: Path, fault: Fault | None = None) -> tuple[int, list[dict], str]:
    """Run some lines under the interposer; return the status, its record and its complaint."""
    desk = place.parent / "desk"
    desk.mkdir(exist_ok=True)
    order = Order((), str(place), (str(place),), str(desk), fault)
    lines = [
        "import json, os, shutil, sys, tempfile; from pathlib import Path",
        "from faults.child import order_of; from faults.interposer import Interposer",
        "Interposer(order_of(json.loads(sys.argv[1]))).install()",
        code,
        "os._exit(0)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), json.dumps(asdict(order))],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
    )
    record = desk / "record"
    notes = [json.loads(line) for line in record.read_text().splitlines()]
    record.unlink()
    return done.returncode, notes, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    (place / "source").write_bytes(b"x" * 10)
    return place


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_writing_is_seen_and_can_fail(way, place):
    status, (record,), stated = run(WAYS[way], place)
    assert status == 0, stated
    assert (place / "a").read_bytes() == b"x" * 10
    assert record["written"] == [str(place / "a")]
    assert not record["unaccounted"]
    for number in range(len(record["steps"])):
        (place / "a").unlink(missing_ok=True)
        status, notes, stated = run(WAYS[way], place, Fault("EIO", number))
        assert notes == [{"fired": [record["steps"][number][0], notes[0]["fired"][1]]}]
        assert "Input/output error" in stated


def test_a_process_dies_in_the_middle_of_a_write(place):
    code = "Path('a').write_bytes(b'x' * 10)"
    _, (record,), _ = run(code, place)
    assert [call for call, _ in record["steps"]] == ["create", "write"]
    status, _, _ = run(code, place, Fault("die", 1))
    assert (status, (place / "a").read_bytes()) == (-9, b"x" * 5)


def test_a_full_disk_stays_full_and_lets_go_of_files(place):
    code = "\n".join(
        [
            "d = os.open('a', os.O_CREAT | os.O_WRONLY)",
            "assert os.pwrite(d, b'x' * 10, 0) == 5",
            "for act in (lambda: os.pwrite(d, b'x', 5), lambda: os.mkdir('b')):",
            "    try: act()",
            "    except OSError as error: assert error.errno == 28",
            "    else: raise AssertionError",
            "os.unlink('a')",
        ]
    )
    status, _, stated = run(code, place, Fault("ENOSPC", 1))
    assert status == 0, stated
    assert [path.name for path in place.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("way", "kept"),
    [
        ("lost", {"synced": b"x" * 6000, "both": b"x" * 6000, "new": b""}),
        (
            "last",
            {"synced": b"x" * 6000, "both": b"x" * 6000 + b"y" * 10, "new": b"zzzzz" + bytes(5)},
        ),
        ("zeros", {"synced": b"x" * 6000, "both": b"x" * 6000 + bytes(10), "new": bytes(10)}),
    ],
)
def test_a_cut_takes_what_was_not_synced(way, kept, place):
    code = "\n".join(
        [
            "for name in ('synced', 'both'):",
            "    with open(name, 'wb') as file:",
            "        file.write(b'x' * 6000); file.flush(); os.fsync(file.fileno())",
            "open('both', 'ab').write(b'y' * 10)",
            "Path('new').write_bytes(b'z' * 10)",
            "os.mkdir('last')",
        ]
    )
    _, (record,), _ = run(code, place)
    (place / "last").rmdir()
    for name in kept:
        (place / name).unlink()
    last = len(record["steps"]) - 1
    run(code, place, Fault("cut", last, way))
    assert {name: (place / name).read_bytes() for name in kept} == kept
    assert not (place / "last").exists()


@pytest.mark.parametrize("synced", [False, True])
def test_a_rename_is_undone_unless_its_folder_was_synced(synced, place):
    disk = Disk()
    (place / "source").rename(place / "target")
    source, target = str(place / "source"), str(place / "target")
    disk.renamed(source, target, swapped=False, final=False)
    if synced:
        descriptor = os.open(place, os.O_RDONLY)
        disk.synced(descriptor)
        os.close(descriptor)
    disk.cut([str(place)], "undone", 0)
    assert [path.name for path in place.iterdir()] == ["target" if synced else "source"]


def test_half_of_the_pages_are_left(place):
    disk = Disk()
    with (place / "source").open("wb") as file:
        disk.opened(file.fileno(), created=True, emptied=False)
        file.write(b"x" * 40960)
        file.flush()
        disk.wrote(file.fileno(), 0, 40960)
    disk.cut([str(place)], "pages", 1)
    data = (place / "source").read_bytes()
    pages = {data[start : start + 4096] for start in range(0, 40960, 4096)}
    assert len(data) == 40960
    assert pages == {bytes(4096), b"x" * 4096}
