"""Assign detections to objects, for all images, classes and thresholds in one pass.

The benchmarks' rule is a loop: in the order of their scores, each detection takes the free object that it overlaps
most. This is a serial dictatorship. Its outcome is the only stable matching if every object prefers the detection with
the higher score. Deferred acceptance (Gale and Shapley, 1962) therefore finds the same matching: all detections
propose at once, each object keeps its best proposal, and refused detections propose again. It needs as many rounds as
the longest chain of refusals, instead of one step for each detection.
"""

from __future__ import annotations

import numpy as np


def match(detections: np.ndarray, objects: np.ndarray, overlaps: np.ndarray, count: int, n_objects: int) -> np.ndarray:
    """The object that each detection takes.

    Args:
        detections: int64 of shape (P,): the detection's rank in each pair that may match; a lower rank chooses first.
        objects: int64 of shape (P,): the object in each pair. If overlaps are equal, the higher number is taken.
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
