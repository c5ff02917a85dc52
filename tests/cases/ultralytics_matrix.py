"""One model of ultralytics through the commands, in two processes; used by `test_ultralytics_matrix`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cases.ultralytics_models import spread_detections
from yolov5_ema.cli.main import main

BEST = "runs/step/weights/best.pt"
FACTS = "facts.json"
SIDES = {"rtdetr-l.yaml": 160}  # its decoder chooses 300 places; at 64 pixels there are 84


def use(base: str, block: str, data: Path) -> None:
    """Build the model with a block, train it for a step, then ``val``, ``predict`` and ``export`` with it.

    Writes what was found to `FACTS`: parameters of the blocks, figures of ultralytics' own ``val`` on labels that fit
    the detections, and the detections in the first image.
    """
    side = SIDES.get(base, 64)
    common = ("device=cpu", "workers=0", f"imgsz={side}")
    cfg = base.replace(".yaml", "-block.yaml")  # ultralytics knows an RT-DETR by its name
    run("cfg", "--base", base, "--block", block, "--at", "backbone", "-o", cfg)
    run(
        "train",
        f"model={cfg}",
        f"data={data}",
        "epochs=1",
        "plots=False",
        "batch=8",
        f"project={Path.cwd()}",
        "name=runs/step",
        *common,
    )
    run("val", f"model={BEST}", f"data={data}", "batch=4", "plots=False", *common)
    yolo = loaded()
    spread_detections(yolo.model)
    yolo.save(BEST)
    yolo = loaded()
    image = next((data.parent / "images/val").glob("*.jpg"))
    run("predict", "--weights", BEST, "--source", image, "--img", side, "--conf-thres", 0.0001, "-o", "found.json")
    labelled = label_what_it_finds(yolo, data, side)
    found = yolo.val(data=str(labelled), imgsz=side, batch=4, device="cpu", workers=0, plots=False, max_det=300)
    run("export", f"model={BEST}", "format=onnx", f"imgsz={side}", "device=cpu")
    blocks = [module for module in yolo.model.modules() if type(module).__module__.startswith("yolov5_ema.blocks")]
    box = found.box
    facts = {
        "blocks": [type(module).__name__ for module in blocks if type(module).__name__ == block],
        "figures": [float(value) for value in (box.mp, box.mr, box.map50, box.map)],
        "rows": rows_of(yolo, image, side),
    }
    Path(FACTS).write_text(json.dumps(facts))


def use_again(side: int, image: Path) -> None:
    """In a process of its own: ``evaluate``, and what the checkpoint and the exported model give. Writes to `FACTS`."""
    facts = json.loads(Path(FACTS).read_text())
    options = ("--img", side, "--batch-size", 4, "--workers", 0, "--no-plots", "--max-det", 300)
    run("evaluate", "--weights", BEST, "--data", "labelled/labelled.yaml", *options, "--json", "evaluated.json")
    yolo = loaded()
    facts["rows_again"] = rows_of(yolo, image, side)
    batch = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    facts["export_differs_by"] = export_differs_by(yolo.model.float().eval(), batch)
    Path(FACTS).write_text(json.dumps(facts))


def run(*line: object) -> None:
    """Run a command of yolov5-ema; it must succeed."""
    code = main([str(word) for word in line])
    assert code == 0, f"{line} ended with {code}"


def loaded() -> Any:
    """The trained model."""
    import yolov5_ema

    yolov5_ema.install("ultralytics")
    from ultralytics import YOLO

    return YOLO(BEST)


def rows_of(yolo: Any, image: Path, side: int) -> list[list[float]]:
    """The ten most confident detections in an image: x1, y1, x2, y2 in pixels, confidence, class."""
    (result,) = yolo.predict(str(image), imgsz=side, conf=0.0001, max_det=10, device="cpu", verbose=False)
    found: list[list[float]] = result.boxes.data.tolist()
    return found


def label_what_it_finds(yolo: Any, data: Path, side: int) -> Path:
    """A data set of the val images, labelled with what the model finds, some boxes shrunk: its mAP is not 0 or 1."""
    folder = Path("labelled").resolve()
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for image in sorted((data.parent / "images/val").glob("*.jpg")):
        (folder / "images" / image.name).write_bytes(image.read_bytes())
        (result,) = yolo.predict(str(image), imgsz=side, conf=0.001, max_det=8, device="cpu", verbose=False)
        boxes, classes = result.boxes.xywhn.numpy().astype(float), result.boxes.cls.numpy().astype(int)
        boxes[:, 2:] *= np.where(np.arange(len(boxes)) % 2, 0.9, 0.8)[:, None]
        rows = [f"{cls} {' '.join(f'{value:.6f}' for value in box)}" for cls, box in zip(classes, boxes)]
        (folder / "labels" / image.with_suffix(".txt").name).write_text("\n".join(rows) + "\n")
    yaml_file = folder / "labelled.yaml"
    yaml_file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [disc, box, cross]\n")
    return yaml_file


def export_differs_by(model: Any, batch: torch.Tensor) -> float:
    """The largest difference between the outputs of the checkpoint and of the ONNX file, in pixels or confidence."""
    import onnxruntime

    session = onnxruntime.InferenceSession(Path(BEST).with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    exported = session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0]
    head = model.model[-1]
    head.export = True
    with torch.no_grad():
        expected = model(batch)
    while isinstance(expected, (list, tuple)):
        expected = expected[0]
    assert exported.shape == expected.shape, (exported.shape, expected.shape)
    difference = np.abs(exported - expected.numpy())
    if exported.shape[1] != 300:
        return float(difference.max())
    # rows of detections, of which equally confident ones may change places
    apart = np.abs(exported[0][:, None] - expected.numpy()[0][None]).max(axis=2)  # (300, 300)
    return float(max(apart.min(axis=0).max(), apart.min(axis=1).max()))
