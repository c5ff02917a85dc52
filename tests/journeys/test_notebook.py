"""In a notebook: a real kernel, YOLOv5 called from Python, and workers that are forked or started from scratch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

START = """
import multiprocessing
multiprocessing.set_start_method({method!r}, force=True)
import yolov5_ema
yolov5_ema.install()
from yolov5 import train
"""
TRAIN = """
train.run(data={data!r}, cfg=str(yolov5_ema.resources.models_dir() / "yolov5n-ema.yaml"), weights="", imgsz=64,
          batch_size=4, epochs=1, workers=2, noautoanchor=True)
"""
DETECT = """
model = yolov5_ema.load("runs/train/exp/weights/best.pt")
results = model({image!r}, size=64)
print(type(model).__name__, len(results.xyxy), results.xyxy[0].shape[1])
"""


def run_cells(folder: Path, *sources: str) -> list[str]:
    """Run cells one after the other in a kernel of this Python; returns what each of them printed."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    manager = AsyncKernelManager(kernel_name="python3")
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager._kernel_spec = KernelSpec(argv=command, env={"PYTHONPATH": str(REPOSITORY)})
    client = nbclient.NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return ["".join(out.get("text", "") for out in cell.outputs) for cell in notebook.cells]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_training_and_detecting(method, tiny_set, tmp_path):
    image = str(tiny_set.parent / "images/test/test0.jpg")
    _, trained, detected = run_cells(
        tmp_path,
        START.format(method=method),
        TRAIN.format(data=str(tiny_set)),
        DETECT.format(image=image),
    )
    assert "1 epochs completed" in trained
    assert "AutoShape 1 6" in detected
    assert (tmp_path / "runs/train/exp/results.csv").read_text().count("\n") == 2
