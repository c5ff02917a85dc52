"""Charts of a report."""

from __future__ import annotations

import math

from yolov5_ema.reporting.charts import Line, line_chart


def test_a_line_of_nothing_but_nan_is_an_empty_chart():
    """The losses of a training that diverged in its first epoch."""
    for x in ((1.0, 2.0, 3.0), ()):
        svg = line_chart([Line(x, (math.nan,) * len(x))], key="a", x_label="epoch", whole_x=True)
        assert svg.startswith("<svg") and "epoch" in svg
