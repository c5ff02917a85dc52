"""How a comparison chooses its number of seeds after it has seen the spread of the first ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from yolov5_ema import reading
from yolov5_ema.comparing.intervals import bonferroni_confidence, paired_difference
from yolov5_ema.comparing.power import seeds_for_width
from yolov5_ema.errors import UserError
from yolov5_ema.files import write_whole

FILE = "design.json"
METRIC = "map50_95"
"""The metric whose intervals are to have the width."""
_FEWEST = 3


@dataclass(frozen=True)
class Design:
    """Two stages: the spread over the first seeds decides how many seeds there are in all.

    Attributes:
        pilot: the number of seeds of the first stage.
        width: the largest width that the interval of a difference may have, from its lower to its upper end.
    """

    pilot: int
    width: float

    def seeds(self, figures: Mapping[str, Mapping[int, float]], baseline: str) -> int:
        """The number of seeds that all differences to the baseline need.

        Args:
            figures: results in `METRIC` by model and seed.
            baseline: name of the model that the others are compared with.

        Raises:
            UserError: fewer than two seeds of the first stage have results of a model and of the baseline.
        """
        others = [name for name in figures if name != baseline]
        level = bonferroni_confidence(0.95, len(others))
        return max(self._seeds_of(name, figures[name], figures[baseline], level) for name in others)

    def _seeds_of(self, name: str, model: Mapping[int, float], baseline: Mapping[int, float], level: float) -> int:
        first = {seed: value for seed, value in model.items() if seed < self.pilot}
        found = paired_difference(first, baseline, level)
        if found is None or found.sd is None:
            raise UserError(f"{name}: --until-width needs the results of at least two of the first {self.pilot} seeds")
        return max(self.pilot, seeds_for_width(self.width, found.sd, found.n, level))


def kept(folder: Path) -> Design | None:
    """The design of the comparison in a folder; None if its number of seeds is chosen in advance.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        content = reading.read_json(folder / FILE)
        found = Design(content["pilot"], content["width"])
        if type(found.pilot) is not int or found.pilot < _FEWEST or not isinstance(found.width, float):
            raise ValueError("it holds other values")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder / FILE} cannot be read: {error}. Choose another --name") from error
    return found


def begun(folder: Path, width: float, pilot: int) -> Design:
    """The design of the comparison in a folder, which is written there now if there is none.

    Args:
        folder: the comparison's folder.
        width: see `Design`.
        pilot: the number of seeds of the first stage, for a new design.

    Raises:
        UserError: the comparison has another width, or there are too few seeds.
    """
    before = kept(folder)
    if before is not None:
        if before.width != width:
            raise UserError(
                f"{folder} was begun with --until-width {before.width:g}; another width after its results were seen "
                "would make the intervals too narrow. Choose another --name"
            )
        return before
    if pilot < _FEWEST:
        raise UserError(f"--until-width needs a first stage of --seeds {_FEWEST} or more, not {pilot}")
    write_whole(folder / FILE, json.dumps(asdict(Design(pilot, width)), indent=2) + "\n")
    return Design(pilot, width)
