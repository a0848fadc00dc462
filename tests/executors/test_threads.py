"""Reading ahead: in order, one job early, errors where they belong."""

import threading

import pytest

from lora_tools.executors.threads import ahead


def test_results_come_in_the_order_of_the_jobs():
    assert list(ahead(lambda x: x * x, range(20))) == [x * x for x in range(20)]
    assert list(ahead(lambda x: x, [])) == []


def test_the_next_job_is_read_while_this_one_is_used():
    begun = [threading.Event() for _ in range(3)]

    def load(number: int) -> int:
        begun[number].set()
        return number

    results = ahead(load, range(3))
    assert next(results) == 0
    assert begun[1].wait(5)
    assert not begun[2].is_set()
    assert list(results) == [1, 2]


def test_an_error_comes_up_at_its_own_place():
    def load(number: int) -> float:
        return 1 / number

    results = ahead(load, [1, 2, 0, 4])
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
