"""Modules that are imported when something in them is used."""

from __future__ import annotations

import pytest
from cases import late_modules as cases
from fresh_process import run_fresh, run_in_copy


def test_the_compiler_of_torch_is_not_imported_for_torchvision_or_to_be_kept_out_of_it():
    done = run_fresh(cases.compiler)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False", "False", "True"]


def test_what_is_not_given_is_that_of_the_module():
    done = run_in_copy(cases.others_in_the_block)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "open", "Message", "False", "True", "True", "True"]


def test_a_stand_in_that_is_kept_has_the_names_of_its_module():
    done = run_in_copy(cases.names_of_the_module)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True", "True", "True"]


@pytest.mark.parametrize(
    ("how", "settings"), [("user", "10 11.0 agg"), ("yolov5", "10 11.0 agg"), ("after", "0 10.0 agg")]
)
def test_settings_of_yolov5_are_there_when_its_libraries_are_imported(how, settings, package_root):
    done = run_fresh(cases.of_yolov5, how, env={"MPLBACKEND": "agg" if how == "after" else "svg"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == settings


def test_what_is_kept_for_a_module_waits_until_it_can_be_imported():
    done = run_in_copy(cases.kept_for_a_module_that_fails)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["refused", "5 True None"]
