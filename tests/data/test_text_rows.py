"""Rows of numbers in text: the fast and the lenient reader agree, nothing is lost, and bad lines are named once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov5_ema.data.number_texts import number_texts
from yolov5_ema.data.text_rows import parse_clean, parse_rows, read_lines
from yolov5_ema.data.visdrone_format import parse_annotations, read_annotations, read_results
from yolov5_ema.data.yolo_format import (
    clip_corners,
    first_of_each,
    format_labels,
    read_labels,
    to_millionths,
    to_xywh_pixels,
)
from yolov5_ema.errors import UserError

FILE = Path("a.txt")
GOOD = "684,8,273,116,0,0,0,0"


def test_parse_rows_by_hand():
    rows = parse_rows(["1, 2,3,", "", "4,x,6", "7,8", "nan,1,1", " 9,10,11 "], FILE, 3, separator=",")
    assert rows.values.tolist() == [[1, 2, 3], [9, 10, 11]]
    assert rows.lines.tolist() == [1, 6]
    assert [(bad.line, bad.reason) for bad in rows.bad] == [
        (3, "'x' is not a number"), (4, "2 columns, not 3"), (5, "nan is not finite"),
    ]  # fmt: skip
    assert str(rows.bad[0]) == "a.txt, line 3: 'x' is not a number"


def test_pythons_underscores_are_no_numbers():
    assert [bad.reason for bad in parse_rows(["1_0,2"], FILE, 2, separator=",").bad] == ["'1_0' is not a number"]


def test_missing_columns_are_filled():
    assert parse_rows(["1 2"], FILE, 4, at_least=2).values.tolist() == [[1, 2, 0, 0]]
    assert parse_rows(["1 2 3"], FILE, 2).bad[0].reason == "3 columns, not 2"


def test_parse_clean_takes_many_files_at_once():
    values, counts = parse_clean([b"1,2\n30,4\n", b"", b"\n\n", b"500,6,\r\n7,8,\r\n\r\n", b"9,10"], 2)
    assert values.tolist() == [[1, 2], [30, 4], [500, 6], [7, 8], [9, 10]]
    assert counts.tolist() == [2, 0, 0, 2, 1]
    assert values.dtype == np.int64


@pytest.mark.parametrize(
    "text",
    [b"1,-2", b"1,2.5", b"1 2", b"1,2,3", b"1", b"1,,2", b"1,2\n\n3,4", b"1,2\n3", b"1\n2,3\n4,5\n6", b"a,b",
     b"1,2\r3,4", b"1234567890123456,1", b"\xef\xbb\xbf1,2", b"1,2,,\n3,4", "\uff11,2".encode()],
)  # fmt: skip
def test_parse_clean_leaves_what_is_odd(text):
    assert parse_clean([b"1,2\n", text], 2) is None


# --- properties -------------------------------------------------------------------------------

whole_rows = st.lists(st.lists(st.integers(0, 10**6), min_size=8, max_size=8), max_size=12)
line_end = st.sampled_from(["\n", "\r\n", ",\n", ",\r\n"])


@settings(deadline=None)
@given(st.lists(st.tuples(whole_rows, line_end), min_size=1, max_size=4))
def test_the_quick_way_agrees_with_the_lenient_one(files):
    texts = ["".join(",".join(map(str, row)) + end for row in rows) for rows, end in files]
    values, counts = parse_clean([text.encode() for text in texts], 8)
    lenient = [parse_rows(text.splitlines(), FILE, 8, separator=",") for text in texts]
    assert counts.tolist() == [len(rows.values) for rows in lenient]
    assert np.array_equal(values, np.concatenate([rows.values for rows in lenient]))


good_line = st.builds(
    lambda box, score, category: f"{','.join(map(str, box))},{score},{category},0,1",
    st.lists(st.integers(0, 2000), min_size=4, max_size=4),
    st.integers(0, 1),
    st.integers(0, 11),
)
bad_line = st.one_of(
    st.text(
        st.characters(codec="utf-8", exclude_characters="\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"),
        min_size=1,
    ).filter(lambda text: any(char not in "0123456789, \t" for char in text) and text.strip(", \t\ufeff")),
    st.lists(st.integers(0, 99).map(str), min_size=1, max_size=7).map(",".join),  # too few
    st.lists(st.integers(0, 99).map(str), min_size=9, max_size=12).map(",".join),  # too many
    st.integers(12, 10**6).map(lambda category: f"1,2,3,4,1,{category},0,0"),
    st.sampled_from(
        [
            "1,2,3,4,1,-1,0,0",
            "1,2,3,4,1,1.5,0,0",
            "1,2,inf,4,1,1,0,0",
            "1,2,3,nan,1,1,0,0",
            "1,,2,3,4,1,1,0,0",
        ]
    ),
).filter(lambda text: not _is_row(text))


def _is_row(text: str) -> bool:
    """Eight finite numbers that happen to be an object."""
    rows = parse_rows([text], FILE, 8, separator=",")
    is_object = bool(len(rows.values)) and rows.values[0, 5] in range(12)
    return is_object or not text.strip().rstrip(", \t")


@settings(deadline=None)
@given(st.lists(st.one_of(good_line.map(lambda t: (True, t)), bad_line.map(lambda t: (False, t))), max_size=15))
def test_every_bad_line_is_named_once_and_no_good_one_is_lost(lines):
    text = "\n".join(line for _, line in lines)
    rows = parse_annotations(text.encode(), FILE)
    good = [number for number, (is_good, _) in enumerate(lines, 1) if is_good]
    bad = [number for number, (is_good, line) in enumerate(lines, 1) if not is_good]
    assert rows.lines.tolist() == good
    assert [entry.line for entry in rows.bad] == bad
    wanted = [[float(field) for field in lines[number - 1][1].split(",")] for number in good]
    assert rows.values.tolist() == wanted
    assert all(entry.reason and entry.file == FILE for entry in rows.bad)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_rows_or_bad_lines(content):
    rows = parse_annotations(content, FILE)
    lines = content.decode("utf-8-sig", errors="replace").splitlines()
    filled = sum(bool(line.strip().rstrip(", \t")) for line in lines)
    assert len(rows.values) + len(rows.bad) == filled


# --- files ------------------------------------------------------------------------------------


def test_read_annotations_takes_what_real_files_hold(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf" + f"{GOOD},\r\n\r\n1,2,3,4,1,11,0,0,\r\n1,2,3,4,1,12,0,0\r\n".encode())
    rows = read_annotations(file)
    assert rows.values[:, 5].tolist() == [0, 11] and rows.lines.tolist() == [1, 3]
    assert [str(bad) for bad in rows.bad] == [f"{file}, line 4: category 12 is not in 0 to 11"]
    file.write_text("1,2,3,4,0.5,1\n1,2,3,4\n")
    results = read_results(file)
    assert results.values.tolist() == [[1, 2, 3, 4, 0.5, 1, 0, 0]]
    assert results.bad[0].reason == "4 columns, not 6 to 8"
    with pytest.raises(UserError, match="not a file that can be read, but a folder"):
        read_annotations(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_lines(tmp_path / "missing.txt")


def test_read_labels(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("0 0.5 0.5 0.1 0.2\n\n3 0.5 0.5 0.1 0.2\n1 0.1 0.2 0.5 0.2 0.5 0.6\n1 0.1 0.2 0.5\n1.5 0 0 1 1\n")
    rows = read_labels(file, 3)
    assert np.allclose(rows.values, [[0, 0.5, 0.5, 0.1, 0.2], [1, 0.3, 0.4, 0.4, 0.4]])
    assert [bad.line for bad in rows.bad] == [3, 5, 6]
    assert len(read_labels(tmp_path / "none.txt", 3).values) == 0
    assert to_xywh_pixels(rows.values[:1, 1:], 200, 100).tolist() == [[90, 40, 20, 20]]


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 120), *[st.integers(0, 10**6)] * 4), max_size=6),
        min_size=1,
        max_size=5,
    )
)
def test_label_texts_are_those_of_pythons_own_formatting(files):
    rows = np.array([row for rows in files for row in rows], np.int64).reshape(-1, 5)
    texts = format_labels(rows[:, 0], rows[:, 1:], np.array([len(rows) for rows in files]))
    expected = ["".join(f"{c} " + " ".join(f"{v / 1e6:.6f}" for v in box) + "\n" for c, *box in rows) for rows in files]
    assert [text.decode() for text in texts] == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 10**12), st.sampled_from([0, 1, 10, 99, 100])), max_size=9))
def test_number_texts_are_those_of_pythons_own_formatting(rows):
    table = np.array(rows, np.int64).reshape(-1, 3)
    expected = [f'{{"a":{a},[{b},{c}]%}}' for a, b, c in rows]
    for form in (table, table.astype(object)):
        assert number_texts(form, ['{"a":', ",[", ",", "]%}"]) == expected
    assert number_texts(np.array([[0.5, 3, 1e-7]], object), ["", " ", " ", ""]) == ["0.5 3 1e-07"]


def test_clipping_and_millionths_by_hand():
    sizes = np.array([[100, 50]] * 5)
    boxes = np.array([[-10, -10, 30, 20], [90, 40, 30, 30], [200, 10, 5, 5], [10, 10, -5, 5], [1e308, 0, 1e308, 1]])
    corners = clip_corners(boxes, sizes)
    assert corners.tolist() == [
        [0, 0, 20, 10],
        [90, 40, 100, 50],
        [100, 10, 100, 15],
        [10, 10, 10, 15],
        [100, 0, 100, 1],
    ]
    assert to_millionths(corners[:2], sizes[:2]).tolist() == [
        [100_000, 100_000, 200_000, 200_000], [950_000, 900_000, 100_000, 200_000],
    ]  # fmt: skip


def test_only_the_first_of_equal_rows_of_a_file_stays():
    box = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5]]
    first = first_of_each(np.array([0, 0, 0, 1, 0]), np.array([5, 6, 5, 5, 5]), np.array(box))
    assert first.tolist() == [True, True, False, True, True]
