"""What pyproject.toml says about the package."""

import re
import sys

from tests.helpers.mpis import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def requirements(lines):
    """Return the name, as PyPI writes it, and the versions of each requirement: ("h5py", ">=3.10")."""
    matches = [re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?([^;]*)(?:;.*)?", line) for line in lines]
    return [(match[1].replace("_", "-").lower(), match[2].strip()) for match in matches]
