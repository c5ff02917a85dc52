"""Format many rows of numbers as text at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def number_texts(table: np.ndarray, between: Sequence[str]) -> list[str]:
    """Format each row as text, with ``between[0]`` before its first number and ``between[-1]`` after its last.

    Args:
        table: of shape (N, C): whole numbers >= 0 as int64, or any numbers as objects.
        between: C + 1 ASCII texts without line ends.

    Returns:
        N texts. NumPy formats whole numbers, about four times as fast as Python.
    """
    if table.dtype == object:
        template = "%s".join(part.replace("%", "%%") for part in between)
        return [template % tuple(row) for row in table.tolist()]
    texts, used = [_repeated(between[0], len(table))], [np.ones((len(table), len(between[0])), bool)]
    for column, part in zip(table.T, [*between[1:-1], between[-1] + "\n"]):
        places = 10 ** np.arange(len(str(int(column.max(initial=0)))) - 1, -1, -1)
        texts.append((column[:, None] // places % 10 + ord("0")).astype(np.uint8))
        used.append(column[:, None] >= places)
        used[-1][:, -1] = True  # a zero is a digit if it is the only one
        texts.append(_repeated(part, len(table)))
        used.append(np.ones((len(table), len(part)), bool))
    whole = np.concatenate(texts, axis=1)[np.concatenate(used, axis=1)].tobytes()
    return whole.decode("ascii").split("\n")[:-1]


def _repeated(text: str, rows: int) -> np.ndarray:
    return np.broadcast_to(np.frombuffer(text.encode("ascii"), np.uint8), (rows, len(text)))
