"""The protocols again, as loops that follow their descriptions word by word: slow, but simple enough to be right."""

from __future__ import annotations

import numpy as np

from yolov5_ema.evaluation.records import Predictions, Truth

THRESHOLDS = [0.5 + 0.05 * step for step in range(10)]


def random_case(rng, images: int = 3, nc: int = 3, size: int = 200) -> list[tuple[Truth, Predictions]]:
    """Images with ties of scores, boxes over the border, half pixels, ignored regions, score-0 objects and 'others'."""
    case = []
    for number in range(images):
        count, extra = int(rng.integers(0, 9)), int(rng.integers(0, 12))
        boxes = np.concatenate([rng.integers(0, size - 40, (count, 2)), rng.integers(4, 60, (count, 2))], axis=1) * 1.0
        classes = rng.integers(0, nc, count)
        regions = np.concatenate([rng.integers(0, size, (2, 2)), rng.integers(0, 80, (2, 2))], axis=1) * 1.0
        truth = Truth(
            image=f"image{number}",
            width=size,
            height=size - 20,
            boxes=boxes,
            classes=np.where(rng.random(count) < 0.1, -1, classes),
            ignored=rng.random(count) < 0.2,
            regions=regions[: int(rng.integers(0, 3))],
        )
        near = np.repeat(boxes, 2, axis=0) + rng.integers(-8, 9, (2 * count, 4)) / 2 * (
            rng.random((2 * count, 1)) < 0.8
        )
        near[:, 2:] = np.maximum(near[:, 2:], 1)
        far = np.concatenate([rng.integers(-10, size - 10, (extra, 2)), rng.integers(11, 60, (extra, 2))], axis=1)
        labels = np.concatenate([np.repeat(classes, 2), rng.integers(-1, nc, extra)])
        labels = np.where(rng.random(len(labels)) < 0.15, rng.integers(0, nc, len(labels)), labels)
        scores = rng.integers(1, 100, len(labels)) / 100  # ties
        order = rng.permutation(len(labels))
        case.append((truth, Predictions(np.concatenate([near, far])[order], scores[order], labels[order])))
    return case


def overlap(a, b, of_first: bool = False) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (a[2] * a[3] if of_first else a[2] * a[3] + b[2] * b[3] - shared)


# --- VisDrone ---


def _round(value: float) -> int:
    return int(np.floor(value + 0.5)) if value >= 0 else -int(np.floor(-value + 0.5))


def in_region(box, truth: Truth) -> bool:
    """Counted pixel by pixel in the toolkit's mask, where pixels are numbered from 1."""
    if not len(truth.regions):
        return False
    x, y, w, h = (max(1, _round(value)) for value in box)
    x, y = min(x, truth.width), min(y, truth.height)
    count = 0
    for column in range(x + 1, min(truth.width, x + w) + 1):
        for row in range(y + 1, min(truth.height, y + h) + 1):
            for region in truth.regions:
                left, top, width, height = (max(1, value) for value in region)
                if left <= column <= left + width and top <= row <= top + height:
                    count += 1
                    break
    return count / (w * h) >= 0.5


def _matched(truth, kept, kept_objects, index, threshold, cut):
    """(score, whether it found an object) for each detection of a class that counts, in descending order of score."""
    rows = [(score, box) for box, score, label in kept[:cut] if label == index]
    rows.sort(key=lambda row: -row[0])
    objects = [box for box, label, ignored in kept_objects if label == index and not ignored]
    zeros = [box for box, label, ignored in kept_objects if label == index and ignored]
    taken, out = set(), []
    for score, box in rows:
        best, at = threshold, -1
        for number, other in enumerate(objects):
            if number not in taken and overlap(box, other) >= best:
                best, at = overlap(box, other), number
        if at >= 0:
            taken.add(at)
            out.append((score, True))
        elif not any(overlap(box, zero, of_first=True) >= threshold for zero in zeros):
            out.append((score, False))
    return out


def visdrone(case, nc: int) -> dict[str, float]:
    """The toolkit's figures in percent."""
    images = []
    for truth, found in case:
        objects = [
            (box, label, ignored)
            for box, label, ignored in zip(truth.boxes, truth.classes, truth.ignored)
            if not in_region(box, truth) and label >= 0
        ]
        rows = [row for row in zip(found.boxes, found.scores, found.classes) if not in_region(row[0], truth)]
        images.append((truth, rows, objects))
    totals = {name: [] for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100", "AR500")}
    weights = []
    for index in range(nc):
        count = sum(label == index for _, _, objects in images for _, label, _ in objects)
        holding = sum(any(label == index for _, label, _ in objects) for _, _, objects in images)
        if not holding:
            continue
        weights.append(holding)
        ap, ar = [], {cut: [] for cut in (1, 10, 100, 500)}
        for threshold in THRESHOLDS:
            for cut in ar:
                rows = [row for image in images for row in _matched(*image, index, threshold, cut)]
                rows.sort(key=lambda row: -row[0])
                ar[cut].append(100 * sum(hit for _, hit in rows) / max(1, count))
            recalls, precisions, hits = [0.0], [0.0], 0
            for number, (_, hit) in enumerate(rows, start=1):
                hits += hit
                recalls.append(hits / count)
                precisions.append(hits / number)
            recalls.append(1.0)
            precisions.append(0.0)
            area = 0.0
            for at in range(1, len(recalls)):
                area += (recalls[at] - recalls[at - 1]) * max(precisions[at:])
            ap.append(100 * area)
        for name, value in {"AP": np.mean(ap), "AP50": ap[0], "AP75": ap[5]}.items():
            totals[name].append(value)
        for cut, values in ar.items():
            totals[f"AR{cut}"].append(np.mean(values))
    return {name: float(np.average(values, weights=weights)) for name, values in totals.items()}


# --- YOLOv5 from v6.2 on ---


def yolov5(case, nc: int) -> dict[str, float]:
    """P, R, mAP50 and mAP50-95 by the rules of YOLOv5 v6.2 and later."""
    every, labels = [], []
    for truth, found in case:
        order = np.argsort(-found.scores, kind="stable")
        rows = [(found.boxes[at], found.scores[at], found.classes[at]) for at in order[:300] if found.classes[at] >= 0]
        objects = [
            (box, label)
            for box, label, ignored in zip(truth.boxes, truth.classes, truth.ignored)
            if label >= 0 and not ignored
        ]
        labels += [label for _, label in objects]
        hits = np.zeros((len(rows), 10), bool)
        for at, threshold in enumerate(THRESHOLDS):
            best_of = {}
            for number, (box, _, label) in enumerate(rows):
                pairs = [(overlap(box, o), k) for k, (o, c) in enumerate(objects) if c == label]
                pairs = [pair for pair in pairs if pair[0] >= threshold - 1e-6]
                if pairs:
                    best_of.setdefault(max(pairs)[1], number)  # the first one has the highest score
            hits[list(best_of.values()), at] = True
        every += [(score, label, hit) for (_, score, label), hit in zip(rows, hits)]
    every.sort(key=lambda row: -row[0])
    confidences = np.linspace(0, 1, 1000)
    ap, p, r = [], [], []
    for index in sorted(set(labels)):
        own = [row for row in every if row[1] == index]
        count = labels.count(index)
        if not own:
            ap.append(np.zeros(10))
            p.append(np.zeros(1000))
            r.append(np.zeros(1000))
            continue
        found = np.cumsum([hit for _, _, hit in own], axis=0)
        recall, precision = found / count, found / np.arange(1, len(own) + 1)[:, None]
        scores = np.array([score for score, _, _ in own])
        p.append(np.interp(-confidences, -scores, precision[:, 0], left=1))
        r.append(np.interp(-confidences, -scores, recall[:, 0], left=0))
        areas = []
        for at in range(10):
            x = np.concatenate([[0], recall[:, at], [1]])
            y = np.concatenate([[1], precision[:, at], [0]])
            y = [max(y[k:]) for k in range(len(y))]
            line = np.interp(np.linspace(0, 1, 101), x, y)
            areas.append(sum((line[k] + line[k + 1]) / 200 for k in range(100)))
        ap.append(np.array(areas))
    p, r, ap = np.array(p), np.array(r), np.array(ap)
    f1 = np.mean(2 * p * r / (p + r + 1e-16), axis=0)
    smooth = [np.mean([f1[min(max(k + shift, 0), 999)] for shift in range(-50, 51)]) for k in range(1000)]
    best = int(np.argmax(smooth))
    return {"P": p[:, best].mean(), "R": r[:, best].mean(), "mAP50": ap[:, 0].mean(), "mAP50-95": ap.mean()}
