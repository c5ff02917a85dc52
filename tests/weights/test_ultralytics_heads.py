"""The heads of ultralytics: levels by stride, and classes by name."""

from __future__ import annotations

import pytest
import torch
from offline_ultralytics import offline
from small_ultralytics import small_cfg, small_model

import yolov5_ema
from yolov5_ema.weights.transfer import transfer


@pytest.fixture(scope="module", autouse=True)
def adapter(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")):
        yield yolov5_ema.install("ultralytics")


def without_first_level() -> dict:
    cfg = small_cfg()
    cfg["head"][0][0] = [5]
    return cfg


def test_levels_are_matched_by_stride():
    """A head at strides 4 and 8 gets its second level from a head at stride 8 alone."""
    source, target = small_model(cfg=without_first_level(), seed=1), small_model()
    found = transfer(source, target, names=["a", "b", "c"], target_names=["a", "b", "c"])
    for branch in ("cv2", "cv3"):
        for name, value in source.model[-1].state_dict().items():
            if name.startswith(f"{branch}.0.") and name.replace(".0.", ".1.", 1) in target.model[-1].state_dict():
                taken = found.state.get(f"model.6.{name.replace('.0.', '.1.', 1)}")
                assert taken is None or torch.equal(taken, value)
    assert not any(name.startswith(("model.6.cv2.0.", "model.6.cv3.0.")) for name in found.state)
    assert any(name.startswith("model.6.cv2.1.") for name in found.state)
    assert any("level 0: the checkpoint has no level of its stride" in row.remarks for row in found.rows)


@pytest.mark.parametrize(
    ("names", "target_names", "sources"),
    [
        (["a", "b", "c"], ["C", "a", "z"], [2, 0, None]),
        (["a", "b", "c"], ["x", "y", "z"], [None] * 3),
        (["a", "b", "c"], ["0", "1", "2"], [0, 1, 2]),
        (None, None, [0, 1, 2]),
    ],
)
@pytest.mark.parametrize(("task", "layer"), [("detect", "cv3.0.2"), ("classify", "linear")])
def test_class_outputs_by_name(names, target_names, sources, task, layer):
    source, target = small_model(task, seed=1), small_model(task)
    found = transfer(source, target, names=names, target_names=target_names)
    before, fresh = (model.model[-1].get_submodule(layer).weight for model in (source, target))
    name = f"model.{len(target.model) - 1}.{layer}.weight"
    after = found.state.get(name, fresh)
    for to, at in enumerate(sources):
        assert torch.equal(after[to], fresh[to] if at is None else before[at])
    assert (name in found.state) == any(at is not None for at in sources)
    if None in sources:
        assert any("start fresh" in remark for remark in found.rows[-1].remarks)
