"""``yolov5-ema report``: from runs to one HTML file; what is evaluated, what is kept, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import NAMES, randomise, run_cli
from synthetic_runs import Page, write_classification, write_comparison, write_training, write_ultralytics

from yolov5_ema.cli.main import main


def save_untrained(file: Path) -> None:
    """The best.pt of a yolov5n with EMA and three classes, with random weights."""

    from yolov5_ema.checkpoints.loading import save_checkpoint
    from yolov5_ema.engine import shim
    from yolov5_ema.resources import find_shipped

    engine = shim.install()
    yolo = engine.module("models.yolo")
    model = yolo.Model(str(find_shipped("yolov5n-ema.yaml")), ch=3, nc=len(NAMES))
    model.names = list(NAMES)
    randomise(model.model[-1])  # the biases of Detect make it find nothing
    file.parent.mkdir(parents=True)
    save_checkpoint({"epoch": -1, "model": model.half(), "optimizer": None}, str(file), engine=engine)


def page_of(file: Path | str) -> Page:
    return Page(Path(file).read_text(encoding="utf-8"))


@pytest.mark.slow
def test_an_evaluation_is_made_once(own_folder, tiny_set, capsys):
    run = write_training(own_folder / "runs/train/exp", data=str(tiny_set), seed=1)
    save_untrained(run / "weights/best.pt")
    plain = ["report", str(run), "--device", "cpu"]
    flags = [*plain, "--samples", "2"]
    assert main(flags) == 0 and "Evaluating" not in capsys.readouterr().out
    assert "--evaluate evaluates best.pt on the data set" in page_of(run / "report.html").words
    assert not (run / "report-val.json").exists()
    assert main([*flags, "--evaluate"]) == 0
    printed = capsys.readouterr().out
    assert f"best.pt on val of {tiny_set}" in printed and "report.html (" in printed
    found = page_of(run / "report.html")
    assert not found.unclosed
    kept = json.loads((run / "report-val.json").read_text())
    assert (kept["images"], kept["objects"], kept["names"]) == (4, 12, list(NAMES))
    table = found.tables["exp, best.pt on val: 4 images, 12 objects"]
    assert [line[:2] for line in table[1:]] == [[name, "4"] for name in NAMES]
    assert [float(line[4]) for line in table[1:]] == [
        pytest.approx(kept["per_class"][name]["AP50"], abs=5e-5) for name in NAMES
    ]
    assert len(found.images) == 2
    # the parameters of the shipped YAML with three classes, and the blocks among its rows
    cost = found.tables["What each model costs"][1]
    assert cost[:3] == ["yolov5n-ema", "EMA", "1,768,824"] and float(cost[3]) > 0
    rows = found.tables["Rows of yolov5n-ema"]
    assert [line[1] for line in rows[1:] if "(block)" in line[1]] == ["EMA (block)"] * 2
    assert sum(int(line[7].replace(",", "")) for line in rows[1:]) == 1_768_824

    data = ["--data", str(tiny_set)]
    assert main([*flags, *data]) == 0 and "Evaluating" not in capsys.readouterr().out
    assert main([*plain, "-o", "again.html"]) == 0
    assert page_of("again.html").tables["exp, best.pt on val: 4 images, 12 objects"] == table
    assert page_of("again.html").images == found.images
    # a second one works too
    assert main([*flags, *data, "--imgsz", "96"]) == 0 and "Evaluating" in capsys.readouterr().out


def test_without_the_data_set_the_page_says_so(own_folder, capsys):
    run = write_training(own_folder / "exp")
    (run / "weights").mkdir()
    assert main(["report", str(run)]) == 0
    assert "exp: not measured: there is no weights/best.pt" in page_of(run / "report.html").words
    assert capsys.readouterr().out.startswith(f"{run / 'report.html'} (")
    assert main(["report", str(run), "--no-evaluate", "--title", "A <b>title</b>"]) == 0
    assert "A <b>title</b>" in page_of(run / "report.html").words


def test_several_runs_make_one_page_here(own_folder):
    for name, cfg in (("a", "base"), ("b", "ema")):
        write_training(own_folder / name, cfg=f"{cfg}.yaml")
    assert main(["report", "a", "b", "--baseline", "ema"]) == 0
    found = page_of("report.html")
    assert found.tables["Difference to ema, with its 95 % interval"][1][0] == "base"
    assert "One seed per model shows no spread" in found.words


def test_comparisons_and_classifiers(own_folder):
    write_comparison(own_folder / "first")
    write_classification(own_folder / "c")
    assert main(["report", "first", "--no-evaluate"]) == 0
    assert "ema against plain, mAP50: +0.0200" in page_of("first/report.html").words
    assert main(["report", "first", "c", "--no-evaluate", "-o", "new/both.html"]) == 0
    assert {"Top-1 accuracy by class, best.pt", "Difference to plain, with its 95 % interval"} <= set(
        page_of("new/both.html").tables
    )


def test_only_a_report_is_written_over(own_folder, capsys):
    run = write_training(own_folder / "exp")
    (own_folder / "mine.html").write_text("my own")
    assert main(["report", str(run), "-o", "mine.html"]) == 2
    assert "mine.html is there already; --force replaces it, -o names another" in capsys.readouterr().err
    assert (own_folder / "mine.html").read_text() == "my own"
    assert main(["report", str(run), "-o", "mine.html", "--force"]) == 0
    assert main(["report", str(run), "-o", "mine.html"]) == 0
    assert main(["report", str(run), "-o", str(run)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("nowhere",), "nowhere: no such folder or file"),
        ((".",), r"\. is not a run: looked in it for opt\.yaml"),
        ((".", "--samples", "99"), "--samples must be 0 to 24, not 99"),
        ((".", "--imgsz", "1"), "--imgsz 1: must be the side of an image in pixels"),
        ((".", "--evaluate", "--no-evaluate"), "cannot be used together"),
        ((".", "--data", "a.yaml", "--no-evaluate"), "cannot be used with --no-evaluate"),
        ((".", "--imgsz", "64"), "it needs --evaluate or --data"),
    ],
)
def test_what_is_refused(refused, flags, message):
    assert re.search(message, refused("report", *flags))


def test_what_was_asked_for_and_cannot_be_is_refused(refused, own_folder):
    run = write_training(own_folder / "exp")
    assert "there is no weights/best.pt" in refused("report", run, "--evaluate")
    (run / "results.csv").write_bytes(b"\xff\xfe")
    assert "results.csv is not UTF-8 text" in refused("report", run)
    (run / "results.csv").unlink()
    (run / "weights").mkdir()
    (run / "weights/best.pt").write_bytes(b"PK\x03\x04torn")
    assert "best.pt" in refused("report", run)
    write_training(own_folder / "b"), write_training(own_folder / "c")
    assert "--baseline x is not one of the models" in refused("report", "b", "c", "--baseline", "x")


@pytest.fixture
def run_of_ultralytics(small_yolo, own_folder) -> Path:
    run = write_ultralytics(own_folder / "exp")
    (run / "weights").mkdir()
    shutil.copy(small_yolo, run / "weights/best.pt")
    return run


def test_a_run_of_ultralytics(ultralytics, run_of_ultralytics, small_yolo, tiny_set, own_folder):
    """The figures are those of its own val; the cost is that of the model."""
    run = run_of_ultralytics
    assert main(["report", str(run), "--data", str(tiny_set), "--samples", "1", "--device", "cpu"]) == 0
    kept = json.loads((run / "report-val.json").read_text())
    options = {"imgsz": 64, "batch": 4, "device": "cpu", "workers": 0, "plots": False}
    own = ultralytics.YOLO(small_yolo).val(data=str(tiny_set), project=str(own_folder / "own"), **options).box
    expected = {"P": own.mp, "R": own.mr, "mAP50": own.map50, "mAP50-95": own.map}
    rules = ".".join(ultralytics.__version__.split(".")[:2])
    assert kept["metrics"] == pytest.approx(expected, abs=1e-6) and kept["settings"]["rules"] == rules
    found = page_of(run / "report.html")
    assert not found.unclosed and len(found.images) == 1
    release = {"8.3": "up to 8.3", "8.4": "8.4"}[rules]
    assert f"By the rules of ultralytics' val ({release}), at 64 pixels" in found.words
    model = ultralytics.YOLO(small_yolo)  # val has folded its BatchNorms
    parameters = sum(tensor.numel() for tensor in model.model.parameters())
    assert found.tables["What each model costs"][1][:3] == ["yolo11n-ema", "EMA", f"{parameters:,}"]
    assert "exp: results.csv; epoch 2, marked, was the best" in found.tables


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchscript", "onnx", "openvino"])
def test_an_exported_model(ultralytics, small_yolo, tiny_set, own_folder, form, capsys):
    """It is run at its own size, and its page is written next to it."""
    pytest.importorskip({"onnx": "onnxruntime"}.get(form, "torch" if form == "torchscript" else form))
    shutil.copy(small_yolo, "best.pt")
    file = Path(ultralytics.YOLO("best.pt").export(format=form, imgsz=64, device="cpu", verbose=False))
    assert main(["report", str(file), "--data", str(tiny_set), "--imgsz", "128", "--device", "cpu"]) == 0
    kept = json.loads(Path(f"{file.name}-report-val.json").read_text())
    assert kept["settings"]["imgsz"] == 64
    own = ultralytics.YOLO(file).val(data=str(tiny_set), device="cpu", plots=False, project=str(own_folder / "own"))
    assert kept["metrics"]["mAP50"] == pytest.approx(own.box.map50, abs=1e-6) and own.box.map50 > 0
    found = page_of(f"{file.name}-report.html")
    assert f"{file.name} on val: 4 images, 12 objects" in found.tables and "best.pt" not in found.words


@pytest.mark.slow
def test_a_real_training(trained, tmp_path):
    """The page's figures are those of results.csv and those that evaluate prints for the same best.pt."""
    run = trained.parent.parent
    done = run_cli("report", run, "--evaluate", "-o", tmp_path / "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = page_of(tmp_path / "page.html")
    with (run / "results.csv").open() as stream:
        rows = [[cell.strip() for cell in line] for line in csv.reader(stream)]
    caption = next(name for name in found.tables if "results.csv" in name)
    width = rows[0].index("x/lr2") + 1
    assert found.tables[caption] == [line[:width] for line in rows]
    options = (run / "opt.yaml").read_text()
    data = re.search(r"^data: (.*)$", options, re.M)[1]
    done = run_cli(
        *(
            "evaluate",
            "--data",
            data,
            "--weights",
            trained,
            "--img",
            64,
            "--batch-size",
            4,
            "--protocol",
            "yolov5",
        ),
        *("--max-det", 300, "--noplots", "--json", tmp_path / "figures.json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())["yolov5"]
    kept = json.loads((run / "report-val.json").read_text())
    assert kept["metrics"] == {name: pytest.approx(figures[name]) for name in kept["metrics"]}
    assert f"{figures['mAP50']:.4f}" in found.words
