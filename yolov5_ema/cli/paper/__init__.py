"""``yolov5-ema paper``: check the paper's tables and Figure 1, and train its detectors with and without a block."""

from __future__ import annotations

from yolov5_ema.cli.command import Group

COMMAND = Group(
    "paper",
    "check the paper's tables and Figure 1, and train its detectors with the control it lacks",
    __name__,
    ("tables", "figure1", "recipe"),
    closing="The paper is arXiv 2305.13563. tables and figure1 need no data set. Each has a --help.",
    alone=2,
)
