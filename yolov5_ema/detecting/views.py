"""An image and its overlapping windows as images for a detector: how ``predict --slice`` cuts, and what it finds.

`yolov5_ema.scripts.sliced` does the same for YOLOv5's detect, and `yolov5_ema.scripts.yolo_sliced` for that of
ultralytics; the ranks and the merging of the boxes are those of `yolov5_ema.scripts.window_views`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from yolov5_ema.data.slicing import Window, windows
from yolov5_ema.scripts.window_views import (
    BATCH,
    Ranked,
    from_letterbox,
    merged,
    rank_in_image,
    rank_in_window,
    suppressed_by_rank,
    to_letterbox,
    to_native,
)


@dataclass(frozen=True)
class Slicing:
    """How images are cut.

    Attributes:
        size: the width and height of a window in pixels of the image.
        overlap: the share of a window that the next one repeats.
        at_once: the number of windows of an image that detect passes to a torch model together.
    """

    size: int
    overlap: float
    at_once: int = BATCH

    def windows(self, shape: tuple[int, int]) -> list[Window]:
        """The windows of an image of this height and width; none, if it is not larger than a window."""
        found = windows(shape[1], shape[0], self.size, self.overlap)
        return found if len(found) > 1 else []


@dataclass(frozen=True, eq=False)
class Cut:
    """An image that is cut into windows.

    Attributes:
        shape: its height and width in pixels.
        boxed_shape: the height and width of what the model sees of the whole image.
        windows: at least two.
    """

    shape: tuple[int, int]
    boxed_shape: tuple[int, int]
    windows: Sequence[Window]

    @property
    def gain_and_pad(self) -> tuple[float, float, float]:
        """The factor from pixels of the image to those of the model, and the left and top border in the latter.

        As YOLOv5's ``scale_coords`` computes them; what its ``letterbox`` says can differ by rounding.
        """
        (height, width), (tall, wide) = self.shape, self.boxed_shape
        gain = min(tall / height, wide / width)
        return gain, (wide - width * gain) / 2, (tall - height * gain) / 2

    def merged(self, found: Sequence[Ranked], *, agnostic: bool, max_det: int) -> torch.Tensor:
        """What is found in the whole image and then in each window, merged: (n, 6), see `window_views.merged`."""
        return merged(found, agnostic=agnostic, max_det=max_det)


@dataclass(frozen=True)
class View:
    """An image that was cut, or one of its windows.

    Attributes:
        cut: the image.
        window: the window; None for the whole image.
    """

    cut: Cut
    window: Window | None = None

    @property
    def is_last(self) -> bool:
        """Whether it is the last view of its image; the whole image is the first."""
        return self.window == self.cut.windows[-1]

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The window in an image of shape (H, W, 3)."""
        if self.window is None:
            return image
        left, top, right, bottom = self.window
        return image[top:bottom, left:right]

    def suppressed(
        self,
        rows: torch.Tensor,
        gain: float,
        pad: tuple[float, float],
        suppress: Callable[..., Sequence[torch.Tensor]],
    ) -> Ranked:
        """What YOLOv5's suppression keeps of its raw predictions, with ranks, in pixels of the model's whole image.

        Args:
            rows: (n, 5 + classes) of x, y, w, h in pixels of the model's view, and confidences.
            gain: the factor from pixels of the view to those of the model.
            pad: the left and top border in the latter.
            suppress: the suppression, see `window_views.suppressed_by_rank`.
        """
        cut = self.cut
        if self.window is None:
            rank = rank_in_image(from_letterbox(rows, cut.gain_and_pad), cut.windows, cut.shape)
            return suppressed_by_rank(rows, rank, suppress)
        native = to_native(rows, self.window, gain, pad)
        rank = rank_in_window(native, self.window, cut.shape)
        return suppressed_by_rank(to_letterbox(native, cut.gain_and_pad), rank, suppress)

    def native(self, rows: torch.Tensor) -> Ranked:
        """Detections, (n, 6) with corners in pixels of the view, with their ranks, in pixels of the image."""
        if self.window is None:
            return Ranked(rows, rank_in_image(rows, self.cut.windows, self.cut.shape))
        left, top, _, _ = self.window
        moved = rows + rows.new_tensor([left, top, left, top, 0, 0])
        return Ranked(moved, rank_in_window(moved, self.window, self.cut.shape))
