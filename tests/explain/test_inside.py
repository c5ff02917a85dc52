"""How much of a map lies in boxes, and the table of these figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torch import nn

from yolov5_ema.explain.inside import Tally, mask_of, share_inside
from yolov5_ema.explain.layers import Layer
from yolov5_ema.explain.looks import Maps


def test_a_mask_has_the_pixels_whose_middle_is_in_a_box():
    boxes = [np.array([0.5, 0.5, 0.5, 0.25]), np.array([0.0, 0.0, 0.2, 0.26])]
    expected = np.zeros((8, 10), bool)
    expected[3:5, 2:7] = True  # 2.5 to 7.5 across, 3 to 5 down
    expected[0:1, 0:1] = True  # cut off at the border: to 1.0 across, to 1.04 down
    np.testing.assert_array_equal(mask_of(boxes, (8, 10)), expected)
    assert not mask_of([], (8, 10)).any()


def test_the_share_of_a_map_in_a_mask():
    values = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    mask = np.array([[False, True], [False, True]])
    assert share_inside(values, mask) == pytest.approx(0.6)
    # a flat map gives the boxes' fraction of the area
    assert share_inside(values * 0 + 2, mask) == pytest.approx(mask.mean())
    assert math.isnan(share_inside(values * 0, mask))


def maps(name, cam, gate=None):
    layer = Layer(name, 0, name, nn.Identity(), "EMA" if gate is not None else None, 8, 16)
    return Maps(layer, np.asarray(cam, np.float32), gate, None)


def test_the_table_has_means_over_pictures_with_boxes():
    tally, mask = Tally(), np.array([[True, False]])
    gate = np.array([[0.8, 0.5]], np.float32)
    tally.add("a.pt", [maps("7", [[3, 1]], gate), maps("9", [[0, 0]])], mask)
    tally.add("a.pt", [maps("7", [[1, 1]], gate / 2), maps("9", [[1, 4]])], mask)
    tally.add("a.pt", [maps("7", [[0, 1]], gate), maps("9", [[0, 1]])], ~mask & mask)
    heads, seventh, ninth = tally.rows()
    assert heads[2:5] == ("pictures", "Grad-CAM in boxes", "area of boxes")
    assert seventh == ("a.pt", "7: EMA", "2", "0.625", "0.500", "1.250", "0.600", "0.375")
    assert ninth == ("a.pt", "9: Identity, no block", "2", "0.200", "0.500", "0.400", "-", "-")
    assert Tally().rows() == []
