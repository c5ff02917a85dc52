"""The CI matrix and the local one name what there is: make targets, variables, extras, the torch that is asked for."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

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
def metadata() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return parser


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
    assert set(matrix["engine"]) <= set(metadata["options.extras_require"])
    classifiers = re.findall(r"Python :: (3\.\d+)", metadata["metadata"]["classifiers"])
    assert matrix["python"] == classifiers  # as text: 3.10 unquoted would be 3.1
    assert metadata["options"]["python_requires"] == f">={classifiers[0]}"


def test_the_oldest_torch_is_the_one_that_is_asked_for(workflow, metadata):
    (bound,) = re.findall(r"^torch>=(\S+)", metadata["options"]["install_requires"], re.MULTILINE)
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["torch"] == [f"{bound}.0", ""]
    assert f'"torch=={bound}.0"' in (REPOSITORY / "noxfile.py").read_text(encoding="utf-8")


def test_the_local_matrix_has_the_same_pythons_and_engines(workflow):
    text = (REPOSITORY / "noxfile.py").read_text(encoding="utf-8")
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    (pythons,) = re.findall(r"^PYTHONS = \((.*)\)$", text, re.MULTILINE)
    assert re.findall(r'"([^"]+)"', pythons) == matrix["python"]
    assert all(f'id="{engine}"' in text for engine in matrix["engine"])


def test_releases_that_tests_drive_are_laid_aside_by_make(makefile):
    (laid_aside,) = re.findall(r"^ENGINES := (.*)$", makefile, re.MULTILINE)
    text = (REPOSITORY / "noxfile.py").read_text(encoding="utf-8")
    (releases,) = re.findall(r"^RELEASES = \((.*)\)$", text, re.MULTILINE)
    assert set(re.findall(r'"([^"]+)"', releases)) <= set(laid_aside.split())
