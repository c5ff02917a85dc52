"""Errors of ultralytics that are a user's mistake, and those that are not."""

from __future__ import annotations

import importlib

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
        ultralytics.utils.ops.xyxy2xywh([[1.0]])
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
