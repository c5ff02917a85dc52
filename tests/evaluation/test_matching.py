"""Deferred acceptance gives the same result as the benchmarks' loop."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov5_ema.evaluation.boxes import overlaps
from yolov5_ema.evaluation.matching import match


def by_loop(table: np.ndarray, threshold: float) -> list[int]:
    """Each detection in turn takes the free object with the highest overlap, and the last of equal ones."""
    free, out = set(range(table.shape[1])), []
    for row in table:
        best = max(((value, at) for at, value in enumerate(row) if value >= threshold and at in free), default=None)
        out.append(-1 if best is None else best[1])
        free.discard(out[-1])
    return out


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 7).flatmap(
        lambda objects: st.lists(
            st.lists(st.integers(0, 6), min_size=objects, max_size=objects), min_size=1, max_size=9
        )
    )
)
def test_match_is_the_loop(rows):
    table = np.array(rows, dtype=float).reshape(len(rows), len(rows[0])) / 6
    detections, objects = np.nonzero(table >= 0.5)
    found = match(detections, objects, table[detections, objects], *table.shape)
    assert found.tolist() == by_loop(table, 0.5)


def test_a_chain_of_refusals():
    """Detection k prefers object k - 1, which detection k - 1 took before; so each gets the object of its number."""
    count = 200
    detections = np.repeat(np.arange(count), 2)[1:]
    objects = np.array([0, *[number for k in range(1, count) for number in (k - 1, k)]])
    prefers = np.array([0.9, *[value for _ in range(1, count) for value in (0.9, 0.6)]])
    assert match(detections, objects, prefers, count, count).tolist() == list(range(count))


def test_match_without_pairs():
    nothing = np.zeros(0, np.int64)
    assert match(nothing, nothing, np.zeros(0), 3, 2).tolist() == [-1, -1, -1]


def test_overlaps_against_closed_forms():
    a = np.array([[0.0, 0, 10, 10], [0, 0, 10, 0]])
    b = np.array([[5.0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 5, 5], [2, 2, 4, 4]])
    np.testing.assert_allclose(overlaps(a, b), [[1 / 3, 0.5, 0, 0.16], [0, 0, 0, 0]])
    np.testing.assert_allclose(overlaps(a, b, of_first=True), [[0.5, 0.5, 0, 0.16], [0, 0, 0, 0]])
    assert overlaps(a, np.zeros((0, 4))).shape == (2, 0)
