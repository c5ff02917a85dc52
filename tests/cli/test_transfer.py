"""``yolov5-ema transfer``: what it writes, prints, and refuses."""

from __future__ import annotations

import pytest
import torch
import yaml
from conftest import laid_aside, run_cli

from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.checkpoints.loading import load_checkpoint, save_checkpoint
from yolov5_ema.cli.main import main

NAMES = ["disc", "box", "cross"]


@pytest.fixture(scope="module")
def pretrained(engine, tmp_path_factory):
    """A checkpoint of yolov5n without blocks, in half precision as YOLOv5 saves it, with fitted anchors."""
    from yolov5.models.yolo import Model

    torch.manual_seed(0)
    with quiet():
        model = Model(build_cfg(size="n", block="none", nc=3)).eval()
    model.names = NAMES
    model.model[-1].anchors *= 0.75
    file = tmp_path_factory.mktemp("pretrained") / "plain.pt"
    save_checkpoint({"model": model.half(), "ema": None, "epoch": -1, "optimizer": None}, file, engine=engine)
    return file


def cfg_file(folder, **recipe):
    file = folder / "cfg.yaml"
    file.write_text(yaml.safe_dump(build_cfg(size="n", **recipe)))
    return file


def run(*argv):
    return main([str(argument) for argument in argv])


def outputs(file, engine):
    model = load_checkpoint(file, engine=engine)["model"].float()
    with torch.no_grad():
        return model(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))[0]


def test_it_writes_a_checkpoint_and_says_what_is_fresh(engine, pretrained, own_folder, capsys):
    cfg = cfg_file(own_folder, block="EMA", nc=3)
    cfg = cfg.rename(cfg.with_name("my cfg.yaml"))
    assert run("transfer", pretrained, "--cfg", cfg, "-o", "out.pt") == 0
    said = capsys.readouterr().out
    assert f"train it on: yolov5-ema train --weights out.pt --cfg '{cfg}' …" in said
    assert "349/361 tensors transferred" in said and "row 10 EMA" in said and "out.pt written" in said
    checkpoint = load_checkpoint("out.pt", engine=engine)
    model = checkpoint["model"]
    assert model.names == NAMES and model.nc == model.yaml["nc"] == 3 and checkpoint["epoch"] == -1
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    theirs = load_checkpoint(pretrained, engine=engine)["model"]
    assert torch.equal(model.model[-1].anchors, theirs.model[-1].anchors)  # fitted anchors are copied
    assert {"ema", "updates", "optimizer", "best_fitness", "date"} <= checkpoint.keys()


def test_identity_keeps_every_detection(engine, pretrained, own_folder):
    cfg = cfg_file(own_folder, block="CBAM", nc=3)
    assert run("transfer", pretrained, "--cfg", cfg, "-o", "as-is.pt") == 0
    assert run("transfer", pretrained, "--cfg", cfg, "--init", "identity", "-o", "same.pt") == 0
    expected = outputs(pretrained, engine)
    assert torch.equal(outputs("same.pt", engine), expected)
    assert not torch.equal(outputs("as-is.pt", engine), expected)


def test_classes_by_the_names_of_a_data_yaml(engine, pretrained, own_folder, capsys):
    data = own_folder / "data.yaml"
    data.write_text("train: x\nval: x\nnc: 2\nnames: {0: cross, 1: star}\n")
    cfg = cfg_file(own_folder, block="EMA", nc=3)
    assert run("transfer", pretrained, "--cfg", cfg, "--data", data, "-o", "out.pt") == 0
    assert "classes that the checkpoint does not have start fresh: star" in capsys.readouterr().out
    new = load_checkpoint("out.pt", engine=engine)["model"]
    old = load_checkpoint(pretrained, engine=engine)["model"]
    assert new.names == ["cross", "star"] and new.model[-1].nc == 2
    ours, theirs = new.model[-1].m[0].bias.view(3, 7), old.model[-1].m[0].bias.view(3, 8)
    assert torch.equal(ours[:, :5], theirs[:, :5]) and torch.equal(ours[:, 5], theirs[:, 7])


def test_a_number_of_classes_is_not_guessed(pretrained, own_folder, refused):
    message = refused("transfer", pretrained, "--cfg", "yolov5n-ema.yaml", "-o", "out.pt")
    assert "has 80 classes, the checkpoint has 3" in message and "--nc 3" in message


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("-o", "out.onnx"), "must end in .pt"),
        (("-o", "no/such/out.pt", "--nc", 3), "out.pt cannot be written"),
        (("-o", "out.pt", "--nc", 0), "--nc 0"),
        (("-o", "out.pt", "--nc", 3, "--data", "x.yaml"), "leave --nc out"),
        (("-o", "out.pt", "--data", "nowhere.yaml"), "--data nowhere.yaml: no such file"),
        (("-o", "out.pt", "--cfg", "nowhere.yaml"), "--cfg nowhere.yaml: no such file"),
        (("-o", "out.pt", "--cfg", "yolov5n-ca.yaml"), "did you mean|no such file"),
    ],
)
def test_mistakes_leave_nothing(pretrained, refused, flags, expected):
    import re

    message = refused("transfer", pretrained, "--cfg", "yolov5n-ema.yaml", *flags)
    assert re.search(expected, message), message


def test_identity_needs_a_fresh_block(pretrained, refused, tmp_path_factory):
    cfg = cfg_file(tmp_path_factory.mktemp("cfg"), block="none", nc=3)
    message = refused("transfer", pretrained, "--cfg", cfg, "--init", "identity", "-o", "out.pt")
    assert "--init identity: no row of the cfg is a fresh attention block: it has no block; leave --init out" in message


def test_weights_that_are_none(refused, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.pt").write_text("no weights" * 20)
    torch.save({"a": torch.zeros(3)}, folder / "state.pt")
    for name, expected in (
        ("text.pt", "not a PyTorch checkpoint"),
        ("state.pt", "is a state dict"),
        ("no.pt", "not found"),
    ):
        message = refused("transfer", folder / name, "--cfg", "yolov5n-ema.yaml", "-o", "out.pt")
        assert expected in message


def test_a_file_that_is_there_stays_unless_forced(pretrained, own_folder, capsys):
    cfg = cfg_file(own_folder, block="EMA", nc=3)
    out = own_folder / "out.pt"
    out.write_bytes(b"precious")
    assert run("transfer", pretrained, "--cfg", cfg, "-o", out) == 2
    assert "--force replaces it" in capsys.readouterr().err and out.read_bytes() == b"precious"
    assert run("transfer", pretrained, "--cfg", cfg, "-o", out, "--force") == 0
    assert out.stat().st_size > 1_000_000
    assert sorted(path.name for path in own_folder.iterdir()) == ["cfg.yaml", "out.pt"]


def test_into_the_segmentation_model_of_v7(pretrained, own_folder):
    """Boxes, objectness and classes of Detect are copied into Segment; masks start with new weights."""
    root = laid_aside("7.0.14")
    cfg = yaml.safe_load((root / "models/segment/yolov5n-seg.yaml").read_text())
    (own_folder / "seg.yaml").write_text(yaml.safe_dump({**cfg, "nc": 3}))
    done = run_cli(*("transfer", pretrained, "--cfg", "seg.yaml", "-o", "seg.pt", "--yolov5", root), cwd=own_folder)
    assert done.returncode == 0, done.stderr
    assert "349/367 tensors transferred, 6 of them in part" in done.stdout  # 18 belong to proto
    assert "outputs for 32 masks start fresh: 0 in the checkpoint" in done.stdout
