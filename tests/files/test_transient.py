"""Files that stay for as long as they are read."""

from dataclasses import dataclass, field
from threading import Barrier, Thread

from lora_tools.files.transient import TransientFiles


@dataclass(eq=False)
class Visitor:
    here: bool = False
    evicted: list[bool] = field(default_factory=list)

    def is_here(self) -> bool:
        return self.here

    def evict(self) -> None:
        self.evicted.append(True)


def test_a_file_is_evicted_after_its_last_use_and_once():
    visitor = Visitor()
    guests = TransientFiles([visitor, visitor])
    guests.done(visitor)
    assert visitor.evicted == []
    guests.done(visitor)
    guests.done(visitor)
    assert visitor.evicted == [True]


def test_what_was_here_before_stays():
    visitor = Visitor(here=True)
    guests = TransientFiles([visitor])
    guests.done(visitor)
    assert visitor.evicted == []


def test_local_paths_are_no_guests(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    TransientFiles([file]).done(file)
    assert file.exists()


def test_threads_share_the_count():
    for _ in range(50):
        visitor = Visitor()
        guests, start = TransientFiles([visitor] * 8), Barrier(8)

        def read(guests=guests, start=start, visitor=visitor):
            start.wait()
            guests.done(visitor)

        threads = [Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert visitor.evicted == [True]
