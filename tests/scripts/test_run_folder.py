"""The run folders of YOLOv5's own scripts are removed if the script was refused before it had results."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
from made_files import files_below, write

from yolov5_ema.engine.shim import installed
from yolov5_ema.errors import UserError
from yolov5_ema.scripts.run_folder import WatchedRunFolder
from yolov5_ema.upstream.patching import Patches


@pytest.fixture(scope="module")
def increment_path(package_root):
    with installed(package_root):
        yield importlib.import_module("yolov5.utils.general").increment_path


@pytest.fixture
def script(increment_path):
    """A module with YOLOv5's own `increment_path`."""
    module = ModuleType("script")
    module.increment_path = increment_path
    return module


def test_a_refused_script_removes_settings_and_empty_folders_only(script, tmp_path):
    project = tmp_path / "runs/train"
    with pytest.raises(UserError), WatchedRunFolder.watched(script, Patches()).removed_if_refused():
        made = script.increment_path(project / "exp")
        (made / "weights").mkdir()
        write(made / "opt.yaml", made / "events.out.tfevents.1", project / "other/opt.yaml")
        raise UserError("no labels")
    assert files_below(tmp_path) == ["runs/train/other/opt.yaml"] and not made.exists()


@pytest.mark.parametrize("name", ["results.csv", "weights/last.pt", "nested/opt.yaml"])
def test_a_refused_script_leaves_results(script, tmp_path, name):
    with pytest.raises(UserError), WatchedRunFolder.watched(script, Patches()).removed_if_refused():
        made = script.increment_path(tmp_path / "exp")
        write(made / "opt.yaml", made / name)
        raise UserError("refused late")
    assert files_below(made) == sorted(["opt.yaml", name])


def test_two_scripts_that_find_one_name_free_get_a_folder_each(script, tmp_path):
    real = script.increment_path
    quicker = []

    def raced(path, **kwargs):
        found = real(path, **kwargs)
        if not quicker:
            write(found / "opt.yaml")  # another process makes it, and has not finished its settings
            quicker.append(found)
        return found

    script.increment_path = raced
    with pytest.raises(UserError), WatchedRunFolder.watched(script, Patches()).removed_if_refused():
        assert script.increment_path(tmp_path / "exp") == tmp_path / "exp2"
        raise UserError("no labels")
    assert [path.name for path in tmp_path.iterdir()] == ["exp"] and files_below(tmp_path) == ["exp/opt.yaml"]


def test_other_ranks_make_and_remove_nothing(script, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError), WatchedRunFolder.watched(script, Patches()).removed_if_refused():
        write(script.increment_path(tmp_path / "exp") / "opt.yaml")  # by rank 0
        raise UserError("rank 1 fails")
    assert files_below(tmp_path) == ["exp/opt.yaml"]
