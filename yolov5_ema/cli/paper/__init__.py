"""``yolov5-ema paper``: compare the paper's tables and Figure 1 with the models built and measured here."""

from __future__ import annotations

from yolov5_ema.cli.command import Group

COMMAND = Group(
    "paper",
    "check the paper's tables, figure by figure, and draw its Figure 1 with your runs",
    __name__,
    ("tables", "figure1"),
    closing="What can be checked of the paper (arXiv 2305.13563) without a data set. Each has a --help.",
    alone=2,
)
