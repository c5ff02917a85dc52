"""What YOLOv5 loads of a data set, beside what this package lists."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

import yolov5_ema
from yolov5_ema.upstream.data_yaml import check_data, open_dataset
from yolov5_ema.upstream.loaders import loader_module


def loads_the_images_of_splits(folder: Path, path: str, kinds: str) -> None:
    """Compare images and labels.

    Args:
        folder: of the data set.
        path: the ``path`` of the data YAML.
        kinds: JSON: for each way to give a split, as YAML, the number of its images.
    """
    engine = yolov5_ema.install()
    general, loaders = engine.module("utils.general"), engine.module(loader_module(engine))
    file = folder / "of_kinds.yaml"
    for split, count in json.loads(kinds).items():
        entry = yaml.safe_load(split)
        file.write_text(yaml.safe_dump({"path": path, "train": entry, "val": entry, "names": ["a", "b", "c"]}))
        dataset = open_dataset(str(file), engine)
        check_data(dataset, ("train", "val"), engine)
        found = general.check_dataset(str(file))["val"]
        theirs = loaders.LoadImagesAndLabels(found, 64, 2)
        files = getattr(theirs, "im_files", None) or theirs.img_files
        ours = dataset.images("val")
        places = [str((folder / image).resolve()) for image in ours]
        assert places == [str(Path(image).resolve()) for image in files], (split, ours, files)
        assert len(ours) == count, (split, ours)
        rows = [dataset.labels(image).seen for image in ours]
        assert [len(row) for row in rows] == [len(label) for label in theirs.labels], split
        for cache in folder.rglob("*?.cache"):
            cache.unlink()
