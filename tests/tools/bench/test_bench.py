"""The benchmarks run and report numbers; their speed is not tested."""

import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.cli import main
from lsam_hpc.optim import accelerators
from lsam_hpc.tools.bench import main as bench
from lsam_hpc.tools.bench import simulate
from lsam_hpc.tools.bench.base import Report, counted, device_of, medians, show_progress
from lsam_hpc.util import progress
from tests.helpers.mpis import available, run

QUICK = ("--quick", "--repeats", "1")
# Several in one job, because starting a job takes most of the time.
TOGETHER = """
import sys
from lsam_hpc.cli import main
for name in sys.argv[2:]:
    code = main(["bench", *name.split(), "--quick", "--repeats", "1", "--json", f"{sys.argv[1]}/{name}.json"])
    assert code == 0, name
"""


def checked(path, ranks):
    """Return the report of a quick run after checks that apply to every report."""
    report = Report.read(path)
    assert report.quick
    assert report.machine["ranks"] == str(ranks)
    assert report.command.endswith(f"lsam bench {report.benchmark} --repeats 1 --quick")
    assert report.command.startswith("mpirun") == (ranks > 1)
    page = bench.load(report.benchmark).page([report])
    assert "the numbers mean nothing" in page
    assert f"`{report.command}`" in page
    return report


@pytest.mark.slow("a benchmark")
@pytest.mark.parametrize("name", ["startup", "optimizer", "log"])
def test_benchmarks_without_mpi(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # pytorch_optimizer writes there
    assert main(["bench", name, *QUICK, "--json", str(tmp_path / "b.json")]) == 0
    report = checked(tmp_path / "b.json", 1)
    assert all(v != 0 for row in report.rows for v in row.values())
    assert next(key for key in report.rows[0] if key) in capsys.readouterr().out


@pytest.mark.slow("a benchmark")
def test_bench_train_times_lsam_train(tmp_path):
    words = (sys.executable, "-m", "lsam_hpc", "bench", "train", *QUICK, "--json", str(tmp_path / "b.json"))
    done = run([*words], timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = checked(tmp_path / "b.json", 1).rows
    assert [row[""] for row in rows] == ["mlp, batch 32, SGD", "mlp, batch 32, LSAM"]
    for row in rows:
        ours, bare = row["lsam train, images/s"], row["bare loop, images/s"]
        assert row["lsam train : bare"] == pytest.approx(ours / bare)
        assert row["more per step, us"] == pytest.approx(1e6 * 32 * (1 / ours - 1 / bare))


@pytest.mark.slow("a benchmark")
def test_benchmarks_of_several_ranks(tmp_path):
    mpi = next(iter(available().values()))
    firsts = {
        "exchange": "training thread held up",
        "straggler": "own rates, summed",
        "progress": "1 ms",
        "growth": 1000,
        "growth --shard": 4 * 16 * 16,
    }
    done = run(mpi.command(2, mpi.forked, "-c", TOGETHER, str(tmp_path), *firsts), timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    reports = {name: checked(tmp_path / f"{name}.json", 2) for name in firsts}
    for name, first in firsts.items():
        assert first in [next(iter(row.values())) for row in reports[name].rows]
    assert done.stdout.count("repeats: 1") == len(firsts)  # printed by one rank
    model, huge = reports["growth"].rows
    assert model["SAM step ms"] > 0
    assert "GB needed" in huge["skipped"]
    assert huge["SAM step ms"] == ""
    whole, halves, *huge = reports["growth --shard"].rows
    assert [(row["ranks of a chain, G"], row["chains, C"]) for row in (whole, halves)] == [(1, 2), (2, 1)]
    assert [row["bytes of an exchange"] for row in (whole, halves)] == [8 * 4 * 16 * 16, 4 * 4 * 16 * 16]
    assert all("GB needed" in row["skipped"] for row in huge)


@pytest.mark.slow("a benchmark")
def test_growth_counts_the_copies_of_a_model(tmp_path):
    """3 million parameters: `held` counts private memory, and shared memory once."""
    mpi = next(iter(available().values()))
    code = """
import ctypes, sys
import torch
from mpi4py import MPI
from lsam_hpc import rma
from lsam_hpc.tools.bench.memory import held
comm, size = MPI.COMM_WORLD, 3_000_000
before = held(comm)
vector = torch.ones(size)
with rma.Center(comm, size) as center:
    center.read(vector.numpy())
    center.add(vector.numpy())
    rma.barrier(comm)
    more = held(comm) - before
total = comm.allreduce(more) / 4 / size
assert abs(total - (comm.size + 1)) < 0.1, total
"""
    done = run(mpi.command(2, mpi.python, "-c", code), timeout=120)  # not forked: a forked process shares memory
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_benchmark_of_several_ranks_needs_several():
    mpi = next(iter(available().values()))
    one = run(mpi.command(1, mpi.forked, "-m", "lsam_hpc", "bench", "exchange"), timeout=60)
    assert one.returncode == 2
    assert one.stderr.count("expected 2 ranks or more, as in mpirun -n 2 lsam bench exchange, found 1") == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            ("log", "--json", "no/such/b.json"),
            "--json: expected a file in a directory that exists, found no/such/b.json",
        ),
        (("log", "--json", "."), "--json: expected a file in a directory that exists, found ."),
        (("log", "--shard"), "--shard: expected the benchmark growth, found log"),
        (("log", "--repeats", "0"), "--repeats: expected 1 or more, found 0"),
        (("simulate", "--json", "no/b.json"), "--json: expected a file in a directory that exists, found no/b.json"),
        (("simulate", "--np", "2,x"), "--np: expected numbers of ranks such as 1,2,4, found 2,x"),
        (("simulate", "--np", "0"), "--np: expected numbers of ranks such as 1,2,4, found 0"),
        (("simulate", "--seconds", "nan"), "--seconds: expected a number from 1 on, found nan"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_measured(words, named, capsys):
    assert main(["bench", *words]) == 2
    assert capsys.readouterr().err == f"lsam bench: {named}\n"


def test_medians_are_timed_in_turn_after_warm_up_rounds():
    order = []
    seconds = medians(20, {name: (lambda: None, lambda n=name: order.append(n)) for name in "ab"})
    assert order == ["a", "b"] * 22
    assert set(seconds) == {"a", "b"}


def test_medians_include_the_wait_for_a_gpu_and_start_after_one(monkeypatch):
    clock, started = [0.0], [0.0]  # a second of work is started; waiting for it takes the time
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def start(seconds):
        started[0] += seconds

    def wait():
        clock[0] += started[0]
        started[0] = 0.0

    timed = {"one": (lambda: start(5.0), lambda: start(1.0)), "two": (lambda: None, lambda: start(2.0))}
    assert medians(3, timed, wait) == {"one": 1.0, "two": 2.0}


def test_ranks_share_the_gpus_that_are_there(monkeypatch):
    assert device_of(3) == torch.device("cpu")
    monkeypatch.setattr(accelerators, "usable", lambda: ["cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_of(rank) for rank in range(3)] == [torch.device("cuda", index) for index in (0, 1, 0)]


@pytest.mark.parametrize("argv", [["bench", "nothing"], ["bench", "optimizer", "--repeats", "0"], ["bench", "report"]])
def test_bad_usage(argv, capsys):
    try:
        code = main(argv)
    except InputError:
        code = None
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_report_is_unchanged_by_writing_and_reading(tmp_path):
    report = Report("log", "lsam bench log", 3, False, {"ranks": "1"}, [{"": "a", "x": 0.1 + 0.2}])
    report.write(tmp_path / "r.json")
    assert Report.read(tmp_path / "r.json") == report
    assert json.loads((tmp_path / "r.json").read_text())["rows"][0]["x"] == 0.1 + 0.2


def test_bench_simulate_prints_what_it_would_write(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(simulate, "compare", lambda case, *_: [{"": case.name, "steps/s": 1 / 3}])
    monkeypatch.setattr(simulate, "measure", lambda *_: SimpleNamespace(numbers=lambda: {"step": 0.1}))
    monkeypatch.setattr(simulate, "describe_machine", lambda: {"cpu": "any"})
    assert main(["bench", "simulate", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["steps/s"] for row in printed["rows"]] == [1 / 3] * len(simulate.CASES)
    words = ["bench", "simulate", "--json", str(tmp_path / "b.json")]
    assert main(words) == 0
    assert "0.333" in capsys.readouterr().out
    assert json.loads((tmp_path / "b.json").read_text()) == printed
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_of_loops_in_each_other_the_outer_one_shows_the_progress(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PAUSE", -1.0)
    show_progress("lsam bench any")
    try:
        for _ in counted("ab"):
            medians(3, {"a": (lambda: None, lambda: None)})
        next(counted("cd"))  # a loop that is left early
        medians(2, {"a": (lambda: None, lambda: None)})
    finally:
        show_progress(None)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines[:2]] == [f"lsam bench any: {i} of 2" for i in (1, 2)]
    assert lines[-1].startswith("lsam bench any: 3 of 3, ")  # a warm-up and two repeats
    medians(3, {"a": (lambda: None, lambda: None)})
    assert capsys.readouterr().err == ""
