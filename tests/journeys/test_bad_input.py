"""Bad input causes a clear message and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import argparse
import os
import shutil

import pytest
import torch
import yaml
from conftest import write_tiny_set

import yolov5_ema
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.scripts import preflight
from yolov5_ema.upstream.locate import engine_at

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module", autouse=True)
def shim():
    with yolov5_ema.installed():
        yield


def train(tiny_set, *flags: object) -> list[object]:
    return ["train", "--data", tiny_set, "--weights", "", "--img", 64, "--epochs", 1, *flags]


def write_cfg(**changes: object) -> str:
    cfg = build_cfg(size="n", block="EMA", nc=3)
    cfg.update(changes)
    with open("mine.yaml", "w") as stream:
        yaml.safe_dump(cfg, stream)
    return "mine.yaml"


def with_block_row(row: list[object]) -> str:
    cfg = build_cfg(size="n", block="EMA", nc=3)
    cfg["backbone"][7] = row
    return write_cfg(backbone=cfg["backbone"])


def test_cfg_missing(refused, tiny_set):
    message = refused(*train(tiny_set, "--cfg", "yolov5s-emma.yaml"))
    assert "--cfg yolov5s-emma.yaml: no such file" in message and "yolov5-ema cfg" in message


def test_cfg_not_yaml(refused, tiny_set):
    with open("broken.yaml", "w") as stream:
        stream.write("backbone: [[\n")
    assert "broken.yaml is not valid YAML" in refused(*train(tiny_set, "--cfg", "broken.yaml"))


def test_cfg_wrong_keys(refused, tiny_set):
    cfg = write_cfg()
    content = yaml.safe_load(open(cfg).read())
    content["backbones"] = content.pop("backbone")
    open(cfg, "w").write(yaml.safe_dump(content))
    assert "'backbone' is missing; it has 'backbones'" in refused(*train(tiny_set, "--cfg", cfg))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([-1, 1, "EMAA", []], ["row 7", "did you mean EMA?"]),
        ([-1, 1, "EMA", [0]], ["row 7", "groups", "0"]),
        ([-1, 1, "EMA", [-8]], ["row 7", "groups", "-8"]),
        ([-1, 1, "EMA", [48]], ["row 7", "48", "128"]),
        ([-1, 1, "EMA", [1024]], ["row 7", "1024", "[EMA, []]"]),
        ([-1, 1, "EMA", [512]], ["row 7", "number of channels", "[EMA, []]"]),
        ([-1, 1, "print('smuggled')", []], ["row 7", "must be a name"]),
    ],
)
def test_cfg_rows(refused, tiny_set, row, words, capsys):
    message = refused(*train(tiny_set, "--cfg", with_block_row(row)))
    assert "mine.yaml" in message
    for word in words:
        assert word in message
    assert "smuggled\n" not in capsys.readouterr().out


def test_cfg_whose_rows_do_not_fit(refused, tiny_set):
    cfg = build_cfg(size="n", block="EMA", nc=3)
    cfg["head"][2][0] = [-1, 4]  # a Concat of strides 16 and 8
    message = refused(*train(tiny_set, "--cfg", write_cfg(head=cfg["head"])))
    assert "mine.yaml, row 14" in message and "Concat" in message and "[-1, 4]" in message


def test_weights_missing(refused, tiny_set):
    assert "weights not found: nowhere.pt" in refused("val", "--data", tiny_set, "--weights", "nowhere.pt")
    assert "weights not found: nowhere.pt" in refused("detect", "--weights", "nowhere.pt", "--source", tiny_set)


def test_only_a_training_is_told_how_to_start_from_scratch(refused, tiny_set):
    assert refused("val", "--data", tiny_set, "--weights", "nowhere.pt").endswith("nowhere.pt. Check the path\n")
    message = refused("train", "--data", tiny_set, "--cfg", "yolov5n-ema.yaml", "--weights", "nowhere.pt")
    assert message.endswith("to start from scratch: --weights ''\n")


def test_no_object_to_learn_from(refused, tiny_set, tmp_path_factory):
    """YOLOv5 ends with an error of NumPy, and leaves a run folder."""
    empty = write_tiny_set(tmp_path_factory.mktemp("empty") / "set")
    for labels in (empty.parent / "labels/train").iterdir():
        labels.write_text("")
    message = refused("train", "--data", empty, "--cfg", write_cfg(), "--weights", "", "--img", 64, "--epochs", 1)
    assert "no image of train has an object" in message and "data stats" in message


def test_a_gpu_that_is_not_there(refused, tiny_set):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    message = refused(*train(tiny_set, "--cfg", write_cfg(), "--device", "0"))
    assert "device 0" in message and "Leave --device out, or give cpu" in message


def test_released_weights_without_a_network(refused, tiny_set, monkeypatch):
    from yolov5_ema.engine.quirks import downloads

    monkeypatch.setattr(downloads, "is_online", lambda: False)
    message = refused("train", "--data", tiny_set, "--cfg", "yolov5n-ema.yaml", "--weights", "yolov5s.pt")
    assert "yolov5s.pt not found here" in message and "no network" in message and "--weights ''" in message


def test_weights_cut_off_or_no_checkpoint(refused, tiny_set, own_folder):
    (own_folder / "cut.pt").write_bytes(b"PK\x03\x04 and nothing more")
    (own_folder / "text.pt").write_text("hello")
    for name in ("cut.pt", "text.pt"):
        assert "not a PyTorch checkpoint, or is cut off" in refused("val", "--data", tiny_set, "--weights", name)
        assert "not a PyTorch checkpoint" in refused("export", "--weights", name, "--include", "onnx")


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("command", ["train", "val", "detect", "export"])
def test_weights_malicious(refused, tiny_set, own_folder, command):
    torch.save({"model": Evil(), "optimizer": None}, "evil.pt")
    flags = {
        "train": ["--data", tiny_set, "--cfg", "yolov5n-ema.yaml"],
        "val": ["--data", tiny_set],
        "detect": ["--source", tiny_set.parent / "images/test"],
        "export": ["--include", "onnx"],
    }[command]
    message = refused(command, "--weights", "evil.pt", *flags)
    assert "system" in message and "--trust-checkpoint" in message
    assert not (own_folder / "ran").exists()


def test_data_without_val(refused, tiny_set):
    content = yaml.safe_load(tiny_set.read_text())
    del content["val"]
    open("noval.yaml", "w").write(yaml.safe_dump(content))
    message = refused("train", "--data", "noval.yaml", "--cfg", "yolov5n-ema.yaml", "--weights", "")
    assert "noval.yaml: the key 'val' is missing" in message and "images/val" in message


def test_a_data_set_that_would_be_downloaded(refused, tiny_set, own_folder, monkeypatch):
    from yolov5_ema.engine.quirks import downloads

    monkeypatch.setattr(downloads, "is_online", lambda: False)
    content = {
        **yaml.safe_load(tiny_set.read_text()),
        "path": "nowhere",
        "download": "https://example.org/x.zip",
    }
    open("data.yaml", "w").write(yaml.safe_dump(content))
    message = refused("train", "--data", "data.yaml", "--cfg", "yolov5n-ema.yaml", "--weights", "")
    assert "nowhere/images/train" in message and "fetch the images yourself" in message
    by_default = refused("train", "--cfg", "yolov5n-ema.yaml", "--weights", "", "--img", 64)  # coco128
    assert "coco128" in by_default and "no network" in by_default


def test_data_with_other_mistakes(refused, tiny_set, own_folder):
    good = yaml.safe_load(tiny_set.read_text())
    cases = [
        ({**good, "nc": 5}, "nc is 5, but there are 3 names"),
        ({**good, "nc": 0}, "at least 1"),
        ({key: good[key] for key in ("path", "train", "val")}, "are missing"),
        ({**good, "val": "images/nowhere"}, "images/nowhere"),
        ({**good, "val": "labels/val"}, "no images for val"),
    ]
    for content, words in cases:
        open("data.yaml", "w").write(yaml.safe_dump(content))
        assert words in refused("train", "--data", "data.yaml", "--cfg", "yolov5n-ema.yaml", "--weights", "")


@pytest.mark.parametrize(
    "names, words",
    [
        ("[yes, no, maybe]", "YAML reads as a boolean"),
        ("[a, a, b]", "names has 'a' twice"),
        ("[a, null, c]", "None in names is not a class name"),
        ('{"0": a, "1": b, "2": c}', "names must number its classes from 0"),
        ("[2020-01-01, b, c]", "it must be text"),
    ],
)
def test_names_that_are_none(refused, tiny_set, own_folder, names, words):
    text = tiny_set.read_text().replace("names: [disc, box, cross]", f"names: {names}")
    (own_folder / "odd.yaml").write_text(text)
    assert words in refused("train", "--data", "odd.yaml", "--weights", "")


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--epochs", 0], "--epochs 0: must be 1 or more"),
        (["--batch-size", 0], "--batch-size 0: must be 1 or more"),
        (["--batch-size", -1], "--batch-size -1: must be 1 or more"),
        (["--img", 0], "--imgsz 0: must be 1 or more"),
        (["--workers", -1], "--workers -1: must be 0 or more"),
        (
            ["--freeze", 27],
            "--freeze 27: nothing would be trained, because the model's last row is 26; --freeze 26",
        ),
    ],
)
def test_numbers_with_which_nothing_could_be_trained(refused, tiny_set, package_root, flags, words):
    if flags[1] == -1 and "batch_size == -1" in (package_root / "train.py").read_text():
        pytest.skip("this release looks for a batch size")
    cfg = ["--cfg", "yolov5n-ema.yaml"] if flags[0] == "--freeze" else []
    assert words in refused(*train(tiny_set, *cfg, *flags))


def test_freezing_all_of_a_checkpoint(refused, tiny_set, trained):
    message = refused("train", "--data", tiny_set, "--weights", trained, "--freeze", 99)
    assert "--freeze 99: nothing would be trained, because the model's last row is 26" in message


@pytest.mark.parametrize(
    "names, texts",
    [
        ("[0, 1, 2]", ["0", "1", "2"]),
        ("{0: a, 1: b, 2: 7}", ["a", "b", "7"]),
        ("[1.5, b, c]", ["1.5", "b", "c"]),
    ],
)
def test_names_that_yolov5_gets_as_texts_and_with_their_number(tiny_set, own_folder, names, texts):
    from yolov5.utils.general import check_dataset

    text = tiny_set.read_text().replace("names: [disc, box, cross]", f"names: {names}")
    (own_folder / "data.yaml").write_text(text.replace("nc: 3\n", ""))
    found = check_dataset("data.yaml")
    assert found["nc"] == 3
    assert (list(found["names"].values()) if isinstance(found["names"], dict) else found["names"]) == texts


def test_images_of_another_size_than_an_exported_model_takes(own_folder, tmp_path):
    import numpy as np
    import onnx
    import onnxruntime

    from yolov5_ema.scripts.mistakes import errors_as_user_errors

    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 64, 96]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "g", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 12)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with (
        yolov5_ema.installed() as engine,
        pytest.raises(yolov5_ema.UserError, match=r"batch size 1, not 2, height 64, not 32\. Give --img its size"),
        errors_as_user_errors(engine),
    ):
        session.run(None, {"x": np.zeros((2, 3, 32, 96), np.float32)})


def test_a_class_beyond_those_of_the_data_set():

    from yolov5_ema.scripts.mistakes import errors_as_user_errors

    with (
        yolov5_ema.installed() as engine,
        pytest.raises(yolov5_ema.UserError, match="'yolov5-ema data stats'"),
    ):
        matrix = engine.module("utils.metrics").ConfusionMatrix(nc=2)
        box = torch.tensor([[8.0, 8, 40, 40]])
        with errors_as_user_errors(engine):
            matrix.process_batch(
                torch.cat([box, torch.tensor([[0.9, 0]])], 1), torch.cat([torch.tensor([[7.0]]), box], 1)
            )


def test_an_ending_in_capitals(refused, tiny_set, trained, own_folder):
    (own_folder / "best.PT").write_bytes(trained.read_bytes())
    for command in (
        ("val", "--data", tiny_set),
        ("detect", "--source", tiny_set.parent / "images/test"),
        ("export",),
    ):
        assert "rename it to best.pt" in refused(command[0], "--weights", "best.PT", *command[1:])


def test_labels_of_a_class_that_is_not_there_and_the_folders_of_others(refused, tiny_set, own_folder):
    (own_folder / "runs/train/exp").mkdir(parents=True)
    (own_folder / "runs/train/exp/opt.yaml").write_text("someone else's\n")
    shutil.copytree(tiny_set.parent, own_folder / "set", ignore=shutil.ignore_patterns("*.cache"))
    (own_folder / "set/labels/train/train0.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    content = {**yaml.safe_load(tiny_set.read_text()), "path": str(own_folder / "set")}
    open("data.yaml", "w").write(yaml.safe_dump(content))
    (own_folder / "set/labels/train.cache").touch()  # YOLOv5 writes one there in any case
    message = refused(*train("data.yaml", "--cfg", "yolov5n-ema.yaml"))
    assert "Label class 7 exceeds nc=3" in message
    assert (own_folder / "runs/train/exp/opt.yaml").read_text() == "someone else's\n"


def test_empty_image_folder(refused, own_folder, trained):
    (own_folder / "empty").mkdir()
    message = refused("detect", "--weights", trained, "--source", "empty")
    assert "--source empty: no images or videos" in message
    assert "no such file or folder" in refused("detect", "--weights", trained, "--source", "nowhere.jpg")
    assert "no file matches" in refused("detect", "--weights", trained, "--source", "empty/*.jpg")


def test_unreadable_image(refused, own_folder, trained):
    (own_folder / "bad.jpg").write_bytes(b"this is no picture")
    message = refused("detect", "--weights", trained, "--source", "bad.jpg", "--img", 64)
    assert "bad.jpg" in message
    assert not (own_folder / "runs/detect/exp").exists()


def test_run_folder_not_writable(refused, tiny_set, own_folder, trained):
    (own_folder / "afile").write_text("kept")
    message = refused(*train(tiny_set, "--cfg", "yolov5n-ema.yaml", "--project", "afile/runs"))
    assert "cannot write to the run folder" in message and "afile" in message
    assert "cannot write" in refused("val", "--data", tiny_set, "--weights", trained, "--project", "afile")
    assert (own_folder / "afile").read_text() == "kept"


def test_no_yolov5(refused):
    assert "no such folder for --yolov5" in refused("doctor", "--yolov5", "nowhere")


def test_unknown_command_and_plugin(refused):
    assert "no command 'trian'; did you mean train?" in refused("trian")
    assert "--plugin no_such_module: cannot import it" in refused("blocks", "--plugin", "no_such_module")


@pytest.mark.parametrize("line", [("--trust", "info"), ("run", "--trust", "s.py"), ("run", "--confl", "ours", "s.py")])
def test_shortened_flags_of_ours_are_named(refused, line):
    flag = next(word for word in line if word.startswith("--"))
    message = refused(*line)
    assert f"no flag {flag!r} here" in message and "--trust-checkpoint, --quiet, --verbose, each in full" in message


def test_a_missing_yaml_gets_the_advice_of_its_kind(refused):
    cfg, data = (refused("train", flag, "no.yaml") for flag in ("--cfg", "--data"))
    assert "'yolov5-ema cfg' writes model YAMLs" in cfg and "'yolov5-ema cfg'" not in data
    assert "--data no.yaml: no such file here" in data and "names the folders of images" in data


def test_what_a_classifier_is_trained_from_is_looked_for_here(package_root, own_folder):
    """YOLOv5 itself looks in its own folder."""
    (own_folder / "set").mkdir()
    (own_folder / "d.pt").touch()
    opt = argparse.Namespace(model="d.pt", data="set")
    preflight.resolve_names(opt, engine_at(package_root), "classify.train")
    assert (opt.model, opt.data) == (str(own_folder / "d.pt"), str(own_folder / "set"))
    opt = argparse.Namespace(model="resnet50", data="imagenette")
    preflight.resolve_names(opt, engine_at(package_root), "classify.train")
    assert (opt.model, opt.data) == ("resnet50", "imagenette")


def test_tensorflow_formats_of_a_model_with_blocks(refused, trained):
    message = refused("export", "--weights", trained, "--include", "tflite")
    assert "tflite" in message and "EMA" in message and "onnx" in message


def test_info_of_what_is_no_model(refused, tiny_set):
    assert "'depth_multiple' is missing" in refused("info", tiny_set)
    assert "no such file" in refused("info", "nowhere.yaml")


def test_yolov5s_own_parser_refuses_unknown_flags(refused):
    message = refused("train", "--no-such-flag")
    assert "train: unrecognized arguments: --no-such-flag" in message and "usage" not in message


@pytest.mark.parametrize("command", ["train", "val", "detect", "export"])
def test_settings_as_the_command_of_ultralytics_takes_them(refused, command):
    message = refused(command, "data=x.yaml", "epochs=3")
    assert "'data=x.yaml'" in message and "--data x.yaml" in message and "usage" not in message
