"""The recipes for conda-forge, Spack and EasyBuild require what pyproject.toml requires."""

import ast
import re

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.helpers.mpis import ROOT
from tests.helpers.project import PROJECT, PYPROJECT, requirements

FOLDER = ROOT / "jobs" / "packages"
CONDA = FOLDER / "conda-forge" / "recipe.yaml"
SPACK = FOLDER / "spack" / "py_lsam_hpc" / "package.py"
(EASYBUILD,) = (FOLDER / "easybuild").glob("*.eb")
EXTRAS = PROJECT["optional-dependencies"]
CORE, TRAIN, ANALYSIS = map(dict, map(requirements, (PROJECT["dependencies"], EXTRAS["train"], EXTRAS["analysis"])))
PYTHON = PROJECT["requires-python"]
BUILD = dict(requirements(PYPROJECT["build-system"]["requires"]))
# Packages that a repository does not have; its recipe says so.
LEFT_OUT = {CONDA: ("pytorch-optimizer",), SPACK: ("simpy", "pytorch-optimizer"), EASYBUILD: ("hdf5plugin", "tomli")}
OTHER_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "plotly.py": "plotly"}
# EasyBuild's modules of several packages: name and version of each package.
MODULES = {
    "Python-bundle-PyPI": {"jinja2": "3.1.4"},
    "SciPy-bundle": {"numpy": "1.26.4", "pandas": "2.2.2"},
    "Arrow": {"pyarrow": "17.0.0"},
}


def without(required, recipe):
    return {name: versions for name, versions in required.items() if name not in LEFT_OUT[recipe]}


def plain(name):
    name = name.lower().replace("_", "-")
    return OTHER_NAMES.get(name, name)


def conda(lines):
    """Return {name: versions} of a list of requirements, those between its own packages left out."""
    pairs = (line.partition(" ")[::2] for line in lines if "{{" not in line)
    return {plain(name): versions for name, versions in pairs}


def spack_versions(text):
    """Return Spack's range of versions in pip's words: 0.20:0 is >=0.20,<1."""
    lowest, _, highest = text.partition(":")
    return f">={lowest}" + (f",<{int(highest) + 1}" if highest else "")


def spack():
    """Return {what: {name: versions}} of each with statement, and of the requirements outside them."""
    (recipe,) = (node for node in ast.parse(SPACK.read_text()).body if isinstance(node, ast.ClassDef))
    found = {}

    def read(statements, where):
        for node in statements:
            if isinstance(node, ast.With):
                (item,) = node.items
                arguments = item.context_expr
                word = arguments.args[0].value if arguments.args else ast.unparse(arguments.keywords[0].value)
                read(node.body, word)
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and node.value.func.id == "depends_on":
                name, _, versions = node.value.args[0].value.partition("@")
                types = [keyword.value.value for keyword in node.value.keywords if keyword.arg == "type"]
                pairs = found.setdefault(types[0] if types else where, {})
                pairs[plain(name.removeprefix("py-"))] = spack_versions(versions)

    read(recipe.body, "")
    return found


def test_conda_forge():
    recipe = yaml.safe_load(CONDA.read_text())
    core, both = recipe["outputs"]
    assert core["build"]["python"]["entry_points"] == [f"lsam = {PROJECT['scripts']['lsam']}"]
    assert f">={recipe['context']['python_min']}" == PYTHON
    host = conda(core["requirements"]["host"])
    assert {name: host[name] for name in BUILD} == BUILD
    assert conda(core["requirements"]["run"]) == CORE
    python = [line for line in core["requirements"]["run"] if line.startswith("python ")]
    assert python == ["python >=${{ python_min }}"]
    assert conda(both["requirements"]["run"]) == without(TRAIN | ANALYSIS, CONDA)


def test_spack():
    found = spack()
    assert found["build"] == BUILD
    assert found["('build', 'run')"] == CORE | {"python": PYTHON}
    assert found["+train"] == without(TRAIN, SPACK)
    assert found["+analysis"] == without(ANALYSIS, SPACK)


def test_easybuild():
    names = {"SOURCE_PY3_WHL": "%(name)s-%(version)s-py3-none-any.whl"}
    exec(compile(EASYBUILD.read_text(), EASYBUILD.name, "exec"), names)
    versions = {}
    for name, version, *_ in [*names["dependencies"], *names["exts_list"][:-1]]:
        versions |= MODULES.get(name, {plain(name): version})
    assert versions.pop("python") in SpecifierSet(PYTHON)
    required = without(CORE | TRAIN | ANALYSIS, EASYBUILD)
    assert versions.keys() == required.keys()
    assert [name for name, version in versions.items() if version not in SpecifierSet(required[name])] == []
    assert EASYBUILD.name == f"lsam-hpc-{names['version']}-foss-{names['toolchain']['version']}.eb"


@pytest.mark.parametrize("recipe", [CONDA, SPACK, EASYBUILD], ids=lambda path: path.name)
def test_a_recipe_names_what_it_leaves_out(recipe):
    comment = " ".join(re.findall(r"^#(.*)$", recipe.read_text(), re.MULTILINE)).replace("_", "-")
    assert [name for name in LEFT_OUT[recipe] if name not in comment and name != "tomli"] == []
    assert "no release yet" in comment
