"""In which engines and runtimes the attention blocks work, as `benchmarks/block_support.py` tested them.

Its results are in ``block_support.json``. For each block, engine and runtime they hold a number, which is how far the
runtime's output was from torch's, relative to the largest value; or a text, which says why there was none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yolov5_ema.blocks.registry import block_info
from yolov5_ema.reading import read_json

Outcome = float | str
"""How far an output is from torch's, relative to the largest value; or why there is none, or a wrong one."""

Support = Mapping[str, Mapping[str, Outcome]]
"""The outcomes of a block by engine and runtime, each named with its version."""

FILE = Path(__file__).with_name("block_support.json")
YES, NO, PARTLY, UNKNOWN = "yes", "no", "partly", "not tested"


def how_tested() -> str:
    """What was built, exported and compared, in words."""
    return str(_content()["how"])


def support_of(block: str) -> Support:
    """What was found for a block; empty for one that was not tested, such as one of the user's.

    Raises:
        ValueError: there is no such block.
    """
    is_ours = block_info(block).cls.__module__.startswith("yolov5_ema.")
    found: Support = _content()["blocks"].get(block, {}) if is_ours else {}
    return found


def verdict(outcomes: Iterable[Outcome]) -> str:
    """Whether all outcomes are right: ``yes``, ``no``, ``partly``; ``not tested`` if there are none."""
    are_right = {not isinstance(outcome, str) for outcome in outcomes}
    if len(are_right) == 2:
        return PARTLY
    return {True: YES, False: NO}[are_right.pop()] if are_right else UNKNOWN


def table_of(supports: Mapping[str, Support]) -> list[list[str]]:
    """A table of verdicts, one row for each block and one column for each runtime; its first row holds the heads."""
    tested = [found for support in supports.values() for found in support.values()]
    runtimes = list(dict.fromkeys(name for found in tested for name in found))
    rows = [[block, *(verdict(_outcomes(support, name)) for name in runtimes)] for block, support in supports.items()]
    return [["block", *runtimes], *rows]


def reasons(supports: Mapping[str, Support]) -> list[str]:
    """A line for each block and reason for which a runtime does not work, with the engines and runtimes in it."""
    where: dict[tuple[str, str], dict[str, list[str]]] = {}
    for block, support in supports.items():
        for engine, found in support.items():
            for runtime, outcome in found.items():
                if isinstance(outcome, str):
                    where.setdefault((block, outcome), {}).setdefault(runtime, []).append(engine)
    return [
        f"{block}, {'; '.join(f'{runtime} with {_listed(engines)}' for runtime, engines in found.items())}: {reason}"
        for (block, reason), found in where.items()
    ]


def _listed(engines: list[str]) -> str:
    return " and ".join(engines) if len(engines) < 3 else f"{', '.join(engines[:-1])} and {engines[-1]}"


def _outcomes(support: Support, runtime: str) -> list[Outcome]:
    return [found[runtime] for found in support.values() if runtime in found]


@functools.cache
def _content() -> Any:
    return read_json(FILE)
