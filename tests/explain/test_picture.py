"""The PNG of a picture and the page of a run."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from yolov5_ema.data.detections import Detections
from yolov5_ema.explain.layers import Layer
from yolov5_ema.explain.looks import Area, Look, Maps
from yolov5_ema.explain.page import Entry, page
from yolov5_ema.explain.picture import LEAST_SPAN, Column, _gate_scale, blended, draw, shortened


def column(title="a.pt", gate=(0.49, 0.51), size=(40, 60), words="1 detection"):
    height, width = size
    picture = np.full((height, width, 3), 128, np.uint8)
    found = Detections.of_rows(np.array([[5, 5, 25, 20, 0.9, 0]], np.float32))
    look = Look(picture, torch.zeros(1, 3, *size), Area(0, 0, width, height), lambda x: x,
                found, words, ["cat: 1, the best 0.90"])  # fmt: skip
    cam = np.zeros(size, np.float32)
    cam[5:20, 5:25] = 2
    low, high = gate
    values = np.linspace(low, high, height * width, dtype=np.float32).reshape(size)
    block = Layer("p", 0, "7", nn.Identity(), "EMA", 64, 16)
    other = Layer("q", 1, "8", nn.Identity(), None, 64, 32)
    maps = Maps(block, cam, values, (low, (low + high) / 2, high))
    return Column(title, look, {"p": maps, "q": Maps(other, cam * 0, None, None)})


def pixels(drawn):
    with Image.open(io.BytesIO(drawn.png)) as image:
        assert image.size == drawn.size
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_gate_that_hardly_varies_is_not_made_dramatic():
    scale = _gate_scale([column(gate=(0.49, 0.51))])
    assert scale.vmax - scale.vmin == pytest.approx(LEAST_SPAN) and (scale.vmax + scale.vmin) / 2 == pytest.approx(0.5)
    wide = _gate_scale([column(gate=(0.49, 0.51)), column(gate=(0.1, 0.9))])
    assert (wide.vmin, wide.vmax) == pytest.approx((0.1, 0.9))


def test_gates_are_drawn_in_the_colours_of_one_scale():
    """A gate of 0.1 is dark violet, one of 0.9 is yellow; in a figure with both, 0.5 is neither."""
    from matplotlib import colormaps

    image = pixels(draw([column(gate=(0.1, 0.1)), column(gate=(0.5, 0.5)), column(gate=(0.9, 0.9))], ["p"]))
    for share in (0, 0.5, 1):
        colour = (np.array(colormaps["viridis"](share)[:3]) * 255).round()
        near = (abs(image - colour).max(axis=2) <= 2).sum()
        assert near > 0.5 * 260 * 173, share  # a cell is 2.6 inches wide, at 100 pixels an inch


def test_grad_cam_is_bright_where_it_is_great():
    one = column()
    mixed = blended(one.look.picture, one.maps["p"].cam)
    inside, outside = mixed[5:20, 5:25], mixed[25:, 30:]
    assert inside.mean() > outside.mean() + 80 and (outside == outside[0, 0]).all()
    np.testing.assert_array_equal(blended(one.look.picture, np.zeros((40, 60))), mixed[30, 30] + np.zeros_like(mixed))


def test_places_that_a_model_lacks_and_odd_names_do_no_harm():
    odd = column(title="$x_{1$ <b>&é漢字 " + "long " * 40, words="no detection")
    one = pixels(draw([odd], ["p"]))
    more = pixels(draw([odd, column()], ["p", "r", "q"]))
    assert more.shape[0] > one.shape[0] + 2 * 173 and more.shape[1] > 1.9 * one.shape[1]


@pytest.mark.parametrize("size", [(4, 640), (640, 4)])
def test_thin_pictures(size):
    assert max(pixels(draw([column(size=size)], ["p"])).shape) < 3000


def test_shortened():
    assert shortened("abc", 10) == "abc"
    short = shortened("runs/train/" + "x" * 100 + "/weights/best.pt", 40)
    assert len(short) <= 41 and short.startswith("runs/train/") and short.endswith("best.pt") and " … " in short


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data.strip())


def test_the_page_shows_names_as_they_are_and_loads_nothing_from_elsewhere():
    name = 'a <script>alert(1)</script> & "b" 100%#1?.jpg'
    entry = Entry.of(name, "a #1?.png", (560, 800), [column(title="<i>.pt")])
    text = page({"checkpoints": "<i>.pt"}, [entry], [("<u>.jpg", "is <empty>")], [("model", "layer"), ("<i>.pt", "7")])
    found = Page(text)
    assert not {"script", "i", "u", "empty", "link", "iframe"} & {tag for tag, _ in found.tags}
    assert name in found.words and "<i>.pt" in found.words and "<u>.jpg: is <empty>" in found.words
    (image,) = [attrs for tag, attrs in found.tags if tag == "img"]
    assert image["src"] == "a%20%231%3F.png" and image["alt"] == f"Maps of {name}"
    assert (image["width"], image["height"]) == ("560", "800")
    assert not re.search(r"https?:|url\(|@import", text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in found.tags
    assert {"0.4900", "0.5000", "0.5100", "7: EMA"} <= set(found.words)


def test_a_page_without_gates_and_problems_has_no_empty_tables():
    plain = column()
    entry = Entry.of("a.jpg", "a.png", (5, 6), [Column("a.pt", plain.look, {"q": plain.maps["q"]})])
    assert not {"table", "ul"} & {tag for tag, _ in Page(page({}, [entry], [])).tags}
