"""`yolov5-ema paper recipe`: models that differ only in their blocks, and commands that train them alike."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import run_cli

import yolov5_ema
from yolov5_ema.cfgs.generator import SHIPPED, build_cfg
from yolov5_ema.cli import compare
from yolov5_ema.cli.main import main
from yolov5_ema.engine.quirks import downloads
from yolov5_ema.paper.recipes import RECIPES


def without_blocks(recipe):
    """For each row that is no block: its module, its arguments, and the rows that it would read without blocks."""
    graph = recipe.graph()
    rows = [row for row in graph.rows if not row.attends]

    def real(row):
        while row is not None and row.attends:
            row = row.sources[0].row
        return "image" if row is None else rows.index(row)

    return [(row.module, row.args, [real(source.row) for source in row.sources]) for row in rows]


@pytest.mark.parametrize(
    ("dataset", "wiring", "names"),
    [
        ("coco", "published", ["yolov5s.yaml", "yolov5s-ema.yaml", "yolov5s-ca.yaml"]),
        (
            "visdrone",
            "published",
            ["yolov5x-tph-published.yaml", "yolov5x-ema-tph-published.yaml", "yolov5x-ca-tph-published.yaml"],
        ),
        ("visdrone", "blocks", ["yolov5x-p2.yaml", "yolov5x-ema-tph.yaml", "yolov5x-ca-tph.yaml"]),
    ],
)
def test_models_differ_from_the_control_only_in_their_blocks(dataset, wiring, names):
    recipe = RECIPES[dataset]
    found = recipe.cfgs(["EMA", "CA"], recipe.size, wiring)
    assert list(found) == names
    control, *others = found.values()
    for name, other in zip(names[1:], others):
        assert other == SHIPPED[name]  # whose parameters are tested with the other shipped YAMLs
        assert without_blocks(other) == without_blocks(control)
        assert other.graph().settings == control.graph().settings
        assert sum(row.attends for row in other.graph().rows) == (2 if dataset == "coco" else 5)
    assert not any(row.attends for row in control.graph().rows)


def test_the_two_wirings_have_the_anchors_and_the_control_of_their_files():
    published, blocks = (RECIPES["visdrone"].cfgs(["EMA"], "x", wiring) for wiring in ("published", "blocks"))
    anchors = {name: recipe.graph().settings["anchors"][0] for name, recipe in {**published, **blocks}.items()}
    assert anchors == {
        "yolov5x-tph-published.yaml": [5, 6, 8, 14, 15, 11],
        "yolov5x-ema-tph-published.yaml": [5, 6, 8, 14, 15, 11],
        "yolov5x-p2.yaml": [5, 7, 8, 15, 17, 12],
        "yolov5x-ema-tph.yaml": [5, 7, 8, 15, 17, 12],
    }
    assert without_blocks(published["yolov5x-tph-published.yaml"]) == without_blocks(blocks["yolov5x-p2.yaml"])
    detects = [build_cfg(size="x", at="neck", head=head)["head"][-1][0] for head in ("p2-tph-published", "p2")]
    assert detects == [[23, 27, 31, 35], [24, 28, 32, 35]]
    text = published["yolov5x-tph-published.yaml"].text()
    assert text.startswith("# yolov5-ema cfg --size x --head p2-tph-published --block none --nc 10\n")
    assert "Detect reads the outputs" not in text


def script_of(out: str) -> list[list[str]]:
    """The commands of a printed script."""
    return [words for line in out.splitlines() if (words := shlex.split(line, comments=True))]


def test_what_is_printed_is_a_script_for_both_models(own_folder, capsys):
    assert main(["paper", "recipe", "coco", "-o", "my recipe", "--seeds", "5", "--workers", "4"]) == 0
    out = capsys.readouterr().out
    comparison, *vals = script_of(out)
    assert comparison[:2] == ["yolov5-ema", "compare"]
    args, flags = compare.COMMAND.parse(comparison[2:])
    assert args.cfgs == ["my recipe/yolov5s.yaml", "my recipe/yolov5s-ema.yaml"] and args.baseline == args.cfgs[0]
    assert (args.data, args.seeds, args.task, str(args.project)) == ("coco.yaml", 5, "val", "my recipe")
    pairs = dict(zip(flags[::2], flags[1::2]))
    assert pairs == {
        "--weights": "yolov5s.pt",
        "--epochs": "300",
        "--img": "640",
        "--batch-size": "64",
        "--workers": "4",
    }
    assert [words[-1] for words in vals] == [
        f"my recipe/compare/{name}/seed0/weights/best.pt" for name in ("yolov5s", "yolov5s-ema")
    ]
    assert all("--iou-thres 0.65" in shlex.join(words) for words in vals)
    ema = Path("my recipe/yolov5s-ema.yaml")
    assert ema.read_text() == SHIPPED["yolov5s-ema.yaml"].text()

    ema.write_text("mine")
    assert main(["paper", "recipe", "coco", "-o", "my recipe"]) == 2
    assert "other versions of yolov5s-ema.yaml" in capsys.readouterr().err and ema.read_text() == "mine"
    assert main(["paper", "recipe", "coco", "-o", "my recipe", "--force"]) == 0
    assert ema.read_text() == SHIPPED["yolov5s-ema.yaml"].text()


def test_parts_of_the_recipe_are_replaced(own_folder, capsys):
    given = ["--data", "mine.yaml", "--weights", "mine.pt", "--size", "n", "--epochs", "2", "--img-size", "320"]
    given += ["--batch", "8", "--device", "cpu", "--wiring", "blocks", "--block", "ema", "cbam", "--last", "2"]
    assert main(["paper", "recipe", "visdrone", *given]) == 0
    args, flags = compare.COMMAND.parse(script_of(capsys.readouterr().out)[0][2:])
    names = ("p2", "ema-tph", "cbam-tph")
    assert args.cfgs == [f"runs/paper/visdrone/yolov5n-{name}.yaml" for name in names] and args.data == "mine.yaml"
    assert shlex.join(flags) == "--weights mine.pt --epochs 2 --img 320 --batch-size 8 --device cpu" and args.last == 2
    assert all(Path(file).is_file() for file in args.cfgs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["coco", "--wiring", "blocks"], "--wiring is for visdrone: the model for COCO has one wiring"),
        (["coco", "--block", "EMAA"], "EMAA"),
        (["coco", "--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["coco", "--imgsz", "0"], "--imgsz 0"),
        (["visdrone", "--size", "n", "--block", "SA"], "SA"),
        (["coco", "--cfgs", "a.yaml"], "takes no --cfgs; choose blocks with --block"),
    ],
)
def test_mistakes(own_folder, capsys, words, message):
    assert main(["paper", "recipe", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("yolov5-ema: error: ") and message in err
    assert not Path("runs").exists()


def test_a_flag_that_nobody_knows(own_folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["paper", "recipe", "coco", "--no-such-flag", "1"])
    assert stopped.value.code == 2 and "unrecognized arguments: --no-such-flag" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_missing_weights_and_missing_data_are_named_before_anything_is_trained(own_folder, capsys, monkeypatch):
    monkeypatch.setattr(downloads, "is_online", lambda: False)
    run = ["paper", "recipe", "coco", "--size", "n", "--run"]
    with yolov5_ema.installed():
        assert main(run) == 2
        assert "weights yolov5n.pt not found here, and they cannot be downloaded" in capsys.readouterr().err
        assert main([*run, "--weights", ""]) == 2
    assert "coco.yaml" in capsys.readouterr().err
    assert {path.name for path in Path("runs").rglob("*.*")} == {"yolov5n.yaml", "yolov5n-ema.yaml"}
    assert not Path("runs/paper/coco/compare").exists()


@pytest.mark.slow
def test_block_and_control_are_trained_and_compared(tiny_set, trained, tmp_path):
    shutil.copy(trained, tmp_path / "start.pt")
    flags = ["--data", tiny_set, "--weights", "start.pt", "--size", "n", "--epochs", 2, "--img", 64, "--batch", 4]
    flags += ["--seeds", 2, "--workers", 2, "--latency-rounds", 0, "--last", 2, "-o", "out"]
    done = run_cli("paper", "recipe", "coco", *flags, "--block", "CA", "--run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out/compare/comparison.json").read_text())
    assert found["baseline"] == "yolov5n" and list(found["models"]) == ["yolov5n", "yolov5n-ca"]
    assert found["models"]["yolov5n-ca"]["differences"]["map50"]["n"] == 2
    assert all(run["status"] == "finished" and run["transferred"][0] > 300 for run in found["runs"])
    # CA's tensors start fresh, all others come from the checkpoint
    ours, control = (found["runs"][at]["transferred"] for at in (1, 0))
    assert ours[0] == control[0] == control[1] < ours[1]
