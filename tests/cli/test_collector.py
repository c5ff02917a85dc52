"""The garbage collector at the start and at the end of a command."""

from __future__ import annotations

import gc
import weakref

import pytest
from cases import collector as cases
from fresh_process import run_in_copy

from yolov5_ema.cli._collector import paused


@pytest.fixture(autouse=True)
def nothing_frozen():
    """The tests themselves run with frozen objects."""
    was_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    yield
    if was_frozen:
        gc.freeze()


class Held:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.own = self


def test_nothing_is_collected_in_a_pause_and_everything_later():
    done = []
    gc.callbacks.append(lambda phase, info: done.append(info["generation"]))
    try:
        with paused():
            before = weakref.ref(Held())
            lists = [[number] for number in range(100_000)]
            assert not gc.isenabled()
            assert done == [] and before() is not None
        assert gc.isenabled()
        # all that was made is in the oldest generation
        assert gc.get_count()[0] < 1_000 and len(gc.get_objects(generation=0)) < 1_000
        assert gc.get_freeze_count() == 0
        gc.collect()
        assert before() is None and len(lists) == 100_000
    finally:
        del gc.callbacks[-1]


def test_a_pause_ends_after_an_error_and_with_the_outer_one():
    with pytest.raises(KeyError), paused():
        raise KeyError
    assert gc.isenabled()
    with paused():
        with paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_a_caller_has_set_stays():
    gc.disable()
    try:
        with paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with paused():
            assert gc.isenabled()
        assert 0 < gc.get_freeze_count() <= count
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(("how", "is_left"), [("program", True), ("call", False)])
def test_only_a_program_that_closes_its_files_ends_without_a_last_search(how, is_left):
    done = run_in_copy(cases.ends, how)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"left: {is_left}"
