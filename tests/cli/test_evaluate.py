"""`evaluate` and `submit` as users type them, with a real detector and with existing predictions."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from conftest import laid_aside, run_cli, small_cfg, write_tiny_set
from PIL import Image

import yolov5_ema
from yolov5_ema.cli.main import main
from yolov5_ema.data.visdrone_format import CLASSES

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def drone(tmp_path):
    """Annotations, sizes and detections of three images in VisDrone's format; two of four cars are found."""
    for name in ("annotations", "detections"):
        (tmp_path / name).mkdir()
    for number in range(3):
        cars = "".join(f"{10 + 60 * at},{10 * number},30,20,1,4,0,0\n" for at in range(number + 1))
        (tmp_path / f"annotations/im{number}.txt").write_text(cars + "100,100,80,80,0,0,0,0\n")
        found = f"10,{10 * number},30,20,0.9,4,-1,-1\n120,120,20,20,0.8,4,-1,-1\n"
        (tmp_path / f"detections/im{number}.txt").write_text(found)
    sizes = {f"im{number}": {"width": 400, "height": 300} for number in range(3)}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    return ["--annotations", "annotations", "--image-sizes", "sizes.json", "--predictions", "detections"]


def evaluate(*flags: object) -> int:
    return main(["evaluate", *map(str, flags)])


def test_visdrone_without_weights(drone, capsys):
    assert evaluate("--protocol", "visdrone", *drone, "--json", "out.json", "--nosave") == 0
    content = json.loads(Path("out.json").read_text())
    figures = content["visdrone"]
    assert list(content) == ["visdrone"] and not Path("runs").exists()
    # 3 of 6 cars are found, without a false detection: those in the ignored region do not count
    for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100", "AR500"):
        assert figures[name] == pytest.approx(50), name
    assert set(figures["per_class"]) == set(CLASSES) and figures["per_class"]["car"]["AP"] == pytest.approx(50)
    assert "3 images, 6 objects, 6 detections" in capsys.readouterr().out


def test_json_is_printed_instead_of_tables(drone, capsys):
    assert evaluate("--protocol", "visdrone", *drone, "--json", "out.json", "--no-save") == 0
    assert "3 images, 6 objects, 6 detections" in capsys.readouterr().out
    assert evaluate("--protocol", "visdrone", *drone, "--no-save", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path("out.json").read_text())
    assert evaluate("--json", "--protocol", "visdrone", *drone, "--no-plots") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["visdrone"]["AP"] == pytest.approx(50) and "Results saved to runs/evaluate/exp" in err
    assert sorted(path.name for path in Path("runs/evaluate/exp").iterdir()) == [
        "evaluation.csv",
        "evaluation.json",
    ]


def test_three_protocols_side_by_side(drone, capsys):
    assert evaluate(*drone, "--by-size", "--mean", "classes") == 0
    out = capsys.readouterr().out
    assert ["%", "yolov5", "coco", "visdrone", "visdrone,", "mean", "of", "classes"] in [
        x.split() for x in out.splitlines()
    ]
    made = {path.name for path in Path("runs/evaluate/exp").iterdir()}
    assert made == {"evaluation.json", "evaluation.csv", "PR_curves.png", "confusion_matrix.png"}
    content = json.loads(Path("runs/evaluate/exp/evaluation.json").read_text())
    assert list(content) == ["yolov5", "coco", "visdrone"]
    assert (
        content["coco"]["AP50"] == pytest.approx(51 / 101) and content["coco"]["by_size"]["small"]["AP50"] is not None
    )
    # YOLOv5 has no ignored regions: from recall 0.5 on, its curve begins at a precision of 3 / 6
    assert content["yolov5"]["mAP50"] == pytest.approx(0.5 + 0.5 * 0.5 / 2 - 0.0025)
    with open("runs/evaluate/exp/evaluation.csv") as stream:
        assert {row["protocol"] for row in csv.DictReader(stream)} == {"yolov5", "coco", "visdrone"}
    assert cv2.imread("runs/evaluate/exp/PR_curves.png").std() > 10
    assert evaluate(*drone, "--noplots") == 0 and not Path("runs/evaluate/exp2/PR_curves.png").exists()


def test_other_cuts_of_coco(drone):
    assert evaluate("--protocol", "coco", *drone, "--coco-max-dets", 1, 500, "--json", "o.json", "--nosave") == 0
    content = json.loads(Path("o.json").read_text())["coco"]
    assert content["AR500"] == content["AR1"] == pytest.approx(0.5) and "AR100" not in content


def test_category_ids_of_a_json_hold_for_every_protocol(tmp_path):
    """COCO's own ids, which labels do not have: bus is 6 there and class 1 here."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (100, 100)).save("images/7.jpg")
    Path("labels/7.txt").write_text("1 0.2 0.2 0.2 0.2\n")
    categories = [{"id": 3, "name": "car"}, {"id": 6, "name": "bus"}]
    box = {"image_id": 7, "category_id": 6, "bbox": [10, 10, 20, 20]}
    image = {"id": 7, "file_name": "7.jpg", "width": 100, "height": 100}
    truth = {
        "images": [image],
        "annotations": [{**box, "id": 1, "area": 400, "iscrowd": 0}],
        "categories": categories,
    }
    Path("instances.json").write_text(json.dumps(truth))
    Path("results.json").write_text(json.dumps([{**box, "score": 0.9}]))
    content = {"path": str(tmp_path), "val": "images", "nc": 2, "names": ["car", "bus"]}
    Path("two.yaml").write_text(yaml.safe_dump({**content, "coco_annotations": {"val": "instances.json"}}))
    for protocol, metric in (("yolov5", "mAP50"), ("coco", "AP50"), ("visdrone", "AP50")):
        flags = ("--data", "two.yaml", "--predictions", "results.json", "--json", "o.json", "--nosave")
        assert evaluate("--protocol", protocol, *flags) == 0
        figures = json.loads(Path("o.json").read_text())[protocol]
        assert figures[metric] / (100 if figures["unit"] == "percent" else 1) == pytest.approx(1, abs=0.006)


# --- with a detector ---


CONFIDENCE = 1e-5  # low enough for more than 300 detections in each image


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The data YAML and best.pt of a detector that has learned something: its mAP50 is about 0.4."""
    cwd = tmp_path_factory.mktemp("learned")
    data = write_tiny_set(cwd / "set", train=24, val=12)
    (cwd / "small.yaml").write_text(small_cfg())
    done = run_cli(
        *("train", "--data", data, "--cfg", "small.yaml", "--weights", "", "--hyp", "hyp.demo.yaml"),
        # with so few steps, a single rounding decides what is learned, so sums need the same order everywhere
        *("--img", 96, "--batch", 4, "--epochs", 12, "--workers", 0, "--noval", "--nosave", "--cache"),
        env={"OMP_NUM_THREADS": "1", "YOLOV5_EMA_IMPLEMENTATION": "reference"},
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return data, cwd / "runs/train/exp/weights/best.pt"


@pytest.fixture(scope="module")
def by_weights(learned, tmp_path_factory):
    """The folder of an evaluation of the tiny detector."""
    cwd = tmp_path_factory.mktemp("evaluated")
    data, weights = learned
    flags = ("--img", 96, "--batch", 4, "--conf-thres", CONFIDENCE)
    done = run_cli("evaluate", "--data", data, "--weights", weights, *flags, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"12 images, 36 objects, ([\d,]+) detections", done.stdout)
    # --max-det is 500 by default
    assert found and int(found[1].replace(",", "")) > 12 * 300
    return cwd / "runs/evaluate/exp"


@pytest.fixture(scope="module")
def of_val(learned, tmp_path_factory):
    """The figures that val.run returns, and its run folder with predictions as JSON and as text."""
    folder = tmp_path_factory.mktemp("val")
    with yolov5_ema.installed() as engine:
        val = engine.module("val")
        data, weights = map(str, learned)
        options = {"data": data, "weights": weights, "imgsz": 96, "batch_size": 4, "half": False}
        options["conf_thres"] = CONFIDENCE
        options.update(project=str(folder), save_json=True, save_txt=True, save_conf=True, plots=False)
        figures = val.run(**options)[0][:4]
    return dict(zip(("P", "R", "mAP50", "mAP50-95"), map(float, figures))), folder / "exp"


def test_yolov5_protocol_gives_the_figures_of_val(by_weights, of_val):
    """Although there are up to 500 detections in each image, not val's 300."""
    assert of_val[0]["mAP50"] > 0.01
    ours = json.loads((by_weights / "evaluation.json").read_text())["yolov5"]
    assert {name: ours[name] for name in of_val[0]} == pytest.approx(of_val[0], abs=1e-6)


RELEASES = ["6.0.7", *(pytest.param(version, marks=pytest.mark.slow) for version in ("6.1.9", "6.2.3", "7.0.14"))]


@pytest.mark.parametrize("version", RELEASES)
def test_another_runtime_gives_the_same_figures(version, learned, by_weights, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "cache").mkdir(mode=0o700)
    flags = ("--data", learned[0], "--weights", learned[1], "--img", 96, "--batch", 4, "--conf-thres", CONFIDENCE)
    flags = (*flags, "--noplots", *(("--yolov5", laid_aside(version)) if version != "6.0.7" else ()))
    # plain operations, so that no kernels are compiled into the new cache folder
    environment = {"YOLOV5_EMA_CACHE": str(tmp_path / "cache"), "YOLOV5_EMA_IMPLEMENTATION": "exact"}
    done = run_cli("evaluate", *flags, "--runtime", "onnx", "--name", "onnx", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "yolov5-ema: onnx runs the model" in done.stdout
    expected = by_weights
    if version != "6.0.7":
        assert run_cli("evaluate", *flags, "--name", "torch", cwd=tmp_path).returncode == 0
        expected = tmp_path / "runs/evaluate/torch"
    expected = json.loads((expected / "evaluation.json").read_text())
    found = json.loads((tmp_path / "runs/evaluate/onnx/evaluation.json").read_text())
    assert expected["coco"]["AP"] > 0.01 and found.keys() == expected.keys()
    for protocol, unit in {"yolov5": 1, "coco": 1, "visdrone": 100}.items():
        aps = [name for name in expected[protocol] if "AP" in name]
        assert {name: found[protocol][name] for name in aps} == pytest.approx(
            {name: expected[protocol][name] for name in aps}, abs=1e-4 * unit
        )


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--runtime", "openvino", "--half"), ("--runtime", "onnx", "--int8")])
def test_lower_precision_says_what_it_costs(flags, learned, by_weights, tmp_path):
    pytest.importorskip({"onnx": "onnxruntime"}.get(flags[1], flags[1]))
    common = ("--data", learned[0], "--weights", learned[1], "--img", 96, "--batch", 4, "--conf-thres", CONFIDENCE)
    done = run_cli("evaluate", *common, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    figures = {
        file.parent: json.loads((file / "evaluation.json").read_text())
        for file in (tmp_path / "runs/evaluate/exp", by_weights)
    }
    low, exact = figures.values()
    (row,) = re.findall(r"minus float32.*\nAP50:95 +(\S+) +(\S+) +(\S+)", done.stdout)
    expected = [100 * (low["yolov5"]["mAP50-95"] - exact["yolov5"]["mAP50-95"])]
    expected += [100 * (low["coco"]["AP"] - exact["coco"]["AP"]), low["visdrone"]["AP"] - exact["visdrone"]["AP"]]
    assert [float(cell) for cell in row] == pytest.approx(expected, abs=0.02)
    assert sorted(path.name for path in (tmp_path / "runs/evaluate").iterdir()) == ["exp"]


@pytest.mark.parametrize("place", ["best_predictions.json", "labels", "."])
def test_predictions_that_val_saved_give_its_figures(place, of_val, learned):
    figures, folder = of_val
    assert evaluate("--data", learned[0], "--predictions", folder / place, "--json", "o.json", "--nosave") == 0
    ours = json.loads(Path("o.json").read_text())["yolov5"]
    # the files hold 5 or 6 digits; that hardly changes mAP, but changes P and R at one confidence
    assert ours["mAP50"] == pytest.approx(figures["mAP50"], abs=2e-3)
    assert ours["mAP50-95"] == pytest.approx(figures["mAP50-95"], abs=2e-3)


def test_windows_and_single_class(learned, tmp_path):
    data, weights = learned
    done = run_cli(
        *("evaluate", "--data", data, "--weights", weights, "--img", 64, "--batch", 4, "--single-cls"),
        *("--slice", 64, "--overlap", 0.25, "--noplots"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content = json.loads((tmp_path / "runs/evaluate/exp/evaluation.json").read_text())
    assert list(content["coco"]["per_class"]) == ["object"]


ODD_ROWS = {
    "pixels": "0 48 40 9 9\n",
    "beyond 1": "0 0.5 0.5 0.2 1.0025\n",
    "negative": "0 0.5 0.5 -0.1 0.2\n",
    "four columns": "0 0.5 0.5 0.2\n",
}


@pytest.fixture
def odd_set(learned, tmp_path):
    """12 validation images: 4 with a bad label row, one with a byte order mark, one cut off; two have the same name."""
    folder = tmp_path / "odd"
    shutil.copytree(learned[0].parent, folder, ignore=shutil.ignore_patterns("*.cache", "train", "test"))
    labels, images = sorted((folder / "labels/val").iterdir()), sorted((folder / "images/val").iterdir())
    for label, row in zip(labels, ODD_ROWS.values()):
        label.write_text(label.read_text() + row)
    labels[4].write_text("\ufeff" + labels[4].read_text(), encoding="utf-8")
    images[5].write_bytes(images[5].read_bytes()[:1500])
    for kind, file in (("images", images[6]), ("labels", labels[6])):
        (folder / kind / "val/again").mkdir()
        file.rename(folder / kind / "val/again" / f"{images[7].stem}{file.suffix}")
    data = folder / "odd.yaml"
    data.write_text(learned[0].read_text().replace(str(learned[0].parent), str(folder)))
    return data


def test_all_columns_judge_the_images_that_val_judges(odd_set, learned, own_folder, capsys):
    flags = ("--data", odd_set, "--weights", learned[1], "--img", 96, "--batch", 4, "--noplots")
    assert evaluate(*flags, "--json", "o.json") == 0
    said = capsys.readouterr()
    assert "6 images, 18 objects" in said.out and "6 of 12 images are not evaluated" in said.err
    for name in (
        "val0",
        "val1",
        "val10",
        "val11",
        "val2",
        "val3",
    ):  # the first six, ordered by name
        assert f"images/val/{name}.jpg: " in said.err, name
    ours = json.loads(Path("o.json").read_text())
    with yolov5_ema.installed() as engine:
        val = engine.module("val")
        options = {
            "data": str(odd_set),
            "weights": str(learned[1]),
            "imgsz": 96,
            "batch_size": 4,
            "half": False,
        }
        found = val.run(**options, project=str(own_folder), plots=False)[0][:4]
    assert [ours["yolov5"][name] for name in ("P", "R", "mAP50", "mAP50-95")] == pytest.approx(found, abs=1e-6)
    assert ours["yolov5"]["mAP50"] > 0.01
    labels = sum(entry["labels"] for entry in ours["yolov5"]["per_class"].values())
    assert labels == 18
    assert evaluate(*flags, "--keep-odd") == 0  # the row with a value above 1 is then an object, cut off at the border
    said = capsys.readouterr()
    assert "11 images, 34 objects" in said.out and "1 of 12 images is not evaluated" in said.err
    assert re.search(r"5 of 12 images are evaluated with the label.*:\n.*jpg: YOLOv5 leaves it out", said.err)
    # what val stores of the labels is as before: the next val leaves the same images out
    with yolov5_ema.installed() as engine:
        val = engine.module("val")
        assert val.run(**options, project=str(own_folder), plots=False)[0][:4] == pytest.approx(found, abs=1e-9)


def test_predictions_are_judged_on_the_same_images(odd_set, own_folder, capsys):
    (odd_set.parent / "images/val/again").rename(odd_set.parent / "images/val/other")  # it has no labels now
    assert evaluate("--data", odd_set, "--predictions", "p.json", "--nosave") == 2
    assert re.search(r"are both called val\d+. Predictions go by that name", capsys.readouterr().err)
    shutil.rmtree(odd_set.parent / "images/val/other")
    rows = []
    for label in sorted((odd_set.parent / "labels/val").glob("*.txt")):
        row = {"image_id": label.stem, "category_id": 0, "bbox": [1, 1, 20, 20], "score": 0.5}
        rows.append(row)
    Path("p.json").write_text(json.dumps(rows))
    assert evaluate("--data", odd_set, "--predictions", "p.json", "--nosave") == 0
    said = capsys.readouterr()
    assert "5 images, 15 objects, 5 detections" in said.out and "6 of 11 images are not evaluated" in said.err


def test_shortened_flags_are_vals(odd_set, learned, capsys):
    flags = ("--data", odd_set, "--weights", learned[1], "--img", 96, "--noplots", "--protocol", "coco")
    assert evaluate(*flags, "--single", "--json", "o.json", "--batch", 4) == 0
    assert list(json.loads(Path("o.json").read_text())["coco"]["per_class"]) == ["object"]
    capsys.readouterr()
    for typed in (("--tas", "test"), ("--proj", "x"), ("--nam=x",)):
        assert evaluate(*flags, *typed) == 2
        assert "in full; 'yolov5-ema evaluate' reads that flag itself" in capsys.readouterr().err


def test_quiet_leaves_out_what_val_says_of_itself(odd_set, learned, capsys):
    line = ("--data", odd_set, "--weights", learned[1], "--img", 64, "--protocol", "yolov5", "--no-plots")
    assert evaluate(*line) == 0
    assert "Speed: " in capsys.readouterr().out
    assert evaluate(*line, "--quiet") == 0
    out = capsys.readouterr().out
    assert "Speed: " not in out and "val: " not in out and "Results saved to runs/evaluate/exp2/val" not in out
    assert "AP50:95" in out and out.endswith("Results saved to runs/evaluate/exp2\n")


def test_submit_writes_one_file_an_image_or_none(drone_set, tmp_path, capsys):
    (tmp_path / "images/again").mkdir()
    shutil.copy(tmp_path / "images/x.jpg", tmp_path / "images/again/x.jpg")
    for found in (["--weights", "nowhere.pt"], ["--predictions", "nowhere.json"]):
        assert main(["submit", "--data", drone_set, *found, "-o", "results"]) == 2
        assert "are both called x. The benchmark takes one file" in capsys.readouterr().err
    assert not Path("results").exists()


def test_what_val_refuses_leaves_nothing(tiny_set, capsys):
    assert evaluate("--data", tiny_set, "--weights", "nowhere.pt") == 2
    assert "weights not found: nowhere.pt" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_weights_that_know_more_classes_than_the_data_are_refused(learned, own_folder, capsys):
    content = yaml.safe_load(learned[0].read_text())
    Path("two.yaml").write_text(yaml.safe_dump({**content, "nc": 2, "names": ["disc", "box"]}))
    for file in (learned[0].parent / "labels").rglob("*.txt"):
        lines = [line for line in file.read_text().splitlines() if not line.startswith("2")]
        place = own_folder / "labels" / file.relative_to(learned[0].parent / "labels")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(f"{line}\n" for line in lines))
    (own_folder / "images").symlink_to(learned[0].parent / "images")
    Path("two.yaml").write_text(Path("two.yaml").read_text().replace(str(learned[0].parent), str(own_folder)))
    assert evaluate("--data", "two.yaml", "--weights", learned[1], "--img", 96) == 2
    said = capsys.readouterr().err
    assert "best.pt has 3 classes, but two.yaml has only 2: they do not belong together" in said
    assert not Path("runs").exists()


# --- the benchmark's folder ---


@pytest.fixture
def drone_set(tmp_path):
    """A data YAML with VisDrone's classes and unlabelled images."""
    (tmp_path / "images").mkdir()
    for name in ("x", "y"):
        Image.new("RGB", (96, 64), (90, 120, 60)).save(tmp_path / f"images/{name}.jpg")
    content = {
        "path": str(tmp_path),
        "train": "images",
        "val": "images",
        "test": "images",
        "nc": 10,
        "names": list(CLASSES),
    }
    (tmp_path / "drone.yaml").write_text(yaml.safe_dump(content))
    return "drone.yaml"


def test_submit_predictions(drone_set, capsys):
    rows = [{"image_id": "x", "category_id": 3, "bbox": [5, 6, 7, 8], "score": 0.1 + at / 1000} for at in range(600)]
    Path("r.json").write_text(json.dumps(rows))
    assert main(["submit", "--data", drone_set, "--predictions", "r.json", "-o", "results"]) == 0
    lines = Path("results/x.txt").read_text().splitlines()
    assert len(lines) == 500 and lines[0] == "5.00,6.00,7.00,8.00,0.699000,4,-1,-1"
    assert Path("results/y.txt").read_text() == ""
    assert "results: 2 files, 500 detections" in capsys.readouterr().out
    assert main(["submit", "--data", drone_set, "--predictions", "r.json", "-o", "results"]) == 2
    assert "exists and is left as it is" in capsys.readouterr().err


def test_submit_by_weights(drone_set, tmp_path):
    """An untrained detector of ten classes on images without labels."""
    run_cli("cfg", "--size", "n", "--block", "EMA", "--nc", 10, "-o", "ten.yaml", cwd=tmp_path)
    with yolov5_ema.installed() as engine:
        yolo = engine.module("models.yolo")
        model = yolo.Model("ten.yaml")
        model.names, model.nc = list(CLASSES), len(CLASSES)  # as train attaches them
        model.model[-1].m[0].bias.data += 4  # it is certain of objects, which no untrained detector is
        from yolov5_ema.checkpoints.loading import save_checkpoint

        save_checkpoint({"model": model.half(), "ema": None, "epoch": -1}, "ten.pt", engine=engine)
    flags = ("--data", drone_set, "--weights", "ten.pt", "--img", 64, "--conf-thres", 1e-6, "-o", "results")
    done = run_cli("submit", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    table = np.loadtxt(tmp_path / "results/x.txt", delimiter=",")
    assert table.shape[1] == 8 and 1 <= len(table) <= 500
    assert (np.diff(table[:, 4]) <= 0).all() and set(table[:, 5]) <= set(range(1, 11))
    assert not (tmp_path / "runs").exists()


def test_submit_wants_the_benchmarks_classes(tiny_set, capsys):
    assert main(["submit", "--data", str(tiny_set), "--predictions", "r.json", "-o", "results"]) == 2
    assert "not disc, box, cross" in capsys.readouterr().err


# --- bad input ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "either --weights"),
        (["--weights", "a.pt", "--predictions", "p"], "either --weights"),
        (["--predictions", "detections"], "either --data or --annotations"),
        (["--predictions", "detections", "--data", "no.yaml"], "no.yaml: no such data YAML here"),
        (["--predictions", "detections", "--annotations", "no"], "--annotations no: no such folder"),
        (["--predictions", "detections", "--annotations", "annotations"], "pass --image-sizes"),
        (["--weights", "a.pt", "--annotations", "annotations"], "--weights needs --data"),
        (["--predictions", "detections", "--data", "d.yaml", "--runtime", "onnx"], "--runtime onnx needs --weights"),
        (["--predictions", "detections", "--data", "d.yaml", "--imgs", "9"], "unknown flags: --imgs 9"),
        (
            ["--predictions", "detections", "--data", "d.yaml", "--max-det", "0"],
            "--max-det must be at least 1",
        ),
        (
            ["--predictions", "detections", "--data", "d.yaml", "--image-sizes", "s.json"],
            "works only with --annotations",
        ),
    ],
)
def test_flags_that_do_not_go_together(flags, words, drone, own_folder, capsys):
    before = set(own_folder.rglob("*"))
    assert evaluate(*flags) == 2
    assert words in capsys.readouterr().err and set(own_folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("detections/other.txt", "1,1,5,5,0.5,4,-1,-1\n", "there is no image other"),
        ("detections/im1.txt", "", "no detections for 1 of 3 images, such as im1"),
        ("detections/im1.txt", "1,1,5,5,nan,4,-1,-1\n", "im1.txt, line 1: nan is not finite"),
        (
            "detections/im1.txt",
            "900,1,5,5,0.5,4,-1,-1\n",
            "im1, detection 1 (900, 1, 5, 5, 0.5, 3): its box lies outside",
        ),
        ("detections/im1.txt", "1,1,5,5,0.5,14,-1,-1\n", "category 14 is not in 0 to 11"),
        ("annotations/im1.txt", "1,1,5\n", "annotations/im1.txt, line 1: 3 columns, not 8"),
        ("annotations/im9.txt", "1,1,5,5,1,4,0,0\n", "the size of im9 is not known"),
        ("sizes.json", '{"im0": {"width": 4', "sizes.json is not JSON, or it is cut off: line 1, column"),
    ],
)
def test_files_that_cannot_be_used(file, text, words, drone, own_folder, capsys):
    Path(file).write_text(text)
    before = set(own_folder.rglob("*"))
    assert evaluate(*drone, "--json", "out.json") == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert set(own_folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "place"),
    [
        (["evaluate", "--annotations", "no", "--predictions", "no", "--csv", "mine/x.csv"], "mine/x.csv"),
        (["evaluate", "--annotations", "no", "--predictions", "no", "--json", "mine/x.json"], "mine/x.json"),
        (["evaluate", "--data", "no.yaml", "--weights", "no.pt", "--csv", "mine/x.csv"], "mine/x.csv"),
        (["submit", "--data", "no.yaml", "--predictions", "no.json", "-o", "mine/results"], "mine/results"),
        (["data", "stats", "no.yaml", "-o", "mine/x.png"], "mine/x.png"),
        (["data", "stats", "no.yaml", "--no-picture", "--json", "mine/x.json"], "mine/x.json"),
        (["paper", "tables", "-o", "mine/x.md"], "mine/x.md"),
        (["paper", "figure1", "--runs", "no", "-o", "mine/x.png"], "mine/x.png"),
        (["blocks", "--at", "no.yaml", "--picture", "mine/x.png"], "mine/x.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-2],
)
def test_outputs_are_checked_before_inputs_are_read(argv, place, own_folder, capsys):
    """Work of minutes must not end with a file that cannot be written."""
    Path("mine").write_text("mine")
    assert main(argv) == 2
    assert f"{place} cannot be written: mine is not a folder" in capsys.readouterr().err
    assert [path.name for path in own_folder.iterdir()] == ["mine"] and Path("mine").read_text() == "mine"


def test_no_object_at_all(drone, own_folder, capsys):
    for path in Path("annotations").iterdir():
        path.write_text("100,100,80,80,0,0,0,0\n")
    before = set(own_folder.rglob("*"))
    for protocol in ("yolov5", "coco", "visdrone"):
        assert evaluate("--protocol", protocol, *drone) == 2
        assert "nothing to evaluate" in capsys.readouterr().err
    assert set(own_folder.rglob("*")) == before


def test_a_run_folder_that_was_there_is_kept(drone, own_folder):
    assert evaluate(*drone, "--noplots") == 0
    kept = Path("runs/evaluate/exp/evaluation.json").read_text()
    Path("detections/im1.txt").unlink()
    assert evaluate(*drone, "--exist-ok") == 2 and evaluate(*drone) == 2
    assert [path.name for path in Path("runs/evaluate").iterdir()] == ["exp"]
    assert Path("runs/evaluate/exp/evaluation.json").read_text() == kept


def test_ctrl_c_leaves_what_others_made_meanwhile(drone, own_folder, monkeypatch):
    def interrupted(*_):
        Path("runs/train/exp/weights").mkdir(parents=True)  # by a training in another terminal
        Path("runs/train/exp/weights/last.pt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("yolov5_ema.cli.evaluate._computed", interrupted)
    assert evaluate(*drone) == 130
    assert Path("runs/train/exp/weights/last.pt").is_file() and not Path("runs/evaluate").exists()
