"""Damaged and hostile files: readers return a clear error or the right values."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.mpis import ROOT

COUNT = int(os.environ.get("LSAM_TEST_MUTATIONS", "200"))  # two minutes; 2,000 take twenty


@pytest.mark.slow("mutates 200 files: two minutes")
@pytest.mark.timeout(120 + 6 * COUNT)
def test_mutated_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.mutations", str(tmp_path), str(COUNT), "0"],
        capture_output=True,
        text=True,
        timeout=60 + 6 * COUNT,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    # Some mutations cause errors, some do not.
    assert counts["error"] >= COUNT / 4
    assert counts["right"] >= COUNT / 20
