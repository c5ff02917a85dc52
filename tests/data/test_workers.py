"""Results of chunks come back in order, whichever worker makes them; the death of a worker is reported at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time

import pytest

from yolov5_ema.data import workers
from yolov5_ema.data.workers import all_cores, chunked, run_chunks
from yolov5_ema.errors import UserError


def double(number):
    time.sleep(0.02 * (number % 3 == 0))
    return 2 * number


def die(number):
    if number == 2:
        os._exit(9)
    return number


def fail(number):
    raise UserError(f"chunk {number}")


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("count", [1, 3])
def test_results_in_order(monkeypatch, method, count):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip("not on this system")
    monkeypatch.setattr(workers, "_context", lambda: multiprocessing.get_context(method))
    numbers = list(range(30))
    assert list(run_chunks(double, numbers, [1] * 30, workers=count)) == [2 * number for number in numbers]


def test_no_chunks():
    assert list(run_chunks(double, [], [], workers=2)) == []
    assert chunked([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]] and all_cores() >= 1


def test_a_worker_that_dies():
    with pytest.raises(UserError, match="a worker process was killed"):
        list(run_chunks(die, list(range(6)), [1] * 6, workers=2))


@pytest.mark.parametrize("count", [1, 2])
def test_errors_arrive_as_they_are(count):
    with pytest.raises(UserError, match="chunk 0"):
        list(run_chunks(fail, [0, 1], [1, 1], workers=count))


def test_closing_leaves_no_worker():
    before = set(multiprocessing.active_children())
    with contextlib.closing(run_chunks(double, list(range(100)), [1] * 100, workers=2)) as results:
        assert next(results) == 0
    assert set(multiprocessing.active_children()) <= before
