"""Images are told apart in results, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolov5_ema.data.image_names import names_of_images, refuse_shared_stems
from yolov5_ema.errors import UserError


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["s/a/1.jpg", "s/b/2.jpg"], ["1", "2"]),
        (["s/a/1.jpg", "s/b/1.jpg", "s/b/2.jpg"], ["a/1.jpg", "b/1.jpg", "2"]),
        (["s/1.jpg", "s/1.png"], ["1.jpg", "1.png"]),
        (["s/1.jpg", "s/1.png", "s/1.jpg.bmp"], ["1.jpg", "1.png", "1.jpg.bmp"]),
        (["s/1.jpg", "s/1.jpg"], ["1"]),
        (["/x/1.jpg", "1.jpg"], [Path("/x/1.jpg"), Path("1.jpg").absolute()]),
    ],
)
def test_every_image_has_a_name_of_its_own(files, names):
    found = names_of_images(map(Path, files))
    assert list(found) == list(dict.fromkeys(map(Path, files)))
    if isinstance(names[0], str):
        assert list(found.values()) == names
    else:
        assert [Path("/", name) for name in found.values()] == names
    assert len(set(found.values())) == len(found)


def test_two_of_one_name_are_refused():
    refuse_shared_stems([Path("a/1.jpg"), Path("a/2.jpg"), Path("a/1.jpg")], "Why")
    with pytest.raises(UserError, match=r"a/1\.jpg and b/1\.png are both called 1\. Why; rename one"):
        refuse_shared_stems([Path("a/1.jpg"), Path("b/1.png")], "Why")
    with pytest.raises(UserError, match="are both called 1"):
        refuse_shared_stems([Path("1.jpg"), Path("0001.jpg")], "Why", lambda image: int(image.stem))
