"""The extras of pyproject.toml: few, without a package in two of them, and those that messages and pages name."""

import re
import subprocess

import pytest

from lsam_hpc.util.extras import DEPENDENCIES, EXTRAS
from tests.helpers.mpis import ROOT
from tests.helpers.project import PROJECT, requirements

EXTRA_REQUIRES = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}  # those whose module has another name


def names(lines):
    return [name for name, _ in requirements(lines)]


def test_extras_are_named_by_what_people_do():
    assert list(EXTRA_REQUIRES) == ["mpi", "train", "analysis", "all", "docs", "dev"]
    assert EXTRA_REQUIRES["all"] == ["lsam-hpc[train,analysis]"]
    assert "lsam-hpc[all,docs]" in EXTRA_REQUIRES["dev"]


def test_no_package_is_required_twice():
    lines = [PROJECT["dependencies"], *(lines for name, lines in EXTRA_REQUIRES.items() if name != "all")]
    required = [name for part in lines for name in names(part) if name != "lsam-hpc"]
    assert len(required) == len(set(required))


def test_the_table_of_modules_is_that_of_pyproject():
    modules = [(extra, DISTRIBUTIONS.get(module, module).replace("_", "-")) for module, extra in EXTRAS.items()]
    expected = [(extra, name) for extra in ("train", "analysis") for name in names(EXTRA_REQUIRES[extra])]
    assert sorted(modules) == sorted(expected)
    assert sorted(DEPENDENCIES) == sorted(names(PROJECT["dependencies"]))


@pytest.mark.parametrize("pattern", [r"(?:lsam-hpc|\$root|\{ROOT\})\[([a-z,]+)\]", r"lsam_environment ([a-z,]+)$"])
def test_named_extras_exist(pattern):
    words = ["git", "grep", "-IhoE", pattern.replace("(?:", "("), "--", ".", ":!CHANGELOG.md", ":!tests/util"]
    lines = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout.split("\n")
    used = [extra for line in lines for match in re.findall(pattern, line) for extra in match.split(",")]
    assert len(used) >= 3
    assert set(used) <= set(EXTRA_REQUIRES)


def test_the_page_of_dependencies_has_all_packages_of_the_extras():
    table = (ROOT / "docs/reference/dependencies.md").read_text().partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (.*?) \|", table, re.MULTILINE)
    for extra in ("mpi", "train", "analysis"):
        listed = {
            re.match(r"[\w-]+", name.strip())[0]
            for what, where in rows
            if f"`{extra}`" in where
            for name in what.split(",")
        }
        assert {name.replace("_", "-") for name in listed} == set(names(EXTRA_REQUIRES[extra]))
