"""A kill loses only rows that were not flushed."""

import json
import subprocess
import sys

import pytest

from tests.helpers.mpis import ROOT


@pytest.mark.slow("kills 200 writers: a minute")
@pytest.mark.timeout(900)
def test_200_kills(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.kills", str(tmp_path), "50", "0"],
        capture_output=True,
        text=True,
        timeout=800,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["killed"] == 200
    assert counts["rows"] >= counts["flushed"] > 200
    assert counts["polls"] > 25
