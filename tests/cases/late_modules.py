"""What stands in for modules that are imported late, in a process of its own."""

from __future__ import annotations

import sys
from typing import Any


def compiler() -> None:
    """Use torchvision, and compute on the meta device; print each time whether the compiler of torch is in memory."""
    import torch

    from yolov5_ema.late_modules import compiler_of_torchvision, standing_in, without_compiler

    def compute() -> torch.Size:
        x = torch.zeros(2, 3, device="meta")
        return torch.add(x, torch.ones(3, device="meta"), alpha=2).shape

    def is_there() -> bool:
        return hasattr(sys.modules.get("torch._dynamo"), "__file__")

    with standing_in(compiler_of_torchvision()):
        import torchvision
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist() == [1]
    there = [is_there()]
    with without_compiler():
        assert compute() == (2, 3)
        there.append(is_there())
    there.append("torch._dynamo" in sys.modules)
    assert compute() == (2, 3)
    there.append(is_there())
    assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
    assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [boxes], 2).eq(1).all()
    with without_compiler():
        assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2.0, 2.0]
    print(*there)


def others_in_the_block() -> None:
    """What else is asked of a stand-in is that of the real module, which takes its place."""
    from yolov5_ema.late_modules import Late, standing_in

    with standing_in(Late("wave", is_package=False), Late("json", is_package=True), Late("email", is_package=True)):
        import email.message
        import wave

        print("chunk" in sys.modules, wave.open.__name__, email.message.Message.__name__, sys.modules["wave"] is wave)
    import wave as real

    print(real.__file__ is not None, real is sys.modules["wave"], "email.message" in sys.modules)


def names_of_the_module() -> None:
    """What users ask of a module that they got from another one, when nobody has imported it yet."""
    from unittest import mock

    from yolov5_ema.late_modules import Late, standing_in

    late = Late("wave", is_package=False)
    with standing_in(late):
        print(hasattr(late, "__file__"))
    print((late.__file__ or "").endswith("wave.py"), "Wave_read" in dir(late))
    import wave

    before = wave.Wave_read
    with mock.patch.object(late, "Wave_read", None):
        assert wave.Wave_read is None
    print(wave.Wave_read is before)


def of_yolov5(how: str) -> None:
    """Import YOLOv5; then pandas and matplotlib, by ``user``, by ``yolov5``, or by the user ``after`` an uninstall."""
    import pickle

    import yolov5_ema

    engine = yolov5_ema.install()
    assert not {"pandas", "matplotlib", "matplotlib.pyplot", "seaborn", "requests"} & set(sys.modules)
    plots, general = engine.module("utils.plots"), engine.module("utils.general")
    if how == "yolov5":
        assert general.pd.options.display.max_columns == 10
        assert plots.matplotlib.rcParams["font.size"] == 11
        plots.plt.close(plots.plt.figure())
    if how == "after":
        yolov5_ema.uninstall()
    import pandas.core
    from matplotlib import pyplot

    assert [sys.modules[name].__file__ is not None for name in ("pandas", "matplotlib", "matplotlib.pyplot")]
    frame = general.pd.DataFrame({"x": [1]})
    assert type(frame) is pandas.DataFrame and pickle.loads(pickle.dumps(frame)).equals(frame)
    assert plots.plt.figure is pyplot.figure and "exec_module" not in vars(pandas.__spec__.loader)
    print(pandas.options.display.max_columns, pyplot.rcParams["font.size"], pyplot.get_backend().lower())
    # what was set since then stays, whoever sets it
    pandas.options.display.max_columns = 3
    general.pd.options.display.min_rows = 4
    pyplot.rc("font", size=7)
    plots.matplotlib.use("svg")
    plots.plt.own = 5
    assert vars(pyplot)["own"] == 5
    assert plots.matplotlib.rcParams["font.size"] == 7 and pyplot.get_backend() == "svg"
    assert (general.pd.options.display.max_columns, pandas.options.display.min_rows) == (3, 4)


def kept_for_a_module_that_fails() -> None:
    """What is kept for a module waits until an import of it succeeds."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from yolov5_ema.late_modules import KeptAttributes, Late, spec_with_kept

    class Finder:
        def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
            return spec_with_kept(fullname, path, target)

    with TemporaryDirectory() as folder:
        file = Path(folder, "kept_late.py")
        file.write_text("raise OSError\n")
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
        sys.meta_path.insert(0, Finder())
        module = Late("kept_late", is_package=False)
        KeptAttributes(module, "colors.dark").red = 5
        for _ in range(2):
            try:
                import kept_late
            except OSError:
                print("refused")
                file.write_text("class colors:\n    class dark:\n        red = 1\n")
                sys.path_importer_cache.clear()
                sys.modules.pop("kept_late", None)
        print(kept_late.colors.dark.red, module.colors is kept_late.colors, spec_with_kept("kept_late"))
