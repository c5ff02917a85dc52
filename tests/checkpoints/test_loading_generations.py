"""Checkpoints of every YOLOv5, written by its own code, with the class names of a clone and of the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases.loading_generations import write_checkpoints
from conftest import laid_aside, lay_out_as_clone
from fresh_process import run_in_copy

from yolov5_ema.cfgs.dry_run import quiet
from yolov5_ema.cfgs.generator import build_cfg
from yolov5_ema.checkpoints.loading import load_checkpoint
from yolov5_ema.upstream.locate import engine_at
from yolov5_ema.weights.transfer import transfer

# by default the oldest, the one that `make test` installs, and the newest
RELEASES = (
    *("4.0.14", "6.0.7", "7.0.14"),
    *(pytest.param(release, marks=pytest.mark.slow) for release in ("5.0.5", "6.1.9", "6.2.3")),
)


@pytest.fixture(scope="module")
def checkpoints(request, package_root, tmp_path_factory):
    """The files by (release, layout) of the releases that this run tests, all written in one process."""
    folder = tmp_path_factory.mktemp("generations")
    files, arguments = {}, []
    tests = [item for item in request.session.items if item.path == request.path]
    for release in sorted({item.callspec.params["release"] for item in tests if hasattr(item, "callspec")}):
        package = package_root if engine_at(package_root).version == release else laid_aside(release)
        clone = lay_out_as_clone(package, folder / release / "yolov5")
        for layout, root in (("package", package), ("clone", clone)):
            files[release, layout] = folder / f"{release}-{layout}.pt"
            arguments += [str(root), str(files[release, layout])]
    done = run_in_copy(write_checkpoints, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return files


def named_modules(file: Path) -> set[str]:
    from torch.serialization import get_unsafe_globals_in_checkpoint

    return {name.rsplit(".", 1)[0] for name in get_unsafe_globals_in_checkpoint(file) if ".yolo." in name}


@pytest.mark.parametrize("layout", ["package", "clone"])
@pytest.mark.parametrize("release", RELEASES)
def test_it_loads_and_computes_what_it_did(checkpoints, engine, release, layout):
    from yolov5.models.yolo import Model

    file = checkpoints[release, layout]
    assert named_modules(file) == {"models.yolo" if layout == "clone" else "yolov5.models.yolo"}
    checkpoint = load_checkpoint(file, engine=engine)
    assert type(checkpoint["model"]) is Model
    with torch.no_grad():
        output = checkpoint["model"](checkpoint["image"])[0]
    torch.testing.assert_close(output, checkpoint["output"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("release", RELEASES)
def test_its_weights_go_into_a_cfg_with_blocks(checkpoints, engine, release):
    from yolov5.models.yolo import Model

    with quiet():
        target = Model(build_cfg(size="n", block="EMA", nc=3))
    found = transfer(load_checkpoint(checkpoints[release, "clone"], engine=engine)["model"], target)
    assert (found.taken, found.total) == (349, 361)
    moved = [row.index for row in found.rows if row.remarks and not row.is_block]
    assert moved == ([11] if release < "6" else [])  # SPP came before the last C3 then
