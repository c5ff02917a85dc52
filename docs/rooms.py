"""The rooms (subpackages) of the package and their imports, read from the source.

``python docs/rooms.py`` draws them into ``docs/images/rooms.svg``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "yolov5_ema"
# from top to bottom: a room imports from rooms below it, and from files that are in no room
ROOMS = (
    *(
        "cli",
        "reporting",
        "paper",
        "explain",
        "comparing",
        "detecting",
        "classification",
        "scripts",
        "engine",
    ),
    *("checkpoints", "cfgs", "upstream", "weights", "evaluation", "data", "blocks", "kernels"),
)
LARGEST_SHARE = 0.13
Imports = Mapping[str, set[str]]


def room_of(module: str, rooms: tuple[str, ...] = ROOMS) -> str | None:
    """The room of a module such as ``yolov5_ema.cli.main``; None for a file that is in no room."""
    name = [*module.split("."), ""][1]
    return name if name in rooms else None


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """The files of a package by the names of their modules."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(package: Path = PACKAGE) -> dict[str, set[str]]:
    """For each module the modules of the package that it imports, anywhere in the file.

    The package itself (``import yolov5_ema``) is left out, because it imports its public names only when they are used.
    """
    files = modules(package)
    graph = {name: set(_imported(file, files)) - {name, package.name} for name, file in files.items()}
    graph.pop(package.name)
    return graph


def _imported(file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"{file}: line {node.lineno}: relative import")
        base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            name = base + alias.name
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name:
                yield name


def upward(graph: Imports, rooms: tuple[str, ...] = ROOMS) -> list[str]:
    """Imports that lead from a room to one above it, or from a file outside the rooms into one."""
    height = {room: len(rooms) - place for place, room in enumerate(rooms)}
    wrong = []
    for module, imported in graph.items():
        own = room_of(module, rooms)
        for other in imported:
            its = room_of(other, rooms)
            if its and its != own and height[its] > height.get(own or "", 0):
                wrong.append(f"{module} imports {other}")
    return sorted(wrong)


def circles(graph: Imports) -> list[list[str]]:
    """Groups of modules in which each imports itself through others (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in sorted(graph.get(module, ())):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            group = stack[stack.index(module) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def lines(package: Path = PACKAGE) -> dict[str, int]:
    """The number of lines that are not blank, by room; files outside the rooms count under an empty name."""
    counted: dict[str, int] = {}
    for name, file in modules(package).items():
        room = room_of(name) or ""
        filled = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        counted[room] = counted.get(room, 0) + len(filled)
    return counted


def arrows(graph: Imports, rooms: tuple[str, ...] = ROOMS) -> dict[str, list[str]]:
    """For each room those that it imports from, without those that it also reaches through others."""
    direct: dict[str, set[str]] = {room: set() for room in rooms}
    for module, imported in graph.items():
        own = room_of(module, rooms)
        found = {room_of(other, rooms) for other in imported} - {None, own}
        direct.get(own or "", set()).update(room for room in found if room)
    below: dict[str, set[str]] = {}
    for room in reversed(rooms):
        below[room] = direct[room].union(*(below[other] for other in direct[room]))
    return {
        room: [one for one in rooms if one in direct[room] and not any(one in below[o] for o in direct[room])]
        for room in rooms
    }


_WIDTH, _HEIGHT, _ACROSS, _DOWN = 124, 34, 160, 84


def picture(graph: Imports, rooms: tuple[str, ...] = ROOMS) -> str:
    """An SVG of the rooms, each above all rooms that it imports from, with an arrow to the nearest of them."""
    leads_to = arrows(graph, rooms)
    level: dict[str, int] = {}
    for room in reversed(rooms):
        level[room] = 1 + max((level[other] for other in leads_to[room]), default=-1)
    rows = [[room for room in rooms if level[room] == number] for number in range(max(level.values()), -1, -1)]
    widest = max(map(len, rows))
    middle = {
        room: ((widest - len(row)) * _ACROSS / 2 + (place + 0.5) * _ACROSS, (number + 0.5) * _DOWN)
        for number, row in enumerate(rows)
        for place, room in enumerate(row)
    }
    parts = [_arrow(middle[room], middle[other]) for room in rooms for other in leads_to[room]]
    parts += [_box(room, *middle[room]) for room in rooms]
    size = f"{widest * _ACROSS} {len(rows) * _DOWN}"
    style = "rect{fill:#eef3fb;stroke:#3d5a9e}path{fill:none;stroke:#8a93a5}"
    style += "text{font:14px sans-serif;text-anchor:middle}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}">',
            f"<style>{style}</style>",
            *parts,
            "</svg>\n",
        ]
    )


def _box(room: str, x: float, y: float) -> str:
    corner = f'x="{x - _WIDTH / 2:g}" y="{y - _HEIGHT / 2:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"'
    return f'<rect {corner}/><text x="{x:g}" y="{y + 5:g}">{room}</text>'


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (to_x, to_y) = (start[0], start[1] + _HEIGHT / 2), (end[0], end[1] - _HEIGHT / 2)
    bend = (to_y - y) / 2
    head = f"M{to_x - 4:g} {to_y - 8:g}L{to_x:g} {to_y:g}L{to_x + 4:g} {to_y - 8:g}"
    return f'<path d="M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y:g}{head}"/>'


PICTURE = Path(__file__).resolve().parent / "images" / "rooms.svg"

if __name__ == "__main__":
    PICTURE.write_text(picture(imports()), encoding="utf-8")
