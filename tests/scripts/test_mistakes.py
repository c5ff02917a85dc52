"""Errors of ultralytics that are a user's mistake, and those that are not."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch
from offline_ultralytics import offline

from yolov5_ema.errors import UserError
from yolov5_ema.scripts.mistakes import errors_as_user_errors
from yolov5_ema.upstream.ultralytics import located


@pytest.fixture(scope="module")
def ultralytics(tmp_path_factory):
    with offline(tmp_path_factory.mktemp("config")) as package:
        importlib.import_module("ultralytics.utils.ops")
        yield package


def test_what_ultralytics_raises_on_purpose_is_a_mistake(ultralytics):
    with pytest.raises(UserError, match="input shape last dimension expected 4"), errors_as_user_errors(located()):
        ultralytics.utils.ops.xyxy2xywh(torch.ones(1, 1))
    with pytest.raises(UserError, match=r"gone\.pt: there is no such file"), errors_as_user_errors(located()):
        open("gone.pt")


def test_what_the_loader_of_torch_refuses_is_a_mistake(ultralytics):
    for how, words in (({"batch_size": 0}, "batch_size"), ({"num_workers": -1}, "num_workers")):
        with pytest.raises(UserError, match=words), errors_as_user_errors(located()):
            torch.utils.data.DataLoader([1], **how)


def test_errors_that_are_no_mistakes_of_the_user_keep_their_traceback(ultralytics):
    with pytest.raises(KeyError), errors_as_user_errors(located()):
        ultralytics.utils.ops.xyxy2xywh({}["none"])
    with pytest.raises(AttributeError), errors_as_user_errors(located()):
        ultralytics.utils.ops.xyxy2xywh(None)
    with pytest.raises(ValueError, match="ours"), errors_as_user_errors(located()):
        raise ValueError("ours")


class Coloured(tuple):
    def __str__(self):
        return "\033[31m\033[1mred\033[0m"


def test_a_message_has_no_colours(ultralytics):
    """Those of 8.3 had."""
    with pytest.raises(UserError) as said, errors_as_user_errors(located()):
        ultralytics.utils.ops.xyxy2xywh(SimpleNamespace(shape=Coloured([3])))
    assert str(said.value) == "input shape last dimension expected 4 but input shape is red"


def test_a_download_without_a_network_is_said():
    requests = pytest.importorskip("requests")
    with pytest.raises(UserError, match="a download has failed: no network"), errors_as_user_errors(located()):
        raise requests.exceptions.ConnectionError("no network")
