"""YAMLs in other encodings: names are never read as other words than were written."""

from __future__ import annotations

import pytest

from yolov5_ema.data.dataset import load_dataset
from yolov5_ema.data.yaml_files import read_yaml
from yolov5_ema.errors import ConfigError

NAMES = "train: a\nval: a\nnc: 2\nnames: [{}, b]\n"


FOREIGN = {
    "红细胞": "gbk",
    "é": "latin-1",
    "細胞": "big5",
    "細": "shift_jis",
    "a": "utf-16",
    "клетка": "cp1251",
}


@pytest.mark.parametrize(("name", "encoding"), FOREIGN.items())
def test_names_that_are_not_utf8_are_refused(tmp_path, name, encoding):
    file = tmp_path / "data.yaml"
    file.write_bytes(NAMES.format(name).encode(encoding))
    with pytest.raises(
        ConfigError, match=r"data\.yaml is not valid YAML: it is not in UTF-8 \(line \d\).*Save it as UTF-8"
    ):
        load_dataset(file)
    file.write_bytes(NAMES.format(f'"{name}"').encode(encoding))
    with pytest.raises(ConfigError, match="is not in UTF-8"):
        read_yaml(file)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_names_in_utf8_are_read(tmp_path, encoding):
    file = tmp_path / "data.yaml"
    file.write_bytes(NAMES.format("红细胞").encode(encoding))
    assert load_dataset(file).names == ("红细胞", "b")


def test_comments_may_be_in_any_encoding(tmp_path):
    file = tmp_path / "data.yaml"
    file.write_bytes("# 数据集\n".encode("gbk") + NAMES.format("a").encode() + "nr: 3  # données\n".encode("latin-1"))
    assert load_dataset(file).names == ("a", "b") and read_yaml(file)["nr"] == 3
    file.write_bytes(b"a: [\xff\n")
    with pytest.raises(ConfigError, match="is not in UTF-8"):
        read_yaml(file)


def test_a_key_counts_as_well(tmp_path):
    file = tmp_path / "data.yaml"
    file.write_bytes("deep: {list: [{é: 1}]}\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not in UTF-8"):
        read_yaml(file)
