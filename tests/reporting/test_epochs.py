"""``results.csv``: its cells as they are, the best epoch, and files that a kill or a disk has damaged."""

from __future__ import annotations

import math

import pytest
from synthetic_runs import COLUMNS, row, yolov5_csv

from yolov5_ema.errors import UserError
from yolov5_ema.reporting.epochs import read_epochs


@pytest.fixture
def read(tmp_path):
    def write_and_read(content: str | bytes):
        file = tmp_path / "results.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_epochs(file)

    return write_and_read


def test_figures_are_kept_as_they_are_printed(read):
    epochs = read(yolov5_csv([row(0, 0.000048062, 0.1), row(1, 0.123456789, 0.25)]))
    assert epochs.columns == COLUMNS and epochs.numbers == [0, 1]
    assert epochs.texts("mAP50") == ["4.8062e-05", "0.12346"]
    assert epochs.values("mAP50") == [4.8062e-05, 0.12346]
    assert epochs.texts("top-1") is None and not epochs.is_cut_off and epochs.again == ()


@pytest.mark.parametrize(
    ("map50", "map50_95"),
    [
        ("metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
        ("val/bbox_mAP_50", "val/bbox_mAP"),  # v6.0 with --mmdet_tags
        ("metrics/mAP_0.5(B)", "metrics/mAP_0.5:0.95(B)"),  # segment/train.py
        ("metrics/mAP50(B)", "metrics/mAP50-95(B)"),  # ultralytics
    ],
)
def test_columns_by_all_of_their_names(read, map50, map50_95):
    epochs = read(yolov5_csv([(0, 0.5, 0.2), (1, 0.4, 0.3)], ("epoch", map50, map50_95)))
    assert (epochs.values("mAP50"), epochs.values("mAP50-95")) == ([0.5, 0.4], [0.2, 0.3])


def test_the_best_epoch_is_the_one_of_best_pt(read):
    # fitness 0.1 * mAP50 + 0.9 * mAP50-95: 0.23, 0.31, 0.31; YOLOv5 writes best.pt again if it is equal
    assert read(yolov5_csv([row(0, 0.5, 0.2), row(1, 0.4, 0.3), row(2, 0.4, 0.3)])).best == 2
    nan = float("nan")
    assert read(yolov5_csv([row(0, nan, nan), row(1, 0.1, 0.1)])).best == 1
    assert read(yolov5_csv([row(0, nan, nan)])).best is None
    assert read(yolov5_csv([])).best is None
    classified = "epoch,train/loss,val/loss,val/top1,val/top5,lr\n1,2,2,0.3,0.9,1\n2,1,1,0.5,0.8,1\n3,1,1,0.4,1,1\n"
    assert read(classified).best == 1


def of_ultralytics(rows: list[tuple[float, ...]], more: str = "") -> str:
    head = f"epoch,time,metrics/mAP50(B),metrics/mAP50-95(B){more},train/box_loss,train/dfl_loss,val/box_loss"
    return "\n".join([head, *(",".join(map(str, (*line, 0.3, 0.2, 0.1))) for line in rows), ""])


def test_the_best_epoch_by_the_rules_of_ultralytics(read):
    """8.4 chooses by mAP50-95 alone, to which that of masks or keypoints is added; the last of equal ones."""
    assert read(of_ultralytics([(1, 9.5, 0.9, 0.30), (2, 9.5, 0.1, 0.31), (3, 9.5, 0.1, 0.31)])).best == 2
    masks = of_ultralytics([(1, 9.5, 0.5, 0.30, 0.2), (2, 9.5, 0.5, 0.20, 0.4)], ",metrics/mAP50-95(M)")
    assert read(masks).best == 1
    nan = float("nan")
    assert read(of_ultralytics([(1, 9.5, 0.9, nan), (2, 9.5, 0.1, 0.1)])).best == 1
    classified = "epoch,time,train/loss,metrics/accuracy_top1,metrics/accuracy_top5,val/loss\n1,9,2,0.5,0.8,1\n"
    classified = read(classified + "2,9,2,0.6,0.6,1\n3,9,2,0.4,0.7,1\n")
    assert classified.best == 0 and classified.texts("top-1") == ["0.5", "0.6", "0.4"]


def test_losses_without_a_short_name(read):
    epochs = read(of_ultralytics([(1, 9.5, 0.9, 0.3), (2, 9.5, 0.9, 0.3)]).replace("0.2", "nan"))
    assert epochs.other_losses == ["train/dfl_loss"] and epochs.texts("train/dfl_loss") == ["nan", "nan"]
    assert epochs.texts("train box loss") == ["0.3", "0.3"] and epochs.diverged_at == 1


def test_epochs_that_were_not_validated_have_no_figures(read):
    """With --noval YOLOv5 writes zeros; a mAP of 0 after a validation is shown."""
    names = (
        "epoch",
        "train/box_loss",
        "metrics/mAP_0.5",
        "metrics/mAP_0.5:0.95",
        "val/box_loss",
        "val/obj_loss",
    )
    epochs = read(yolov5_csv([(0, 0.5, 0, 0, 0, 0), (1, 0.4, 0, 0, 0.2, 0), (2, 0.3, 0.7, 0.4, 0.1, 0.1)], names))
    assert epochs.is_validated == [False, True, True] and epochs.best == 2
    assert math.isnan(epochs.values("mAP50")[0]) and epochs.values("mAP50")[1:] == [0, 0.7]
    assert epochs.values("train box loss") == [0.5, 0.4, 0.3]
    assert read(yolov5_csv([(0, 0.5, 0, 0, 0, 0)], names)).best is None


def test_class_names_with_commas_do_not_shift_anything(read):
    """The PyPI package writes one column for each class, with its name unquoted."""
    names = ("metrics/a,b_mAP_50", "metrics/c_mAP_50")
    epochs = read(yolov5_csv([[*row(0, 0.5, 0.2), 0.7, 0.8]], (*COLUMNS, *names)))
    assert epochs.columns == COLUMNS and len(epochs.rows[0]) == len(COLUMNS)


def test_a_training_killed_in_the_middle_of_a_line(read):
    whole = yolov5_csv([row(0, 0.1, 0.1), row(1, 0.2, 0.1)])
    epochs = read(whole[:-30])
    assert epochs.is_cut_off and epochs.numbers == [0]


def test_a_resumed_training_counts_its_last_word(read):
    text = yolov5_csv([row(0, 0.1, 0.1), row(1, 0.2, 0.1), row(1, 0.3, 0.1), row(2, 0.4, 0.1)])
    epochs = read(text)
    assert epochs.numbers == [0, 1, 2] and epochs.again == (1,)
    assert epochs.texts("mAP50") == ["0.1", "0.3", "0.4"]


def test_where_a_training_diverged(read):
    nan = float("nan")
    assert read(yolov5_csv([row(0, 0.1, 0.1), row(1, 0, 0, nan), row(2, 0, 0, nan)])).diverged_at == 1
    assert read(yolov5_csv([row(0, 0.1, 0.1)])).diverged_at is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epoch,train/box_loss\n0,\xff\xfe\n", r"results\.csv is not UTF-8 text \(byte 23\)"),
        (b"\x00\x01\x02", "does not begin with 'epoch'"),
        (b"", "does not begin with 'epoch'"),
        (b"epoch,a,b\n0,1,2\n1,1\n2,1,2\n", r"results\.csv, line 3: 2 cells instead of 3"),
        (b"epoch,a\n0,1\n1,abc\n", r"line 3: 'abc' is not a number"),
        (b"epoch,a\n0.5,1\n", r"line 2: '0.5' is not an epoch"),
    ],
)
def test_damaged_files_are_named(read, content, message):
    with pytest.raises(UserError, match=message):
        read(content)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"results\.csv cannot be read: No such file"):
        read_epochs(tmp_path / "results.csv")
