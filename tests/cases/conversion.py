"""Conversion in a process of another YOLOv5."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import yaml

import yolov5_ema
from yolov5_ema.checkpoints import conversion
from yolov5_ema.checkpoints.loading import load_checkpoint, save_checkpoint


def converts_masks_there_and_back(root: Path, folder: Path, cfg: Path) -> None:
    """Write a checkpoint of a segmentation model, convert it there and back, compare; print the number of tensors."""
    torch.set_num_threads(1)
    with yolov5_ema.installed(root) as engine:
        content = {**yaml.safe_load(cfg.read_text()), "nc": 2}
        model = engine.module("models.yolo").SegmentationModel(content).half().eval()
        model.names = {0: "a", 1: "b"}
        save_checkpoint({"model": model, "ema": None, "epoch": 3}, folder / "a.pt", engine=engine)
        conversion.to_safetensors(folder / "a.pt", folder / "b.safetensors", folder / "b.yaml", engine=engine)
        conversion.to_checkpoint(folder / "b.safetensors", folder / "c.pt", engine=engine)
        back = load_checkpoint(folder / "c.pt", engine=engine)["model"]
        assert type(back) is type(model) and back.names == model.names and back.yaml == model.yaml
        ours, theirs = model.state_dict(), back.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        image = torch.rand(1, 3, 64, 64)
        outputs = [copy.deepcopy(one).float()(image) for one in (model, back)]
        assert torch.equal(outputs[0][0], outputs[1][0]) and torch.equal(outputs[0][1], outputs[1][1])
        print("same", len(ours))
