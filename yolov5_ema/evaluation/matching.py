"""Assigning detections to objects, all images, classes and thresholds in one pass.

The benchmarks' rule is a loop: detections in the order of their scores, each takes the free object that it
overlaps most. That is a serial dictatorship, and its outcome is the only stable matching where every object
prefers the detection of the higher score; so it is found as well by deferred acceptance (Gale and Shapley,
1962), in which all detections ask at once, objects keep the best that asked, and the refused ask again. It takes as
many rounds as the longest chain of refusals, not as many steps as there are detections.
"""

from __future__ import annotations

import numpy as np


def match(
    detections: np.ndarray, objects: np.ndarray, overlaps: np.ndarray, count: int, n_objects: int
) -> np.ndarray:
    """Which object each detection takes.

    Args:
        detections: int64 of shape (P,): of each pair that may match, the detection's rank; a lower one chooses first.
        objects: int64 of shape (P,): the pair's object. Of equal overlaps the higher number is taken.
        overlaps: float64 of shape (P,).
        count: number of detections.
        n_objects: number of objects.

    Returns:
        int64 of shape (count,): the object, or -1.

    Example:
        >>> match(np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0.9, 0.6, 0.8]), 2, 2)
        array([ 0, -1])
        >>> match(np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([0.7, 0.8, 0.6]), 2, 2)
        array([0, 1])
    """
    order = np.lexsort((-objects, -overlaps, detections))
    wishes = objects[order]
    first = np.searchsorted(detections[order], np.arange(count + 1))
    position, end = first[:-1].copy(), first[1:]
    holder = np.full(n_objects, count, np.int64)  # `count` is nobody
    asking = np.flatnonzero(position < end)
    while len(asking):
        wanted = wishes[position[asking]]
        before = holder[wanted]
        np.minimum.at(holder, wanted, asking)
        refused = asking[holder[wanted] != asking]
        displaced = before[(before < count) & (holder[wanted] != before)]
        asking = np.unique(np.concatenate([refused, displaced]))
        position[asking] += 1
        asking = asking[position[asking] < end[asking]]
    taken = np.full(count, -1, np.int64)
    held = np.flatnonzero(holder < count)
    taken[holder[held]] = held
    return taken
