"""Blocks in the families of ultralytics: build, train a step, val, predict, export, load again, evaluate."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cases import ultralytics_matrix as cases
from offline_ultralytics import needs_yolo26, run_python

from yolov5_ema.blocks import list_blocks

pytest.importorskip("ultralytics")

FAMILIES = ("yolov8n.yaml", "yolo11n.yaml", "yolo12n.yaml", "yolo26n.yaml", "rtdetr-l.yaml")
IN_EVERY_FAMILY = ("CA", "CBAM", "ECA", "EMA", "NAM", "SA", "SE")
IN_ONE_FAMILY = "yolo11n.yaml"  # all other blocks
EVERY_DAY = [("yolo26n.yaml", "EMA")]
MATRIX = [
    pytest.param(
        base,
        block,
        marks=[
            *(() if (base, block) in EVERY_DAY else [pytest.mark.slow]),
            *([needs_yolo26] if "yolo26" in base else ()),
        ],
    )
    for base in FAMILIES
    for block in list_blocks()
    if block in IN_EVERY_FAMILY or base == IN_ONE_FAMILY
]
FIGURES = ("P", "R", "mAP50", "mAP50-95")


@pytest.mark.parametrize(("base", "block"), MATRIX)
def test_a_block_in_a_family(base, block, tiny_set, tmp_path):
    run_python(cases.use, base, block, tiny_set, cwd=tmp_path)
    image = next((tiny_set.parent / "images/val").glob("*.jpg"))
    run_python(cases.use_again, cases.SIDES.get(base, 64), image, cwd=tmp_path)
    facts = json.loads((tmp_path / cases.FACTS).read_text())

    assert facts["blocks"] == [block] * 2  # behind the last two stages of the backbone
    assert facts["rows"] and facts["rows_again"] == facts["rows"]
    assert facts["export_differs_by"] < 1e-3
    result = json.loads((tmp_path / "evaluated.json").read_text())
    figures = [result["ultralytics"][name] for name in FIGURES]
    np.testing.assert_allclose(figures, facts["figures"], rtol=0, atol=1e-6)
    assert 0 < figures[3] < figures[2] < 1
