"""Timelines against the trace event format, and against the rows of the log."""

import gzip
import json
import os

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.landscape.chains.timeline import THREADS, events, write_timeline
from lsam_hpc.trajectory import Run
from tests.helpers.logs import make_run

STEPS = np.array([0.5, 1.0, 1.5, 9.0, 9.5])
ITERATIONS = np.array([0, 1, 2, 7, 8])  # rows 3 to 6 were lost


@pytest.fixture
def run(tmp_path):
    """Return a run with sketches and snapshots, with known times in place of the writer's clock."""
    path = make_run(tmp_path / "run", ranks=2, rows=5, states=True)
    (path / "checkpoints").mkdir()
    for name, at in (("rank-0001-000000000010.pt", 3.0), ("center.pt", 7.0)):
        (path / "checkpoints" / name).touch()
        os.utime(path / "checkpoints" / name, (at, at))
    run = Run(path)
    for rank in run.ranks:
        steps, exchanges = run.steps(rank), run.exchanges(rank)
        steps |= {"time": STEPS, "iteration": ITERATIONS, "loss": np.array([1, 2, np.nan, 4, 5], np.float32)}
        exchanges |= {
            "time": np.array([0.25, 0.75, 1.25, 9.1, 9.2]),
            "seconds": np.array([0.1, 0.6, np.nan, 0.05, 1], np.float32),  # the second overlaps the third
            "accepted": np.array([1, 1, 1, 0, 1], np.uint8),
            "blocked": np.array([0.01, 0, np.nan, 0.02, 0.03], np.float32),
        }
        real = run.log(rank).table
        tables = {"step": steps, "exchange": exchanges}
        run.log(rank).table = lambda name, real=real, tables=tables: tables.get(name) or real(name)
    return run


def of(trace, rank, thread):
    return [e for e in trace if e["pid"] == rank and e["tid"] == THREADS.index(thread) and e["ph"] != "M"]


def test_events_are_those_of_the_log(run):
    trace = list(events(run))
    steps = of(trace, 1, "steps")
    assert [e["name"] for e in steps] == [f"step {i}" for i in ITERATIONS]
    # The first step and the step after the gap have the median length; others start where the step before ended.
    np.testing.assert_array_equal([e["ts"] for e in steps], [0, 500000, 1000000, 8500000, 9000000])
    np.testing.assert_array_equal([e["ts"] + e["dur"] for e in steps], 1e6 * STEPS)
    assert [e["args"].get("loss") for e in steps] == [1, 2, None, 4, 5]
    assert steps[1]["args"]["lr"] == 1
    exchanges = of(trace, 1, "exchanges")
    assert [(e["ph"], e["name"], e["ts"], e.get("dur")) for e in exchanges] == [
        ("X", "exchange", 250000, 100000),
        ("X", "exchange", 750000, 500000),
        ("i", "exchange", 1250000, None),
        ("X", "rejected exchange", 9100000, 50000),
        ("X", "exchange", 9200000, 1000000),
    ]
    assert exchanges[1]["args"]["staleness"] == 2
    waits = of(trace, 0, "waits")
    assert [(e["ts"], e["dur"], e["args"]["iteration"]) for e in waits] == [
        (250000, 10000, 0),
        (9100000, 20000, 3),
        (9200000, 30000, 4),
    ]
    assert [e["name"] for e in of(trace, 0, "states")] == ["sketch of the sample", "snapshot of the sample"]
    assert [(e["name"], e["ts"]) for e in of(trace, 1, "checkpoints")] == [
        ("checkpoint rank-0001-000000000010.pt", 3000000)
    ]
    assert [(e["name"], e["ts"]) for e in of(trace, 0, "checkpoints")] == [("checkpoint center.pt", 7000000)]


def test_the_file_is_a_trace(run, tmp_path):
    """Check what the Trace Event Format asks for: Google's document, "JSON Object Format" and "Event Descriptions"."""
    path, zipped = tmp_path / "trace.json", tmp_path / "trace.json.gz"
    count = write_timeline(run, path)
    assert write_timeline(run, zipped) == count
    document = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"JSON has no {name}"))
    assert json.loads(gzip.decompress(zipped.read_bytes())) == document
    assert document["displayTimeUnit"] == "ms"
    trace = document["traceEvents"]
    assert len(trace) == count
    for event in trace:
        assert event["ph"] in "XiM"
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] == "M":
            assert set(event["args"]) == {"sort_index" if event["name"] == "process_sort_index" else "name"}
        else:
            assert isinstance(event["ts"], int)
            assert event["ph"] == "i" or event["dur"] >= 0
            assert event["ph"] == "X" or event["s"] == "t"
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace if e["name"] == "thread_name"}
    assert names == {(rank, i): name for rank in (0, 1) for i, name in enumerate(THREADS)}
    assert {e["args"]["name"] for e in trace if e["name"] == "process_name"} == {"rank 0 (here)", "rank 1 (here)"}
    for rank in (0, 1):
        for thread in THREADS:
            of_thread = of(trace, rank, thread)
            ends = [e["ts"] + e.get("dur", 0) for e in of_thread]
            assert all(end <= later["ts"] for end, later in zip(ends, of_thread[1:], strict=False)), thread


def test_bad_names(run, tmp_path):
    with pytest.raises(InputError, match=r"expected a name that ends in .json or .json.gz, found 'trace.txt'"):
        write_timeline(run, tmp_path / "trace.txt")
    (tmp_path / "exists.json").touch()
    with pytest.raises(InputError, match=r"exists.json: expected no such file, found one"):
        write_timeline(run, tmp_path / "exists.json")
