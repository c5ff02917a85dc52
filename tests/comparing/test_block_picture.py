"""The picture of what blocks cost: every name can be read, however close the points are."""

from __future__ import annotations

import random
from itertools import combinations

from matplotlib.text import Annotation

from yolov5_ema.comparing.block_costs import BlockCost
from yolov5_ema.comparing.block_picture import compose


def test_names_are_over_nothing():
    numbers = random.Random(0)
    plain = BlockCost("none", 7_235_389, 16.5, None, 100.0, (99.0, 101.0), 1.0)
    parameters = [0, 0, 5, 8, 10, *(int(10 ** numbers.uniform(1, 7)) for _ in range(25))]
    blocks = [
        BlockCost(f"Block{i}", count, 0.1, 1.0, 101.0, (100.0, 102.0), 1 + numbers.gauss(0.01, 0.01))
        for i, count in enumerate(parameters)
    ]
    (axes,) = compose([plain, *blocks, BlockCost("Thin", reason="too few channels")], "title").axes
    names = [text for text in axes.texts if isinstance(text, Annotation) and text.get_text()]
    assert [text.get_text() for text in names] == [block.block for block in blocks]
    boxes = [text.get_window_extent() for text in names]
    inside = axes.get_window_extent()
    assert all(inside.contains(*box.min) and inside.contains(*box.max) for box in boxes)
    for one, other in combinations(boxes, 2):
        assert not one.overlaps(other)
    for block in blocks:
        x, y = axes.transData.transform((block.parameters, 100 * (block.ratio - 1)))
        assert not any(box.contains(x, y) for box in boxes)
