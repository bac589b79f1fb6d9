"""`lsam train --profile` and `lsam timeline`: one trace with the operations and exchanges of all ranks."""

import gzip
import json

import numpy as np

from lsam_hpc.trajectory import Run
from tests.helpers.mpis import run


def test_the_timeline_merges_the_profiles(mpi, tmp_path):
    lsam, out = [mpi.forked, "-m", "lsam_hpc"], tmp_path / "run"
    # Equal shares, so that both ranks reach the profiled steps.
    words = ["--steps", "60", "--budget", "per-rank", "--profile", "10:20", "--out", str(out)]
    done = run(mpi.command(2, *lsam, "train", *words), 120)
    assert done.returncode == 0, done.stderr
    assert "USDT" not in done.stderr
    assert sorted(p.name for p in (out / "profile").iterdir()) == ["rank-0000.json.gz", "rank-0001.json.gz"]
    merged = run([*lsam, "timeline", str(out), str(tmp_path / "trace.json.gz")], 60)
    assert merged.returncode == 0, merged.stderr
    trace = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in trace if e["name"] == "thread_name"}
    with Run(out) as logs:
        for rank in (0, 1):
            events = [e for e in trace if e["pid"] == rank and e["ph"] == "X"]
            ops = [e for e in events if names[rank, e["tid"]] == "operations"]
            assert [e["ts"] for e in ops] == sorted(e["ts"] for e in ops)
            steps = logs.steps(rank)
            ends = 1e6 * steps["time"][np.searchsorted(steps["iteration"], [9, 19])]
            # SAM takes two passes per step. The clocks of the profiler and of the log agree to 1 ms.
            losses = [e for e in ops if e["name"] == "aten::cross_entropy_loss"]
            assert len(losses) == 20
            assert ends[0] - 1e3 < losses[0]["ts"]
            assert losses[-1]["ts"] + losses[-1]["dur"] < ends[1] + 1e3
            # Each pass lies within its step in the log.
            drawn = {e["name"]: e for e in events if names[rank, e["tid"]] == "steps"}
            for i, loss in enumerate(losses):
                step = drawn[f"step {10 + i // 2}"]
                assert step["ts"] - 1e3 < loss["ts"] < step["ts"] + step["dur"] + 1e3
            assert any(names[rank, e["tid"]] == "exchanges" for e in events)
            # The exchange thread's arithmetic: x minus center is a subtraction.
            others = {e["name"] for e in events if names[rank, e["tid"]].startswith("operations of thread")}
            assert "aten::sub" in others
