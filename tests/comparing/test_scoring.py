"""How best.pt is scored: the command, and the figures in what it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from yolov5_ema.comparing import scoring
from yolov5_ema.comparing.trainer import Common
from yolov5_ema.errors import UserError

BEST, OUTPUT = Path("c/a/seed0/weights/best.pt"), Path("c/a/seed0/figures.json")


def plan_of(protocol: str, **options: object) -> SimpleNamespace:
    common = Common(**{"epochs": 3, "imgsz": 64, "batch_size": 4, **options})
    trainer = SimpleNamespace(common=common, data=Path("a.yaml"))
    return SimpleNamespace(protocol=protocol, task="test", common=common, objects=12, trainers={"a": trainer})


def test_yolov5_alone_is_scored_by_its_val_in_a_script():
    line = scoring.command(plan_of("yolov5", single_cls=True), "a", BEST, OUTPUT)
    assert line[:2] == ["run", scoring.__file__]
    flags = "--weights c/a/seed0/weights/best.pt --data a.yaml --task test --imgsz 64 --single-cls --batch-size 4"
    assert line[2:] == [*flags.split(), "--device", "", "--output", str(OUTPUT)]


def test_val_chooses_no_batch_size():
    """YOLOv5 from v6.1 on and ultralytics choose that of a training for -1."""
    for protocol in ("yolov5", "ultralytics", "coco"):
        assert "--batch-size" not in scoring.command(plan_of(protocol, batch_size=-1), "a", BEST, OUTPUT)


def test_ultralytics_alone_is_scored_by_its_own_protocol():
    line = " ".join(scoring.command(plan_of("ultralytics", device="cpu"), "a", BEST, OUTPUT))
    assert line.startswith("evaluate --weights c/a/seed0/weights/best.pt --data a.yaml --task test --imgsz 64 ")
    assert "--device cpu --json c/a/seed0/figures.json" in line and line.endswith("--protocol ultralytics")
    assert "--conf-thres" not in line


def test_both_get_the_same_thresholds_and_cocos_protocol():
    line = " ".join(scoring.command(plan_of("coco"), "a", BEST, OUTPUT))
    assert line.endswith("--conf-thres 0.001 --iou-thres 0.7 --protocol yolov5 coco") and "--device" not in line


def test_figures():
    own = {"P": 0.1, "R": 0.2, "mAP50": 0.3, "mAP50-95": 0.4, "per_class": {"x": {"labels": 5}, "y": {"labels": 7}}}
    written = {"yolov5": own, "ultralytics": own, "coco": {"AP50": 0.5, "AP": 0.6}}
    first = {"precision": 0.1, "recall": 0.2}
    assert scoring.figures_in(first, plan_of("yolov5")) == first
    assert scoring.figures_in(written, plan_of("ultralytics")) == {**first, "map50": 0.3, "map50_95": 0.4}
    assert scoring.figures_in(written, plan_of("coco")) == {**first, "map50": 0.5, "map50_95": 0.6}
    del own["per_class"]["y"]
    with pytest.raises(UserError, match="images with 5 objects, but the test split has 12"):
        scoring.figures_in(written, plan_of("coco"))


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


YOLOV5_ROWS = """
    epoch  train/box_loss  metrics/precision  metrics/recall  metrics/mAP_0.5  metrics/mAP_0.5:0.95  disc_mAP_0.5
    0      0.5             0.9                0.9             0.9              0.9                   0.9
    1      0.4             0.1                0.2             0.3              0.2                   0.9
    2      0.3             0.3                0.6             0.4              0.1                   0.9
"""


def test_the_mean_of_the_last_epochs():
    mean = {"precision": 0.2, "recall": 0.4, "map50": 0.35, "map50_95": 0.15}
    rows = rows_of(YOLOV5_ROWS)
    assert scoring.mean_of_last(rows, 2, "yolov5") == pytest.approx(mean)
    # after the training, YOLOv5 writes the last epoch again with the figures of best.pt, if the data are COCO
    assert scoring.mean_of_last([*rows, ["2", *rows[1][1:]]], 2, "yolov5") == pytest.approx(mean)
    named = ["metrics/precision(B)", "metrics/recall(B)", "metrics/mAP50(B)", "metrics/mAP50-95(B)"]
    of_ultralytics = [["epoch", "time", *named], *(row[:6] for row in rows[1:])]
    assert scoring.mean_of_last(of_ultralytics, 2, "ultralytics") == pytest.approx(mean)


@pytest.mark.parametrize(
    ("rows", "last", "message"),
    [
        ([], 1, "results.csv has 0 epochs, and --last is 1"),
        (rows_of(YOLOV5_ROWS), 4, "results.csv has 3 epochs, and --last is 4"),
        ([row[:4] for row in rows_of(YOLOV5_ROWS)], 1, "does not hold the figures of its last epochs"),
        ([*rows_of(YOLOV5_ROWS), ["3", "0.1", "x"]], 1, "does not hold the figures of its last epochs"),
    ],
)
def test_a_table_without_these_figures_is_refused(rows, last, message):
    with pytest.raises(UserError, match=message):
        scoring.mean_of_last(rows, last, "yolov5")


def test_it_is_a_script():
    """Its folder is first on the path then, and must hide no module that YOLOv5 or a library needs."""
    command = [sys.executable, "-m", "yolov5_ema", "run", scoring.__file__, "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "--weights" in done.stdout, done.stderr
    beside = {file.stem for file in Path(scoring.__file__).parent.glob("*.py")}
    assert not beside & sys.stdlib_module_names
