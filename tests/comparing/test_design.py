"""The design of a comparison whose number of seeds follows from the spread of the first ones."""

from __future__ import annotations

import json

import pytest

from yolov5_ema.comparing.design import FILE, Design, begun, kept
from yolov5_ema.comparing.power import seeds_for_width
from yolov5_ema.errors import UserError

BASE = {0: 0.50, 1: 0.50, 2: 0.50, 3: 0.9}


def test_the_model_with_the_largest_spread_decides():
    figures = {"base": BASE, "a": {0: 0.50, 1: 0.51, 2: 0.52}, "b": {0: 0.50, 1: 0.52, 2: 0.54, 3: 0.1}}
    # the spread of b over the first three is 0.02; two models, so 97.5 % each; the fourth seed does not count
    assert Design(3, 0.05).seeds(figures, "base") == seeds_for_width(0.05, 0.02, 3, 0.975) == 25
    assert Design(3, 0.5).seeds(figures, "base") == 3


def test_results_of_two_seeds_are_needed():
    with pytest.raises(UserError, match="a: --until-width needs the results of at least two of the first 3 seeds"):
        Design(3, 0.05).seeds({"base": BASE, "a": {0: 0.5, 7: 0.6}}, "base")


def test_a_design_is_kept(tmp_path):
    assert kept(tmp_path) is None
    assert begun(tmp_path, 0.01, 5) == Design(5, 0.01) == kept(tmp_path)
    assert begun(tmp_path, 0.01, 9) == Design(5, 0.01)
    with pytest.raises(UserError, match=r"begun with --until-width 0.01; another width .* too narrow"):
        begun(tmp_path, 0.005, 5)


def test_too_few_seeds_and_damaged_files(tmp_path):
    with pytest.raises(UserError, match="--seeds 3 or more, not 2"):
        begun(tmp_path, 0.01, 2)
    assert not (tmp_path / FILE).exists()
    for content in ("{", "[]", "{}", json.dumps({"pilot": True, "width": 0.1}), json.dumps({"pilot": 3, "width": "x"})):
        (tmp_path / FILE).write_text(content)
        with pytest.raises(UserError, match=r"design.json cannot be read: .* Choose another --name"):
            kept(tmp_path)
