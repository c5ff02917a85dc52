"""Pairs the rows of a checkpoint with the rows of another cfg.

Rows are compared by kind, stride, channels and the shapes of their tensors. Dynamic programming (Needleman and Wunsch,
J. Mol. Biol. 48, 1970) finds the best pairing that keeps the order of both models. Inserted rows stay unpaired.
"""

from __future__ import annotations

from torch import nn

from yolov5_ema.blocks import registry
from yolov5_ema.weights.conversions import tensors_for
from yolov5_ema.weights.structure import Layer

# scores that add up to the affinity of two rows
_SAME_KIND = 0.25
_SAME_CHANNELS = 0.25
_ALL_TENSORS = 2.0
# small: it only decides between rows that are equal otherwise
_SAME_SOURCES = 0.125

Pairs = dict[int, int]


def align(source: list[Layer], target: list[Layer]) -> Pairs:
    """The number of the matching source row for each row of the target that has one."""
    worth = [[_affinity(s, t) for s in source] for t in target]
    pairs = _best_pairs(worth)
    for t, row in enumerate(worth):
        for s, value in enumerate(row):
            if value and _reads_the_same(source[s], target[t], source, target, pairs):
                row[s] = value + _SAME_SOURCES
    return _best_pairs(worth)


def moved_rows(source: list[Layer], target: list[Layer], pairs: Pairs) -> Pairs:
    """Additional pairs, out of order: rows that changed places with a neighbour (v5's SPP, C3; v6.0's C3, SPPF).

    Only rows that are not paired yet and whose tensors all fit are considered.
    """
    found: Pairs = {}
    left = [s for s in source if s.index not in pairs.values() and s.tensors and not is_block(s)]
    for t in target:
        if t.index in pairs or not t.tensors:
            continue
        fitting = [s for s in left if s.channels == t.channels and _affinity(s, t) >= _ALL_TENSORS]
        if fitting:
            nearest = min(fitting, key=lambda s: abs(s.index - t.index))
            found[t.index] = nearest.index
            left.remove(nearest)
    return found


def is_block(layer: Layer) -> bool:
    """Whether a row is an attention block, judged by name too, because its class may come from another YOLOv5."""
    is_repeated = type(layer.module) is nn.Sequential and len(layer.module)
    return bool(registry.block_of(layer.kind) or registry.block_of(layer.module[0] if is_repeated else layer.module))


def _affinity(source: Layer, target: Layer) -> float:
    tensors = tensors_for(source, target)
    if tensors is None or len({source.stride, target.stride} - {None}) > 1:
        return 0.0
    worth = _SAME_KIND
    if source.channels is not None and source.channels == target.channels:
        worth += _SAME_CHANNELS
    elements = sum(value.numel() for value in target.tensors.values())
    same = sum(
        value.numel()
        for name, value in target.tensors.items()
        if name in tensors and tensors[name].shape == value.shape
    )
    return worth + _ALL_TENSORS * same / elements if elements else worth


def _best_pairs(worth: list[list[float]]) -> Pairs:
    """The ordered pairing with the greatest total worth; among equal ones, that of the earliest rows."""
    height, width = len(worth), len(worth[0]) if worth else 0
    # rest[t][s] is the greatest worth of the rows from t and s on
    rest = [[0.0] * (width + 1) for _ in range(height + 1)]
    for t in reversed(range(height)):
        for s in reversed(range(width)):
            paired = worth[t][s] + rest[t + 1][s + 1] if worth[t][s] else 0.0
            rest[t][s] = max(paired, rest[t + 1][s], rest[t][s + 1])
    pairs, t, s = {}, 0, 0
    while t < height and s < width:
        if worth[t][s] and rest[t][s] == worth[t][s] + rest[t + 1][s + 1]:
            pairs[t] = s
            t, s = t + 1, s + 1
        elif rest[t][s] == rest[t][s + 1]:
            s += 1
        else:
            t += 1
    return pairs


def _reads_the_same(source: Layer, target: Layer, sources: list[Layer], targets: list[Layer], pairs: Pairs) -> bool:
    """Whether both rows read the same rows, ignoring attention blocks that only one of the models has."""
    places = {s: t for t, s in pairs.items()}
    read = [_through_blocks(i, sources, places) for i in source.sources]
    reads = [_through_blocks(i, targets, pairs) for i in target.sources]
    return read == [pairs.get(i, -1) if i >= 0 else -1 for i in reads]


def _through_blocks(index: int, layers: list[Layer], paired: Pairs) -> int:
    while index >= 0 and index not in paired and is_block(layers[index]):
        index = layers[index].sources[0]
    return index
