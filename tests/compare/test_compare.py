"""`lsam bench compare` as users call it: two tiny settings, interrupted, and again."""

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
    given = [] if "--launcher" in more else ["--launcher", mpiexec]
    return subprocess.run(
        [str(word) for word in [*words, *given]], capture_output=True, text=True, timeout=560, cwd=ROOT,
        env=environment(), check=False,
    )  # fmt: skip


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
    # The setting that cannot learn is not the one that is chosen.
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

    # A cell that is missing is run again, and nothing else.
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    lost = out / "cells" / "tiny-lsam-np2-none-seed0.json"
    lost.unlink()
    again = compare(suite, out)
    assert again.returncode == 0, again.stderr
    changed = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
    # Its run at equal seconds is there already.
    assert changed == {lost}

    # A folder is one suite's.
    suite.write_text(yaml.safe_dump({**SUITE, "points": 3}))
    other = compare(suite, out)
    assert other.returncode == 2
    assert "expected the folder of this suite" in other.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--launcher", "mpirun -n 2"], "--launcher: expected words with {ranks}"),
        (["--launcher", "no-such-program -n {ranks}"], "--launcher: expected a program that is there"),
        (["--launcher", f"{sys.executable} -c exit(7) {{ranks}}"], "expected a run that ends with 0, found 7"),
        (["--data-dir"], "--data-dir: expected one argument"),
    ],
)
def test_says_what_is_wrong_in_one_line(suite, tmp_path, words, why):
    done = compare(suite, tmp_path / "out", *words)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("lsam")]
    assert len(lines) == 1
    assert why in lines[0]
