"""Images are kept apart in results, whatever their names are."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolov5_ema.data.image_names import image_id, keys_of_images, name_of, named_once
from yolov5_ema.errors import UserError


@pytest.mark.parametrize(
    ("files", "keys"),
    [
        (["s/a/1.jpg", "s/b/2.jpg"], ["a/1.jpg", "b/2.jpg"]),
        (["s/a/1.jpg", "s/b/1.jpg", "s/b/2.jpg"], ["a/1.jpg", "b/1.jpg", "b/2.jpg"]),
        (["s/1.jpg", "s/1.png", "s/a/1.jpg"], ["1.jpg", "1.png", "a/1.jpg"]),
        (["s/1.jpg", "s/1.jpg"], ["1.jpg"]),
        ([], []),
    ],
)
def test_every_image_has_a_key_of_its_own(files, keys, own_folder):
    found = keys_of_images(map(Path, files))
    assert list(found) == list(dict.fromkeys(map(Path, files))) and list(found.values()) == keys


def test_a_key_is_the_same_however_the_path_is_spelled(own_folder):
    Path("s/a").mkdir(parents=True)
    Path("s/a/1.jpg").touch()
    Path("s/a/2.jpg").symlink_to("1.jpg")
    Path("linked").symlink_to("s")
    listed, spelled = [Path("s/a/1.jpg"), Path("linked/a/2.jpg")], [Path("linked/a/1.jpg").absolute()]
    found = keys_of_images(listed, spelled)
    assert found == dict(zip([*listed, *spelled], ["1.jpg", "2.jpg", "1.jpg"]))  # a link to an image is another image
    found = keys_of_images([Path("1.jpg"), Path("/1.jpg")])
    assert [Path("/", key) for key in found.values()] == [own_folder.resolve() / "1.jpg", Path("/1.jpg")]


def test_an_image_that_a_split_reaches_by_two_paths_is_two_images(own_folder):
    Path("s/a").mkdir(parents=True)
    Path("s/l").symlink_to("a")
    Path("linked").symlink_to("s")
    listed = [Path("s/a/1.jpg"), Path("s/l/1.jpg"), Path("s/a/2.jpg")]
    again = [path.absolute() for path in listed[:2]]
    elsewhere = [Path("linked/a/2.jpg"), Path("s/a/not-listed.jpg")]
    found = keys_of_images(listed, [*again, *elsewhere])
    keys = [found[path] for path in [*listed, *again, *elsewhere]]
    assert keys == ["a/1.jpg", "l/1.jpg", "a/2.jpg", "a/1.jpg", "l/1.jpg", "a/2.jpg", "not-listed.jpg"]


def test_names_and_ids():
    assert [name_of(image) for image in ("a/1.jpg", Path("b/x.y.PNG"), "x.y", "a.jpg.txt")] == [
        *("1", "x.y", "x.y", "a.jpg.txt")
    ]
    assert [image_id(image) for image in ("a/0012.jpg", "b/x.y.png", "7", Path("1.5.jpg"))] == [
        12,
        "x.y",
        7,
        "1.5",
    ]


def test_two_of_one_name_are_refused():
    files = [Path("a/1.jpg"), Path("a/2.jpg"), Path("a/1.jpg")]
    assert named_once(files, "Why") == {"1": files[0], "2": files[1]}
    with pytest.raises(UserError, match=r"a/1\.jpg and b/1\.png are both called 1\. Why; rename one"):
        named_once(["a/1.jpg", "b/1.png"], "Why")
    with pytest.raises(UserError, match="are both called 1"):
        named_once([Path("1.jpg"), Path("0001.jpg")], "Why", image_id)
