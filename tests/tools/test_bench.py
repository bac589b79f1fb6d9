"""The benchmarks run and say what they measured; what they say of speed is not a test."""

import json

import pytest
from lsam_hpc.tools.bench import medians

from lsam_hpc import InputError
from lsam_hpc.cli import main
from tests.helpers.mpis import run


@pytest.mark.slow
def test_bench_optimizer_writes_its_numbers(tmp_path, capsys):
    assert main(["bench", "optimizer", "--repeats", "1", "--json", str(tmp_path / "b.json")]) == 0
    report = json.loads((tmp_path / "b.json").read_text())
    assert [row["model"] for row in report["rows"]] == ["ResNet-18", "2,000 small tensors"]
    assert all(
        value > 0 for row in report["rows"] for key, value in row.items() if key in ("memcpy ms", "stale / base")
    )
    assert "ours / theirs" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row"),
    [("exchange", "training thread held up"), ("straggler", "own rates, summed"), ("progress", "1 ms")],
)
def test_benchmarks_of_several_ranks_write_their_numbers(name, row, mpi, tmp_path):
    file = tmp_path / "b.json"
    words = (mpi.python, "-m", "lsam_hpc", "bench", name, "--repeats", "1", "--json", str(file))
    done = run(mpi.command(2, *words), timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert any(row in str(next(iter(r.values()))) for r in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exchange", "straggler"])
def test_benchmarks_of_several_ranks_want_several(name, mpi):
    words = (mpi.python, "-m", "lsam_hpc", "bench", name)
    one = run(mpi.command(1, *words), timeout=240)
    assert one.returncode == 2
    assert one.stderr.count("expected 2 ranks or more") == 1


def test_medians_are_taken_in_turn_and_without_the_first_ones():
    order = []
    found = medians(20, {name: (lambda: None, lambda n=name: order.append(n)) for name in "ab"})
    assert order == ["a", "b"] * 22
    assert set(found) == {"a", "b"}


@pytest.mark.parametrize("argv", [["bench", "nothing"], ["bench", "optimizer", "--repeats", "0"]])
def test_bad_usage(argv, capsys):
    try:
        code = main(argv)
    except InputError:
        code = None
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
