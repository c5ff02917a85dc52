"""The page: well-formed, self-contained, escaped, and with the figures of the files that it is made from."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re

import cv2
import numpy as np
from synthetic_runs import (
    Page,
    measured_of,
    row,
    write_classification,
    write_comparison,
    write_training,
    yolov5_csv,
)

from yolov5_ema.reporting import page
from yolov5_ema.reporting.comparing import of_comparison, of_runs
from yolov5_ema.reporting.cost import Cost, Row
from yolov5_ema.reporting.parts import Material
from yolov5_ema.reporting.runs import Comparison, Run, make_names_unique, read_source

EVIL = "<script>alert(1)</script>\"'&"


def rendered(*folders, measured=None, **more) -> Page:
    sources = [read_source(folder) for folder in folders]
    make_names_unique(sources)
    runs = [source for source in sources if isinstance(source, Run)]
    compared = [of_comparison(source) for source in sources if isinstance(source, Comparison)]
    for task in {run.task for run in runs}:
        found = of_runs([run for run in runs if run.task == task], measured or {})
        compared += [found] if found else []
    return Page(page.render(Material(sources, compared, measured=measured or {}, **more)))


def assert_whole(found: Page) -> None:
    """Check that tags are balanced, ids are unique, and nothing is fetched."""
    assert not found.unclosed
    assert len(set(found.ids)) == len(found.ids) > 5
    assert all(link.startswith(("#", "data:")) for link in found.links)
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert not re.search(r"""(url\(|@import|src=)["']?(?!#|data:|")""", found.html)


def test_one_training(tmp_path):
    folder = write_training(tmp_path / "exp", figures=(0.1, 0.55432, 0.4), seed=3, is_full=True)
    image = tmp_path / "a.jpg"
    cv2.imwrite(str(image), np.zeros((80, 80, 3), np.uint8))
    found = rendered(folder, measured={"exp": measured_of(["car", "bus"], [image])})
    assert_whole(found)
    with (folder / "results.csv").open() as stream:
        own = [[cell.strip() for cell in line] for line in csv.reader(stream)]
    caption = next(name for name in found.tables if "results.csv" in name)
    assert found.tables[caption] == own and "epoch 1, marked, was the best" in caption
    assert found.tables["exp, best.pt on val: 24 images, 30 objects"] == [
        ["class", "objects", "P", "R", "AP50", "AP"],
        ["car", "10", "0.7000", "0.6000", "0.5000", "0.2500"],
        ["bus", "20", "0.7000", "0.6000", "0.5500", "0.2500"],
    ]
    matrix = found.tables["exp: true class (rows) and predicted class (columns)"]
    assert matrix[0] == ["", "car", "bus", "background"] and matrix[1] == ["car", "10", "1", "2"]
    assert "0.5123" in found.words  # mAP50 of best.pt
    assert [line for line in found.tables["Options"] if line[0] == "seed"] == [["seed", "3"]]
    assert ["mosaic", "1.0"] in found.tables["Hyperparameters"]
    assert len(found.images) == 1 and found.images[0]["alt"] == "a.jpg: 1 object, 1 detection, drawn as boxes"
    assert found.images[0]["src"].startswith("data:image/jpeg;base64,")


def test_without_an_evaluation_the_best_epoch_is_shown(tmp_path):
    found = rendered(
        write_training(tmp_path / "exp", figures=(0.1, 0.55432, 0.4)),
        not_measured={"exp": "the data set gone/set.yaml is not there"},
    )
    assert_whole(found)
    assert "0.55432 epoch 1 in results.csv" in found.words
    assert "exp: not measured: the data set gone/set.yaml is not there" in found.words
    assert "Precision and recall" not in found.words and not found.images


def test_several_runs(tmp_path):
    figures = {"base": (0.50, 0.52, 0.52), "ema": (0.52, 0.55, 0.53)}
    folders = [
        write_training(tmp_path / model / f"seed{seed}", figures=(0.1, value), cfg=f"{model}.yaml")
        for model, values in figures.items()
        for seed, value in enumerate(values)
    ]
    found = rendered(*folders)
    assert_whole(found)
    lines = found.tables["The trainings (detection); epochs are counted as in results.csv"]
    assert lines[0] == ["run", "model", "seed", "epochs", "best epoch", "mAP50", "mAP50-95"]
    assert lines[5] == ["ema/seed1", "ema", "1", "2", "1", "0.55", "0.275"]
    assert found.tables["Figures of each model over its seeds"][2][:4] == [
        *("ema", "0, 1, 2", "0.5333 ± 0.0153", "0.5200 to 0.5500"),
    ]
    assert found.tables["Difference to base, with its 95 % interval"][1] == [
        *("ema", "mAP50", "+0.0200", "-0.0048 to +0.0448", "", "3", "no difference shown"),
    ]
    assert "ema against base, mAP50: +0.0200 (95 % interval -0.0048 to +0.0448, 3 seeds)" in found.words


def test_runs_that_were_not_evaluated_alike(tmp_path):
    folders = [write_training(tmp_path / name, cfg=f"{name}.yaml") for name in ("a", "b")]
    one, other = measured_of(["car"]), measured_of(["car", "bus"])
    other.settings["imgsz"] = 96
    found = rendered(*folders, measured={"a": one, "b": other})
    assert_whole(found)
    assert "at 64, 96 pixels" in found.words and "The evaluations of these runs differ (imgsz)" in found.words
    assert found.tables["Average precision by class, best.pt of each run on val"][1:] == [
        ["car", "10", "0.5000", "0.2500", "0.5000", "0.2500"],
        ["bus", "-", "-", "-", "0.5500", "0.2500"],
    ]
    assert "best epoch in each run's results.csv" in found.words  # so that these are compared
    other.settings["imgsz"] = 64
    found = rendered(*folders, measured={"a": one, "b": other})
    assert (
        "evaluated for this page on the val split" in found.words
        and "The evaluations of these runs differ" not in found.words
    )


def test_a_comparison_has_the_figures_of_its_json(tmp_path):
    folder = write_comparison(tmp_path / "first")
    content = json.loads((folder / "comparison.json").read_text())
    found = rendered(folder)
    assert_whole(found)
    for line, name in zip(found.tables["Figures of each model over its seeds"][1:], ("plain", "ema")):
        model = content["models"][name]
        metric = model["metrics"]["map50"]
        assert line[2:4] == [
            f"{metric['mean']:.4f} ± {metric['sd']:.4f}",
            f"{metric['smallest']:.4f} to {metric['largest']:.4f}",
        ]
        latency = model["latency_ms"]
        assert line[6:] == [
            f"{model['parameters']:,}",
            f"{model['gflops']:.2f}",
            f"{latency['median']:.2f} ({latency['quartile1']:.2f} to {latency['quartile3']:.2f})",
            f"{latency['ratio']:.2f}",
        ]
    difference = content["models"]["ema"]["differences"]["map50_95"]
    line = found.tables["Difference to plain, with its 95 % interval"][2]
    assert line[2:4] == [
        f"{difference['mean']:+.4f}",
        f"{difference['low']:+.4f} to {difference['high']:+.4f}",
    ]
    assert line[6] == difference["verdict"]
    assert all(note in found.words for note in content["notes"])
    assert ["torch", "2.9.0"] in found.tables["What trained and measured first"]


def test_classifiers(tmp_path):
    found = rendered(write_classification(tmp_path / "exp", top1=0.7))
    assert_whole(found)
    assert found.tables["Top-1 accuracy by class, best.pt"][1:] == [
        ["cat", "10", "0.7000"],
        ["dog", "10", "0.7000"],
    ]
    assert found.tables["exp: true class (rows) and predicted class (columns)"][1] == ["cat", "7", "3"]
    assert "top-10.7000 best.pt, 20 images" in found.words.replace("\n", "")


def test_many_classes_are_listed_by_their_confusions(tmp_path):
    names = [f"class {at}" for at in range(100)]
    found = rendered(write_classification(tmp_path / "exp", names=names))
    caption = "exp: the 20 most frequent confusions of 100 classes"
    assert found.tables[caption][:2] == [
        ["true class", "predicted class", "times", "share of the class"],
        ["class 0", "class 99", "3", "0.300"],
    ]
    assert len(found.tables[caption]) == 21 and len(found.tables["Top-1 accuracy by class, best.pt"]) == 101


def test_evaluations_of_before(tmp_path):
    folder = tmp_path / "evaluated"
    folder.mkdir()
    content = {
        "yolov5": {"mAP50": 0.5, "unit": "fraction", "per_class": {"car": {"AP": 0.31, "AP50": 0.5}}},
        "visdrone": {
            "AP": 12.345,
            "AR1": None,
            "unit": "percent",
            "per_class": {"car": {"AP": 12.3, "AP50": None}},
        },
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    found = rendered(folder)
    assert_whole(found)
    assert found.tables["evaluated: figures over all classes"] == [
        ["figure", "yolov5 (fraction)", "visdrone (percent)"],
        ["mAP50", "0.5000", "-"],
        ["AP", "-", "12.3450"],
        ["AR1", "-", "-"],
    ]
    assert found.tables["evaluated: average precision by class"][1] == [
        "car",
        "0.3100",
        "0.5000",
        "12.3000",
        "-",
    ]


def test_a_run_with_nan_and_one_that_was_killed(tmp_path):
    nan = float("nan")
    broken = write_training(tmp_path / "broken")
    (broken / "results.csv").write_text(yolov5_csv([row(0, 0.1, 0.05), row(1, nan, nan, nan)]))
    killed = write_training(tmp_path / "killed")
    (killed / "results.csv").unlink()
    found = rendered(broken, killed)
    assert_whole(found)
    assert "broken: The training diverged: its loss is not a number from epoch 1 on." in found.words
    assert "killed: There is no results.csv: no epoch was finished." in found.words
    caption = next(name for name in found.tables if name.startswith("broken: results.csv"))
    assert found.tables[caption][2][6:8] == ["nan", "nan"] and 'data-value="nan"' not in found.html
    lines = found.tables["The trainings (detection); epochs are counted as in results.csv"]
    assert lines[2] == ["killed", "yolov5n-ema", "-", "0", "-", "-", "-"]


def test_long_trainings_are_thinned_out(tmp_path):
    folder = write_training(tmp_path / "exp", figures=[0.001 * at for at in range(1000)])
    found = rendered(folder)
    caption = next(name for name in found.tables if "one epoch in 5" in name)
    assert len(found.tables[caption]) == 1 + 200 + 1  # the best is epoch 999
    assert found.tables[caption][-1][0] == "999" and len(found.html) < 1_000_000


def test_what_users_write_is_text(tmp_path):
    folder = write_training(tmp_path / EVIL.replace("/", ""), cfg=f"{EVIL}.yaml", comment=EVIL)
    (folder / "hyp.yaml").write_text(f"lr0: {json.dumps(EVIL)}\n")
    costs = {folder.name: Cost(5, 1.0, 64, [Row(0, EVIL, 1, EVIL, EVIL, True)], EVIL)}
    found = rendered(folder, measured={folder.name: measured_of([EVIL, "b"])}, costs=costs, title=EVIL)
    assert_whole(found)
    assert found.html.count("<script") == 1 == found.html.count("</script>")
    assert found.words.count(EVIL) > 8 and "alert(1)" not in found.script
    evil_args = write_classification(tmp_path / "c", names=[EVIL, "b"], data=EVIL)
    again = rendered(evil_args)
    assert_whole(again)
    assert again.html.count("<script") == 1 and again.words.count(EVIL) >= 3


def test_the_policy_lets_nothing_in(tmp_path):
    found = rendered(write_training(tmp_path / "exp"))
    policy = next(meta["content"] for meta in found.metas if meta.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(found.script.encode()).digest()).decode()
    assert policy.split("; ")[:4] == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]
    assert any(meta.get("name") == "viewport" for meta in found.metas)
    assert 'lang="en"' in found.html
    assert not re.search(r"<th(?! scope=)[ >]", found.html)
    assert found.html.count('<th scope="col"') > 4


def test_every_class_of_many_has_its_line(tmp_path):
    names = [f"name {at}" for at in range(30)]
    found = rendered(write_training(tmp_path / "exp"), measured={"exp": measured_of(names)})
    assert_whole(found)
    caption = next(name for name in found.tables if name.startswith("exp, best.pt"))
    assert [line[0] for line in found.tables[caption][1:]] == names
