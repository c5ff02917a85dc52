"""Trainings with the package ultralytics, and its own use of what they wrote."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch


def trains(model: str, data: str, epochs: int, imgsz: int, until: int) -> None:
    """Train a model, or resume a training, with blocks; print the smallest bias of each.

    Args:
        model: a YAML, or a checkpoint to resume from.
        data: the data YAML.
        epochs: of the training.
        imgsz: size of the images.
        until: the epoch, counted from 1, after which the training is interrupted; 0: never.
    """
    import yolov5_ema

    yolov5_ema.install("ultralytics")
    from ultralytics import YOLO

    def interrupt(trainer: Any) -> None:
        if trainer.epoch + 1 == until:
            raise KeyboardInterrupt

    yolo = YOLO(model)
    yolo.add_callback("on_model_save", interrupt)
    try:
        if model.endswith(".pt"):
            yolo.train(resume=True)
        else:
            yolo.train(
                data=data, epochs=epochs, imgsz=imgsz, batch=4, workers=1, device="cpu", plots=False,
                project=os.getcwd(), name="run", warmup_epochs=0, optimizer="SGD", lr0=0.01, nbs=4,
            )  # fmt: skip
        trained: Any = yolo
        print("trained", [float(trained.trainer.model.model[row].gn.bias.abs().min()) for row in (7, 10)])
    except KeyboardInterrupt:
        print("interrupted")


def predicts(weights: str, image: str) -> None:
    """Print the rows with EMA, and write the boxes to boxes.pt, all without the adapter."""
    from ultralytics import YOLO

    yolo: Any = YOLO(weights)
    print([index for index, row in enumerate(yolo.model.model) if type(row).__name__ == "EMA"])
    boxes = yolo.predict(image, imgsz=32, conf=0.0001, device="cpu", verbose=False)[0].boxes.data
    torch.save(boxes, "boxes.pt")
    assert not sys.modules["yolov5_ema"].is_installed("ultralytics")


def tunes_with_ray(model: str, data: str) -> None:
    """Run one trial of Ray Tune, and print the number of its errors and whether it was evaluated."""
    import yolov5_ema

    yolov5_ema.install("ultralytics")
    from ray import tune
    from ultralytics import YOLO

    found: Any = YOLO(model).tune(
        use_ray=True, iterations=1, search_alg="random", space={"lr0": tune.uniform(1e-4, 1e-2)}, data=data, epochs=1,
        imgsz=64, batch=4, device="cpu", workers=0, plots=False, project=os.getcwd(),
    )  # fmt: skip
    print("errors", found.num_errors, "metrics/mAP50(B)" in found[0].metrics)
