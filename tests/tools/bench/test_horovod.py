"""`lsam bench horovod` runs and writes its numbers."""

import pytest

from lsam_hpc.tools.bench import main as bench
from lsam_hpc.tools.bench.base import Report
from tests.helpers.mpis import available, run


@pytest.mark.slow("a benchmark")
def test_bench_horovod_writes_its_numbers(tmp_path):
    mpi, file = next(iter(available().values())), tmp_path / "b.json"
    words = (mpi.forked, "-m", "lsam_hpc", "bench", "horovod", "--quick", "--repeats", "1", "--json", str(file))
    done = run(mpi.command(2, *words), timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    report = Report.read(file)
    assert len(report.rows) == 4
    assert all(row["images/s"] > 0 for row in report.rows)
    for ours, plain in zip(report.rows[1::2], report.rows[::2], strict=True):
        assert ours[": plain Horovod"] == pytest.approx(ours["images/s"] / plain["images/s"])
    assert "LSAM : plain Horovod" in bench.load("horovod").page([report])
