"""Generate a small synthetic detection set: tiny objects in cluttered aerial scenes.

Everything is drawn, so the set needs no download and its boxes are exact. Cars, planes and silos of 6 to 24 pixels are
placed on fields, roads and roofs, among bushes and litter. All classes and the litter share one palette, so that only
the shape distinguishes them.

An image depends only on the seed, its split, its number and the image size. The same arguments therefore give the same
set, and a longer set begins with the images of a shorter one.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import yaml

from yolov5_ema.data.yolo_format import label_text
from yolov5_ema.errors import UserError
from yolov5_ema.files import whole_folder, write_whole
from yolov5_ema.reading import read_bytes, read_json
from yolov5_ema.texts import counted

NAMES = ("car", "plane", "silo")
SPLITS = ("train", "val", "test")
EMPTY_EVERY = 12
"""In every split, each twelfth image shows no object."""

# Increase it with every change of the drawings, so that an older set does not count as finished.
DRAWING = 1

_MANIFEST = "demo.json"
_YAML = "demo.yaml"
_SUPERSAMPLING = 8  # subpixels for each pixel, in each direction, when an object is drawn

# Colours in BGR, shared by all classes and the litter.
_PALETTE = np.array(
    [
        (235, 235, 235), (190, 195, 200), (60, 60, 64), (48, 52, 190), (180, 90, 40),
        (60, 190, 220), (90, 150, 70), (150, 190, 215), (130, 70, 110),
    ],
    dtype=np.float32,
)  # fmt: skip

# Ground colours in BGR: grass, dry grass, soil, sand, tarmac.
_GROUND = np.array([(70, 110, 90), (95, 140, 140), (75, 95, 125), (140, 170, 185), (105, 105, 105)], dtype=np.float32)


def generate(
    directory: str | Path,
    *,
    seed: int = 0,
    train: int = 200,
    val: int = 50,
    test: int = 16,
    imgsz: int = 256,
) -> Path:
    """Draw the set into ``directory`` in YOLO's layout, unless the finished set is already there.

    Args:
        directory: where ``images/SPLIT/*.jpg``, ``labels/SPLIT/*.txt`` and ``demo.yaml`` are written. It may be
            missing, empty, or hold the finished set of the same arguments, which is then used as it is. Any other
            content is an error: nothing is overwritten.
        seed: the seed of the random scenes.
        train, val, test: the number of images in each split, at least 1.
        imgsz: the height and width of the images in pixels, 64 to 2048.

    Returns:
        The path of ``demo.yaml``, for YOLOv5's ``--data``.

    Raises:
        UserError: a number is out of range, or the directory cannot be used.
    """
    directory = Path(directory).absolute()
    plan = _Plan(seed=seed, train=train, val=val, test=test, imgsz=imgsz)
    plan.check()
    try:
        if not _is_finished(directory, plan):
            _write_all(directory, plan)
        return _write_yaml(directory)
    except OSError as error:
        raise UserError(f"cannot write the demo set to {directory}: {error}") from error


def draw_scene(seed: int, split: str, index: int, imgsz: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image of the set.

    Returns:
        The image, (imgsz, imgsz, 3) uint8 in BGR; and the labels, (n, 5) float64: class, x centre, y centre, width,
        height, the last four as fractions of the image size.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    image = _draw_ground(rng, imgsz)
    _draw_litter(rng, image)
    empty = index % EMPTY_EVERY == EMPTY_EVERY - 1
    labels = np.zeros((0, 5)) if empty else _draw_objects(rng, image)
    return _take_photo(rng, image), labels


# --- files ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The arguments that determine a set."""

    seed: int
    train: int
    val: int
    test: int
    imgsz: int

    def check(self) -> None:
        bounds = {"seed": (0, 2**31 - 1), "imgsz": (64, 2048), **dict.fromkeys(SPLITS, (1, 99_999))}
        for name, (lowest, highest) in bounds.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
                raise UserError(f"demo set: {name} must be a whole number in {lowest}..{highest}, not {value!r}")

    def manifest(self) -> dict[str, object]:
        """The content of the manifest that identifies a finished set."""
        return {"made_by": "yolov5_ema.data.demo", "drawing": DRAWING, **dataclasses.asdict(self)}

    def names(self) -> Iterator[tuple[str, int, str]]:
        """The split, the number and the file name without suffix of every image."""
        for split in SPLITS:
            for index in range(getattr(self, split)):
                yield split, index, f"{split}_{index:05d}"


def _is_finished(directory: Path, plan: _Plan) -> bool:
    """True if the same set is there, False if the folder is free; raises a UserError otherwise."""
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: give a folder for the demo set")
    if not any(directory.iterdir()):
        return False
    way_out = "give another folder, or remove this one"
    wanted, found = plan.manifest(), _read_manifest(directory)
    if found.get("made_by") != wanted["made_by"]:
        raise UserError(f"{directory} is not empty and does not hold a demo set: {way_out}")
    if found != wanted:
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        changes = ", ".join(f"{name} {found.get(name)} there, {wanted[name]} requested" for name in differing)
        raise UserError(f"{directory} holds a different demo set ({changes}): {way_out}")
    files = (file for split, _, name in plan.names() for file in _files(directory, split, name))
    lost = [file for file in files if not file.is_file()]
    if lost:
        raise UserError(f"{directory}: its demo set lacks {counted(len(lost), 'file')}, such as {lost[0]}: {way_out}")
    return True


def _read_manifest(directory: Path) -> dict[str, object]:
    try:
        found = read_json(directory / _MANIFEST)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _files(directory: Path, split: str, name: str) -> tuple[Path, Path]:
    """Image and label file."""
    return directory / "images" / split / f"{name}.jpg", directory / "labels" / split / f"{name}.txt"


def _write_all(directory: Path, plan: _Plan) -> None:
    with whole_folder(directory) as fresh:
        for kind in ("images", "labels"):
            for split in SPLITS:
                (fresh / kind / split).mkdir(parents=True)
        for split, index, name in plan.names():
            picture, labels = draw_scene(plan.seed, split, index, plan.imgsz)
            image_file, label_file = _files(fresh, split, name)
            # On some systems cv2.imwrite garbles non-ASCII names, and it fails silently.
            _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
            image_file.write_bytes(encoded.tobytes())
            label_file.write_text(label_text(labels), encoding="utf-8")
        manifest = json.dumps(plan.manifest(), indent=2)
        (fresh / _MANIFEST).write_text(manifest + "\n", encoding="utf-8")


def _write_yaml(directory: Path) -> Path:
    """Write ``demo.yaml`` unless it is already correct.

    YOLOv5 reads relative paths from its working directory, so the file holds the absolute path of its folder. If the
    set was moved, the path is corrected here.
    """
    content = {
        "path": str(directory),
        **{split: f"images/{split}" for split in SPLITS},
        "nc": len(NAMES),
        "names": list(NAMES),
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path = directory / _YAML
    if not path.is_file() or read_bytes(path) != text.encode():
        write_whole(path, text)
    return path


# --- ground ---------------------------------------------------------------------------------


def _draw_ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Terrain with fields, roads, roofs and bushes: (size, size, 3) float32 in BGR, 0 to 255."""
    low, high = _GROUND[rng.choice(len(_GROUND), 2, replace=False)]
    image = low + (high - low) * _noise(rng, size, cells=4)[..., None]
    for _ in range(rng.integers(1, 4)):
        _draw_field(rng, image)
    for _ in range(rng.integers(1, 3)):
        _draw_road(rng, image)
    for _ in range(rng.integers(0, 4)):
        _draw_roof(rng, image)
    for _ in range(rng.integers(15, 40)):
        _draw_bush(rng, image)
    texture = _noise(rng, size, cells=size // 12) + _noise(rng, size, cells=size // 4) - 1
    image += 22 * texture[..., None]
    return image


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise with ``cells`` hills along each side: (size, size) float32 around 0.5, mostly 0 to 1."""
    coarse = rng.random((cells + 3, cells + 3), dtype=np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    """``points`` (n, 2), rotated by ``angle`` radians around the origin."""
    cos, sin = math.cos(angle), math.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _paint(
    image: np.ndarray, polygon: np.ndarray, paint: np.ndarray | np.float32, opacity: float = 1, blur: int = 0
) -> None:
    """Draw an antialiased ``polygon`` (n, 2), in pixels, over ``image`` in one BGR colour or grey value."""
    size = image.shape[1::-1]
    x1, y1 = np.clip(np.floor(polygon.min(0)).astype(int) - 2, 0, size)
    x2, y2 = np.clip(np.ceil(polygon.max(0)).astype(int) + 2, 0, size)
    if x1 >= x2 or y1 >= y2:
        return
    mask = _coverage(polygon - (x1, y1), (y2 - y1, x2 - x1))
    if blur:
        mask = cv2.GaussianBlur(mask, (blur, blur), 0)
    patch = image[y1:y2, x1:x2]
    patch += (mask * np.float32(opacity / 255))[..., None] * (paint - patch)


def _coverage(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How much of each pixel ``polygon`` covers: (H, W) uint8, 255 for the whole pixel."""
    fine = np.zeros((shape[0] * _SUPERSAMPLING, shape[1] * _SUPERSAMPLING), np.uint8)
    cv2.fillPoly(fine, [np.round(polygon * _SUPERSAMPLING - 0.5).astype(np.int32)], 255)
    return cv2.resize(fine, shape[::-1], interpolation=cv2.INTER_AREA)


def _rectangle(length: float, width: float) -> np.ndarray:
    return np.array([(-length, -width), (length, -width), (length, width), (-length, width)]) / 2


def _draw_field(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw a large tilted rectangle of another ground colour, sometimes ploughed in stripes."""
    size = len(image)
    angle, middle = rng.uniform(0, math.pi), rng.uniform(0, size, 2)
    length, width = rng.uniform(0.4, 0.9, 2) * size
    tone = _GROUND[rng.integers(len(_GROUND))] + rng.uniform(-15, 15, 3)
    _paint(image, _turned(_rectangle(length, width), angle) + middle, tone.astype(np.float32), 0.8)
    if rng.random() < 0.6:
        furrow, gap = rng.uniform(2, 3), rng.uniform(5, 9)
        for across in np.arange(-width / 2 + gap, width / 2, gap):
            line = _rectangle(length, furrow) + (0, across)
            _paint(image, _turned(line, angle) + middle, (0.8 * tone).astype(np.float32), 0.5)


def _draw_road(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw a straight road across the image, with a dashed line along its middle."""
    size = len(image)
    angle, middle = rng.uniform(0, math.pi), rng.uniform(0.15, 0.85, 2) * size
    width, step = rng.uniform(0.08, 0.16) * size, rng.uniform(12, 18)
    _paint(image, _turned(_rectangle(3 * size, width), angle) + middle, np.float32(rng.uniform(80, 130)), 0.9)
    for along in np.arange(-1.5 * size, 1.5 * size, step):
        dash = _rectangle(0.45 * step, 1.4) + (along, 0)
        _paint(image, _turned(dash, angle) + middle, np.float32(215), 0.8)


def _draw_roof(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw a building from above: two halves of one colour, one of them lit."""
    size = len(image)
    length, width = rng.uniform(0.12, 0.25) * size, rng.uniform(0.08, 0.14) * size
    angle, middle = rng.uniform(0, math.pi), rng.uniform(0, size, 2)
    tone = _PALETTE[rng.integers(len(_PALETTE))] * 0.55 + 60
    for side, light in ((-1, 1.0), (1, 0.82)):
        half = _rectangle(length, width / 2) + (0, side * width / 4)
        _paint(image, _turned(half, angle) + middle, tone * np.float32(light), 0.9)


def _draw_bush(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw a dark green blob with a ragged edge, sometimes as large as the objects."""
    turns = np.sort(rng.uniform(0, 2 * math.pi, 9))
    radii = rng.uniform(2, 8) * rng.uniform(0.6, 1.2, (9, 1))
    outline = np.stack((np.cos(turns), np.sin(turns)), 1) * radii
    tone = np.array((45, 85, 60), np.float32) * np.float32(rng.uniform(0.6, 1.3))
    _paint(image, outline + rng.uniform(0, len(image), 2), tone, 0.8, blur=3)


def _draw_litter(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw sticks, slabs and scraps in the colours of the objects and of about their size."""
    for _ in range(rng.integers(12, 30)):
        paint = _PALETTE[rng.integers(len(_PALETTE))] + rng.uniform(-15, 15, 3)
        if rng.random() < 0.6:
            shape = _rectangle(rng.uniform(5, 22), rng.uniform(0.8, 2.2))
        else:
            shape = rng.uniform(-4, 4, (3, 2))
        outline = _turned(shape, rng.uniform(0, math.pi)) + rng.uniform(0, len(image), 2)
        _paint(image, outline, paint.astype(np.float32), 0.85)


# --- objects --------------------------------------------------------------------------------


def _ellipse(length: float, width: float) -> np.ndarray:
    turns = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    return np.stack((np.cos(turns) * length, np.sin(turns) * width), 1) / 2


def _car() -> list[tuple[np.ndarray, float]]:
    body = np.array([(0.5, 0.15), (0.44, 0.23), (-0.46, 0.23), (-0.5, 0.17)])
    body = np.concatenate((body, body[::-1] * (1, -1)))
    windscreen = np.array([(0.22, 0.19), (0.08, 0.15), (0.08, -0.15), (0.22, -0.19)])
    rear_window = np.array([(-0.26, 0.15), (-0.36, 0.18), (-0.36, -0.18), (-0.26, -0.15)])
    return [(body, 1.0), (windscreen, 0.25), (rear_window, 0.25)]


def _plane() -> list[tuple[np.ndarray, float]]:
    wing = np.array([(0.16, 0.0), (-0.1, 0.48), (-0.2, 0.48), (-0.08, 0.0)])
    tail = np.array([(-0.36, 0.0), (-0.46, 0.19), (-0.5, 0.19), (-0.47, 0.0)])
    halves = [(shape * (1, side), 0.88) for shape in (wing, tail) for side in (1, -1)]
    return [*halves, (_ellipse(1.0, 0.15), 1.1)]


def _silo() -> list[tuple[np.ndarray, float]]:
    return [(_ellipse(1.0, 1.0), 0.8), (_ellipse(0.72, 0.72), 1.1), (_ellipse(0.2, 0.2), 0.5)]


# The layers of each class, lowest first: a polygon (n, 2) of length 1 along x, and its shade.
_SHAPES = {"car": _car(), "plane": _plane(), "silo": _silo()}
# The shortest and the longest object of each class, in pixels.
_LENGTHS = {"car": (9.0, 21.0), "plane": (11.0, 24.0), "silo": (7.0, 18.0)}


def _draw_objects(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Draw 8 to 25 objects, fewer if the image is below 256 pixels; return labels as `draw_scene` does."""
    size = len(image)
    wanted = max(1, round(rng.integers(8, 26) * min(1.0, (size / 256) ** 2)))
    sun = rng.uniform(0, 2 * math.pi)
    classes: list[int] = []
    boxes = np.zeros((0, 4))
    for _ in range(20 * wanted):  # tries; a crowded scene may end with fewer objects
        if len(classes) == wanted:
            break
        kind = int(rng.integers(len(NAMES)))
        shortest, longest = _LENGTHS[NAMES[kind]]
        length = shortest + (longest - shortest) * rng.beta(1.3, 2.0)  # short ones are more frequent
        angle, centre = rng.uniform(0, 2 * math.pi), rng.uniform(0, size, 2)
        paint = (_PALETTE[rng.integers(len(_PALETTE))] + rng.uniform(-12, 12, 3)).astype(np.float32)
        layers = [(_turned(shape * length, angle) + centre, shade) for shape, shade in _SHAPES[NAMES[kind]]]
        outline = np.concatenate([polygon for polygon, _ in layers])
        box = np.concatenate((outline.min(0), outline.max(0)))
        inside = box.min() >= 1 and box.max() <= size - 1
        if inside and _covered(box, boxes) <= 0.15 and _stands_out(image, box, paint):
            _draw_object(image, layers, paint, shadow=_turned(np.array([0.14 * length, 0]), sun))
            classes.append(kind)
            boxes = np.concatenate((boxes, box[None]))
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return np.concatenate((np.array(classes, float).reshape(-1, 1), centres / size, sides / size), 1)


def _covered(box: np.ndarray, boxes: np.ndarray) -> float:
    """The largest intersection of ``box`` (4,) with one of ``boxes`` (n, 4), as a fraction of the smaller box."""
    if not len(boxes):
        return 0.0
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    areas = np.append(np.prod(boxes[:, 2:] - boxes[:, :2], 1), np.prod(box[2:] - box[:2]))
    return float((sides.clip(0).prod(1) / np.minimum(areas[:-1], areas[-1])).max())


def _stands_out(image: np.ndarray, box: np.ndarray, paint: np.ndarray) -> bool:
    """False if the colour is so close to the ground's colour that nobody could label the object."""
    x1, y1, x2, y2 = np.round(box).astype(int)
    return bool(np.abs(image[y1:y2, x1:x2].mean((0, 1)) - paint).max() >= 45)


def _draw_object(
    image: np.ndarray, layers: list[tuple[np.ndarray, float]], paint: np.ndarray, shadow: np.ndarray
) -> None:
    """Draw the polygons of one object, in pixels, and its shadow, shifted by (2,) pixels."""
    for polygon, _ in layers:
        _paint(image, polygon + shadow, np.float32(0), 0.35, blur=3)
    for polygon, light in layers:
        _paint(image, polygon, np.clip(paint * np.float32(light), 0, 255))


def _take_photo(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add lens blur, exposure and sensor noise: from a float32 scene to a uint8 image."""
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.6))
    image = image * rng.uniform(0.8, 1.15) + rng.uniform(-10, 10)
    image += rng.normal(0, rng.uniform(2, 5), image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
