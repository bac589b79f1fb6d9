"""Traces of the profiler on the clock of the run, against traces made by hand."""

import gzip
import json

import pytest

from lsam_hpc import InputError
from lsam_hpc.landscape.chains.timeline import events
from lsam_hpc.landscape.geometry.profiles import profile_events, profiles
from lsam_hpc.trajectory import Run
from tests.helpers.logs import make_run

BASE = 1_700_000_000 * 10**9  # nanoseconds
START = 1_700_000_003.0  # the run begins three seconds later, so 4e6 microseconds after the base are 1e6 of the run


def op(name, pid, tid, ts, **more):
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": 5.0, **more}


def labels(pid, text):
    return {"ph": "M", "name": "process_labels", "pid": pid, "tid": 0, "ts": 0, "args": {"labels": text}}


MADE = [
    labels(77, "CPU"),
    labels(0, "GPU 0"),
    labels(1, "GPU 1"),  # without events
    op("late", 77, 77, 4000002.5),
    op("early", 77, 77, 4000001.0),
    op("other thread", 77, 78, 4000001.5),
    op("kernel", 0, 7, 4000003.0),
    {"ph": "s", "id": 5, "name": "ac2g", "cat": "ac2g", "pid": 77, "tid": 77, "ts": 4000002.6},
    {"ph": "X", "name": "PyTorch Profiler (0)", "pid": "Spans", "tid": "PyTorch Profiler", "ts": 1.0, "dur": 2.0},
    {"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": 2.0},
]


def write(path, trace):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(trace).encode()))
    return path


def test_a_trace_is_shifted_to_the_clock_of_the_run(tmp_path):
    path = write(tmp_path / "rank-0003.json.gz", {"baseTimeNanoseconds": BASE, "traceEvents": MADE})
    shifted = list(profile_events(path, 3, START, 8))
    assert [(e["name"], e["pid"], e["tid"], e["ts"]) for e in shifted if e["ph"] != "M"] == [
        ("early", 3, 77, 1000001.0),
        ("other thread", 3, 78, 1000001.5),
        ("late", 3, 77, 1000002.5),
        ("ac2g", 3, 77, 1000002.6),
        ("kernel", 8, 7, 1000003.0),
    ]
    assert [e["id"] for e in shifted if "id" in e] == ["3.5"]
    assert {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in shifted if e["ph"] == "M"} == {
        ("thread_name", 3, 77): "operations",
        ("thread_name", 3, 78): "operations of thread 78",
        ("process_name", 8, 0): "rank 3, GPU 0",
        ("thread_name", 8, 7): "stream 7",
    }


def test_the_timeline_contains_the_traces_of_all_ranks(tmp_path):
    path = make_run(tmp_path / "run", ranks=2, rows=5)
    with Run(path) as run:
        before = list(events(run))
        start = int(run.log(0).attributes["start_time"])
        for rank in (0, 1, 2):  # there is no rank 2 in the log
            trace = {"baseTimeNanoseconds": start * 10**9, "traceEvents": MADE}
            write(path / "profile" / f"rank-{rank:04d}.json.gz", trace)
        (path / "profile" / "part-rank-0001.json.gz").touch()
        assert list(profiles(path / "profile")) == [0, 1, 2]
        with_profiles = list(events(run))
    assert with_profiles[: len(before)] == before
    kernels = [e for e in with_profiles if e["name"] == "kernel"]
    assert [e["pid"] for e in kernels] == [2, 3]  # separate processes
    shift = float(run.log(0).attributes["start_time"]) - start
    assert [e["ts"] for e in kernels] == pytest.approx([4000003.0 - 1e6 * shift] * 2, abs=1e-3)


@pytest.mark.parametrize(
    "data",
    [
        b"no gzip",
        gzip.compress(b"no JSON"),
        gzip.compress(b"{}")[:-6],
        gzip.compress(b"[]"),
        gzip.compress(b'{"traceEvents": []}'),
        gzip.compress(b'{"baseTimeNanoseconds": 0, "traceEvents": [{"ph": "X", "pid": 1, "tid": 1}]}'),
        gzip.compress(b'{"baseTimeNanoseconds": 0, "traceEvents": [{"ph": "X", "pid": 1, "tid": 1, "ts": NaN}]}'),
        gzip.compress(b'{"baseTimeNanoseconds": 0, "traceEvents": [3]}'),
    ],
    ids=range(8),  # compressed data holds the time: workers would collect tests of different names
)
def test_files_that_are_not_traces(tmp_path, data):
    path = tmp_path / "rank-0000.json.gz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"rank-0000.json.gz: expected a trace of torch.profiler, found: "):
        list(profile_events(path, 0, 0.0, 1))
