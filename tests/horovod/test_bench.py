"""`lsam bench horovod` runs and writes its numbers."""

import json

import pytest

from tests.helpers.mpis import run


@pytest.mark.slow
def test_bench_horovod_writes_its_numbers(mpi, tmp_path):
    file = tmp_path / "b.json"
    words = (mpi.python, "-m", "lsam_hpc", "bench", "horovod", "--repeats", "1", "--json", str(file))
    done = run(mpi.command(2, *words), timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 4
    assert all(row["images/s"] > 0 for row in rows)
    one = run(mpi.command(1, mpi.python, "-m", "lsam_hpc", "bench", "horovod"), timeout=60)
    assert one.returncode == 2
    assert one.stderr.count("expected 2 ranks or more") == 1
