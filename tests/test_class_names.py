"""Class names from any source are text that leads to no path, and crops stay in their run's folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from torch import nn

from yolov5_ema.checkpoints import loading as checkpoints
from yolov5_ema.class_names import as_folder_name, class_numbers, fault_of_names, names_as_text
from yolov5_ema.data.dataset import class_names
from yolov5_ema.engine.guards.crops import place_of_crop
from yolov5_ema.errors import CheckpointError, ConfigError, UserError

FINE = [["car", "N/A", "a b", "é", "..x"], {0: "car", 5: "van"}, ("a",), [], [1, 2.5, True]]
SENSELESS = [
    *("////", None, 5, {"car"}, {"0": "car"}, {True: "car"}, {-1: "car"}, [None], [["car"]], [b"car"]),
    *([PurePosixPath("/tmp/x")], {0: PurePosixPath("../x")}, ["../x"], ["a/../../x"], ["/tmp/x"], ["..\\x"]),
    *(["\\\\host\\x"], ["a\x00b"], ["a\nb"], ["\x1b[2J"], ["\ud800"], ["x" * 1001], ["a"] * 100_001),
]


def test_what_is_a_name_and_what_is_none():
    assert [fault_of_names(names) for names in FINE] == [None] * len(FINE)
    assert all(fault_of_names(names) for names in SENSELESS)
    assert names_as_text([1, "a"]) == ["1", "a"] and names_as_text({3: 7}) == {3: "7"}
    assert fault_of_names(["a"], count=2) == "class 1 of 2 has no name"
    assert fault_of_names({1: "a"}, count=1) == "class 0 of 1 has no name"


@pytest.mark.parametrize("names", SENSELESS, ids=lambda names: repr(names)[:20])
def test_they_are_refused_in_checkpoints_and_data_yamls(engine, tmp_path, names):
    layer = nn.Identity()
    layer.names = names
    wrapper, other = nn.Identity(), nn.Identity()
    wrapper.module = layer  # the attribute of DataParallel; YOLOv5 reads model.module.names
    vars(other)["module"] = layer
    deep = nn.Sequential(nn.Sequential(layer))
    if isinstance(names, set):
        names = list(names)
    for model in (layer, wrapper, other, deep):
        torch.save({"model": model}, tmp_path / "m.pt")
        with pytest.raises(CheckpointError):
            checkpoints.load_checkpoint(tmp_path / "m.pt", engine=engine)
    is_list = isinstance(names, (list, dict)) and names is not SENSELESS[3] and names != ["car"]
    if is_list:
        with pytest.raises(ConfigError):
            class_names({"names": names}, Path("a.yaml"))


def test_numbers_in_a_checkpoint_become_text(engine, tmp_path):
    layer = nn.Identity()
    layer.names = [0, 1, "two"]
    torch.save({"model": layer}, tmp_path / "m.pt")
    assert checkpoints.load_checkpoint(tmp_path / "m.pt", engine=engine)["model"].names == ["0", "1", "two"]


def test_classes_by_name_or_number():
    names = ["cat", "1", "dog"]
    assert class_numbers(["dog", "cat", "dog"], names, Path("a.pt")) == [0, 2]
    assert class_numbers(["1", "2", "0"], ["b", "a", "1"], Path("a.pt")) == [0, 2]  # a name before a number
    assert class_numbers([1, 0], ["b", "a", "1"], Path("a.pt")) == [0, 1] and class_numbers([], names, Path("a")) == []
    for wanted in ("cow", "3", "-1", 3, -1):
        with pytest.raises(UserError, match=rf"--classes {wanted}: a\.pt knows the classes cat, 1, dog \(0 to 2\)"):
            class_numbers([wanted], names, Path("a.pt"))


def test_the_name_of_a_folder():
    assert as_folder_name("car/van\\x") == "car_van_x"
    assert [as_folder_name(name) for name in ("", ".", "..", "...")] == ["_"] * 4
    assert as_folder_name("é" * 300) == "é" * 100  # 200 bytes
    assert as_folder_name("N/A") == "N_A" and as_folder_name("person") == "person"


def test_the_place_of_a_crop():
    crops = Path("runs/exp/crops")
    assert place_of_crop(crops / "car" / "a.jpg", crops) == crops / "car" / "a.jpg"
    assert place_of_crop(crops / "car/van" / "a.jpg", crops) == crops / "car_van" / "a.jpg"
    for name in ("/etc", "../../x", "..", "a/../../../x"):
        with pytest.raises(UserError, match="Give the class another name"):
            place_of_crop(crops / name / "a.jpg", crops)


@pytest.mark.parametrize("link", ["crops", "crops/car", "crops/car/a.jpg"])
def test_a_crop_is_not_written_through_a_link(tmp_path, link):
    place = tmp_path / "run/crops/car/a.jpg"
    (tmp_path / "run" / link).parent.mkdir(parents=True)
    (tmp_path / "run" / link).symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="where a link leads out of"):
        place_of_crop(place, tmp_path / "run/crops")
    (tmp_path / "other").symlink_to(tmp_path / "whole")  # the run itself may be wherever the user wants it
    (tmp_path / "whole").mkdir()
    assert place_of_crop(tmp_path / "other/crops/car/a.jpg", tmp_path / "other/crops").name == "a.jpg"


def crop(save_one_box, save_dir: Path, name: object) -> None:
    """As ``detect`` calls it."""
    picture = np.zeros((32, 32, 3), np.uint8)
    save_one_box([4, 4, 20, 20], picture, file=save_dir / "crops" / name / "a.jpg", BGR=True)


def test_crops_stay_in_their_folder(engine, tmp_path):
    """Whatever the names are and wherever they come from; without the guard, the same call writes outside."""

    names = [str(tmp_path / "out"), "../../out", PurePosixPath("../../out")]
    for index, name in enumerate(names):
        for module in ("utils.general", "detect", "models.common"):
            guarded = engine.module(module).save_one_box
            run = tmp_path / f"{module}{index}" / "run"
            with pytest.raises(UserError, match="a crop would be written to"):
                crop(guarded, run, name)
            assert not (tmp_path / "out").exists() and not run.parent.exists()
            crop(guarded, run, "car/van")
            assert [path.relative_to(run) for path in run.rglob("*.jpg")] == [Path("crops/car_van/a.jpg")]
    (tmp_path / "run").mkdir()
    crop(guarded.__wrapped__, tmp_path / "run", names[0])
    assert os.listdir(tmp_path / "out") == ["a.jpg"]
