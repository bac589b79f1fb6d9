"""`lsam bench compare` on the command line: two tiny settings, then an interrupted suite."""

import csv
import json
import shlex
import subprocess
import sys

import pytest
import yaml

from tests.helpers.mpis import ROOT, available, environment

SUITE = {
    "train": {"data": "digits"},
    "images": 64,
    "ranks": [2],
    "seeds": [0],
    "points": 2,
    "curve_images": 100,
    "sharpness_images": 64,
    "budgets": {"tiny": {"epochs": 4}},
    "reference": "sam",
    "equal_seconds": True,
    "methods": {
        "sam": {"synchronous": True, "reduce": "mpi", "period": 8, "tune": {"lr": [0.0001, 0.1]}},
        "lsam": {"tune": {"rho": [0.05, 50.0]}},
    },
    "tune": {"validation": 100},
}


def compare(suite, out, *more):
    mpi = next(iter(available().values()))
    mpiexec = shlex.join([*mpi.mpiexec, "-n", "{ranks}"])
    words = [mpi.forked, "-m", "lsam_hpc", "bench", "compare", "--suite", suite, "--out", out, *more]
    launcher = [] if "--launcher" in more else ["--launcher", mpiexec]
    return subprocess.run(
        [str(word) for word in [*words, *launcher]],
        capture_output=True,
        text=True,
        timeout=560,
        cwd=ROOT,
        env=environment(),
        check=False,
    )


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(SUITE, sort_keys=False))
    return path


@pytest.mark.slow("trains a suite of methods")
@pytest.mark.jobs
@pytest.mark.timeout(900)
def test_two_tiny_settings(suite, tmp_path):
    out = tmp_path / "out"
    done = compare(suite, out)
    assert done.returncode == 0, done.stderr
    # The setting that cannot learn is not chosen.
    assert json.loads((out / "tuned.json").read_text()) == {"sam": {"lr": 0.1}, "lsam": {"rho": 0.05}}
    rows = list(csv.DictReader((out / "runs.csv").open()))
    assert [(r["budget"], r["method"], r["seed"]) for r in rows] == [
        (budget, method, "0") for budget in ("tiny", "tiny-seconds") for method in ("sam", "lsam")
    ]
    for row in rows:
        assert 0 < float(row["center_test_error"]) < 30
        assert float(row["sharpness"]) > 0
        assert float(row["top_eigenvalue"]) > 0
    by_budget = {(r["budget"], r["method"], r["seed"]): int(r["total_steps"]) for r in rows}
    assert by_budget["tiny", "sam", "0"] == 85  # ceil(4 * 1347 / 64)
    assert by_budget["tiny", "lsam", "0"] == 169
    assert {p.name for p in out.iterdir()} >= {"tables.md", "curves.csv", "tuning.csv", "tiny-np2.png"}

    # Only a missing cell is run again.
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    removed = out / "cells" / "tiny-lsam-np2-none-seed0.json"
    removed.unlink()
    again = compare(suite, out)
    assert again.returncode == 0, again.stderr
    changed = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
    # Its run at equal seconds exists already.
    assert changed == {removed}

    # A folder holds the results of one suite.
    suite.write_text(yaml.safe_dump({**SUITE, "points": 3}))
    other = compare(suite, out)
    assert other.returncode == 2
    assert "expected a folder with results of this suite" in other.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--launcher", "mpirun -n 2"], "--launcher: expected a command with {ranks}"),
        (["--launcher", "no-such-program -n {ranks}"], "--launcher: expected an installed program"),
        (["--launcher", f"{sys.executable} -c exit(7) {{ranks}}"], "expected exit code 0, found 7"),
        (["--data-dir"], "--data-dir: expected one argument"),
    ],
)
def test_errors_are_one_line(suite, tmp_path, words, why):
    done = compare(suite, tmp_path / "out", *words)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("lsam")]
    assert len(lines) == 1
    assert why in lines[0]
