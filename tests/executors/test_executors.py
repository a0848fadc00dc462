import subprocess
import sys
import threading
import time

import pytest
import torch

from lora_tools.executors import Serial, Threads

EXECUTORS = [Serial(), Threads(1), Threads(3)]


def square(x: int) -> int:
    return x * x


def fragile(x: int) -> int:
    if x == 5:
        raise ValueError("job 5")
    return x


@pytest.mark.parametrize("executor", EXECUTORS, ids=str)
def test_results_come_in_the_order_of_the_jobs(executor):
    assert list(executor.map(square, range(50))) == [x * x for x in range(50)]
    assert list(executor.map(square, [])) == []


@pytest.mark.parametrize("executor", EXECUTORS, ids=str)
def test_the_first_error_ends_it(executor):
    results = executor.map(fragile, range(1000))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="job 5"):
        next(results)


@pytest.mark.parametrize("executor", EXECUTORS, ids=str)
def test_only_a_few_jobs_are_in_flight(executor):
    started = []

    def jobs():
        for x in range(100):
            started.append(x)
            yield x

    results = executor.map(square, jobs())
    next(results)
    assert len(started) <= 8


def test_threads_work_at_the_same_time():
    together = threading.Barrier(2, timeout=20)
    assert list(Threads(2).map(lambda _: together.wait() >= 0, range(2))) == [True, True]


def test_each_thread_computes_on_one_core():
    before = torch.get_num_threads()
    counts = list(Threads(2).map(lambda _: torch.get_num_threads(), range(4)))
    assert counts == [1] * 4
    assert torch.get_num_threads() == before


def test_an_abandoned_map_ends_its_threads():
    results = Threads(2).map(lambda x: time.sleep(0.01) or x, range(1000))
    next(results)
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


def test_a_job_may_import_torch_while_others_begin(tmp_path):
    (tmp_path / "torch.py").write_text(
        "import time\ntime.sleep(0.5)\ndef set_num_threads(count): pass\n"
    )
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]);"
        "from lora_tools.executors import Threads;"
        "task = lambda job: __import__('torch') and 0 if job == 0 else time.sleep(0.1);"
        "list(Threads(2).map(task, range(4)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("error", "patient", "waits"),
    [
        (KeyboardInterrupt, False, False),
        (KeyboardInterrupt, True, True),
        (ZeroDivisionError, False, True),
    ],
)
def test_an_interrupt_waits_for_jobs_only_if_the_caller_is_patient(error, patient, waits):
    begun, free, done = threading.Event(), threading.Event(), []

    def work(number: int) -> None:
        begun.set()
        free.wait(1 if waits else 30)
        done.append(number)

    def jobs():
        yield 1
        begun.wait(30)
        raise error

    with pytest.raises(error):
        list(Threads(1, patient=patient).map(work, jobs()))
    assert done == ([1] if waits else [])
    free.set()
