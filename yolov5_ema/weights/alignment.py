"""Which row of a checkpoint is which row of another cfg.

Rows are compared by what they are: kind, stride, channels, the shapes of their tensors. The best
pairing that keeps both models' order is found by dynamic programming (Needleman and Wunsch,
J. Mol. Biol. 48, 1970); inserted rows stay alone.
"""

from __future__ import annotations

from yolov5_ema.blocks import registry
from yolov5_ema.weights.conversions import tensors_for
from yolov5_ema.weights.structure import Layer

_SAME_KIND = 0.25  # of two rows with nothing else in common
_SAME_CHANNELS = 0.25
_ALL_TENSORS = 2.0
_SAME_SOURCES = 0.125  # decides between rows that are equal otherwise

Pairs = dict[int, int]


def align(source: list[Layer], target: list[Layer]) -> Pairs:
    """Number of the source's row for each row of the target that has one."""
    worth = [[_affinity(s, t) for s in source] for t in target]
    pairs = _best_pairs(worth)
    for t, row in enumerate(worth):
        for s, value in enumerate(row):
            if value and _reads_the_same(source[s], target[t], source, target, pairs):
                row[s] = value + _SAME_SOURCES
    return _best_pairs(worth)


def moved_rows(source: list[Layer], target: list[Layer], pairs: Pairs) -> Pairs:
    """Pairs beyond those in order: rows that changed places with a neighbour (v5's SPP, C3; v6.0's C3, SPPF).

    Only rows that both models have left over, and whose tensors all fit.
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
    """Whether a row is an attention block: known by name, as its class may be another YOLOv5's."""
    return bool(registry.block_of(layer.kind))


def _affinity(source: Layer, target: Layer) -> float:
    tensors = tensors_for(source, target)
    if tensors is None or _differ(source.stride, target.stride):
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


def _differ(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and one != other


def _best_pairs(worth: list[list[float]]) -> Pairs:
    """The pairing in order of the greatest total worth; the earliest rows among equals."""
    height, width = len(worth), len(worth[0]) if worth else 0
    rest = [[0.0] * (width + 1) for _ in range(height + 1)]  # worth of what lies behind (t, s)
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


def _reads_the_same(
    source: Layer, target: Layer, sources: list[Layer], targets: list[Layer], pairs: Pairs
) -> bool:
    """Whether both read the same rows, seen through attention blocks that only one of them has."""
    places = {s: t for t, s in pairs.items()}
    read = [_through_blocks(i, sources, places) for i in source.sources]
    reads = [_through_blocks(i, targets, pairs) for i in target.sources]
    return read == [pairs.get(i, -1) if i >= 0 else -1 for i in reads]


def _through_blocks(index: int, layers: list[Layer], paired: Pairs) -> int:
    while index >= 0 and index not in paired and is_block(layers[index]):
        index = layers[index].sources[0]
    return index
