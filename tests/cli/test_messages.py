"""Which messages of the library commands show, and where."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import yolov5_ema
from yolov5_ema.cli._messages import messages_shown
from yolov5_ema.cli.main import main

LOGGER = logging.getLogger("yolov5_ema.somewhere")


def say_all() -> None:
    LOGGER.debug("found %s", "it")
    LOGGER.info("a remark")
    LOGGER.warning("a warning")


@pytest.mark.parametrize(
    "flags, out, err",
    [
        ({}, "a remark\n", "a warning\n"),
        ({"quiet": True}, "", "a warning\n"),
        ({"verbose": True}, "a remark\n", "found it\na warning\n"),
        ({"quiet": True, "verbose": True}, "", "a warning\n"),
    ],
)
def test_remarks_go_to_output_and_warnings_to_errors(flags, out, err, capsys):
    library = logging.getLogger("yolov5_ema")
    before = library.level, library.propagate, [*library.handlers]
    with messages_shown(**flags):
        say_all()
    assert capsys.readouterr() == (out, err)
    assert (library.level, library.propagate, library.handlers) == before
    say_all()
    assert capsys.readouterr() == ("", "")


def test_a_message_is_shown_once_whoever_listens_too(capsys):
    """A command within a command; the handler that YOLOv5 adds to the root logger; a handler of the user."""

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record.getMessage())

    kept: list[str] = []
    library, root, mine, roots = (
        logging.getLogger("yolov5_ema"),
        logging.getLogger(),
        Kept(),
        logging.StreamHandler(),
    )
    library.addHandler(mine)
    root.addHandler(roots)
    try:
        with messages_shown(), messages_shown():
            say_all()
    finally:
        library.removeHandler(mine)
        root.removeHandler(roots)
    assert capsys.readouterr() == ("a remark\n", "a warning\n") and kept == ["a remark", "a warning"]


def test_flags_stand_anywhere(own_folder, capsys):
    (own_folder / "odd.yaml").write_text(
        "nc: 2\ndepth_multiple: 1.0\nwidth_multiple: 1.0\nanchors: [[10, 13]]\n"
        "backbone: [[-1, 1, Conv, [8, 3, 2]], [-1, 1, Conv, [8, 3, 2]], [0, 1, Conv, [8, 3, 2]]]\n"
        "head: [[[2], 1, Detect, [nc, anchors]]]\n"
    )
    for line in ("--verbose info odd.yaml", "info odd.yaml --verbose", "info --verbose odd.yaml"):
        assert main([*line.split(), "--img", "64"]) == 0
        out, err = capsys.readouterr()
        assert "YOLOv5: YOLOv5 " in err and "--cfg odd.yaml: odd.yaml" in err and "parameters" in out
        assert "yolov5-ema: warning: odd.yaml: row 1 (Conv) is read by nothing" in err
    assert main(["info", "odd.yaml", "--img", "64", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert "is read by nothing" in err and "YOLOv5: " not in err and "parameters" in out


def test_as_a_library_the_package_is_silent():
    code = "import logging, yolov5_ema; logging.getLogger('yolov5_ema.x').warning('a warning')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger(yolov5_ema.__name__).handlers)
