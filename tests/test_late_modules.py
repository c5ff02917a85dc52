"""Modules that are imported when something in them is used."""

from __future__ import annotations

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
