"""The CI matrix and the local one name existing make targets, variables and extras, and the required torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyproject
import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def workflow() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def makefile() -> str:
    return (REPOSITORY / "Makefile").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return pyproject.PROJECT


def commands(workflow: dict[str, Any]) -> list[str]:
    return [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]


def test_every_command_is_a_make_target_with_known_variables(workflow, makefile):
    found = commands(workflow)
    assert {command.split()[1] for command in found} == {"lint", "test", "docs", "demo", "test-slow"}
    for command in found:
        make, target, *variables = re.sub(r"\$\{\{.*?\}\}", "x", command).split()
        assert make == "make" and re.search(rf"^{target}:", makefile, re.MULTILINE), command
        for variable in variables:
            assert re.search(rf"^{variable.split('=')[0]} \?=", makefile, re.MULTILINE), command


def test_what_the_matrix_varies_is_there(workflow, metadata):
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert set(matrix["engine"]) <= set(metadata["optional-dependencies"])
    classifiers = re.findall(r"Python :: (3\.\d+)", "\n".join(metadata["classifiers"]))
    assert matrix["python"] == classifiers  # as a string: 3.10 without quotes would be 3.1
    assert metadata["requires-python"] == f">={classifiers[0]}"


def test_the_oldest_torch_is_the_one_that_is_asked_for(workflow, metadata):
    (bound,) = re.findall(r"^torch>=(\S+)", "\n".join(metadata["dependencies"]), re.MULTILINE)
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["torch"] == [f"{bound}.0", ""]
    assert f'"torch=={bound}.0"' in (REPOSITORY / "noxfile.py").read_text(encoding="utf-8")


def test_the_local_matrix_has_the_same_pythons_and_engines(workflow):
    text = (REPOSITORY / "noxfile.py").read_text(encoding="utf-8")
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    (pythons,) = re.findall(r"^PYTHONS = \((.*)\)$", text, re.MULTILINE)
    assert re.findall(r'"([^"]+)"', pythons) == matrix["python"]
    assert all(f'id="{engine}"' in text for engine in matrix["engine"])


def test_the_oldest_of_everything_is_tried_on_the_oldest_python():
    text = (REPOSITORY / "noxfile.py").read_text(encoding="utf-8")
    assert "@nox.session(python=PYTHONS[0])\ndef lowest" in text and '"lowest-direct"' in text
    unbounded = [
        name
        for name in [*pyproject.PROJECT["dependencies"], *pyproject.PROJECT["optional-dependencies"]["dev"]]
        if not re.search(r"[=>]=", name) and not name.startswith("yolov5-ema[")
    ]
    assert not unbounded, "without a bound the oldest release of all is what lowest-direct takes"


def test_the_script_of_the_checkout_lints_and_tests(makefile):
    script = (REPOSITORY / ".ci/run").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\S+)$", script, re.MULTILINE)
    assert targets == ["lint", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_releases_that_tests_drive_are_laid_aside_by_make(makefile):
    (laid_aside,) = re.findall(r"^ENGINES := (.*)$", makefile, re.MULTILINE)
    text = (REPOSITORY / "noxfile.py").read_text(encoding="utf-8")
    (releases,) = re.findall(r"^RELEASES = \((.*)\)$", text, re.MULTILINE)
    assert set(re.findall(r'"([^"]+)"', releases)) <= set(laid_aside.split())
