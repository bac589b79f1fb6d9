"""`lsam report --live`: what the page shows, against `lsam monitor`; and what the server answers, and refuses."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.rundir.holder import NAME, Holder, Progress, as_line
from lsam_hpc.rundir.processes import this_process
from lsam_hpc.tools import live, live_ranks, monitor
from lsam_hpc.tools.live_ranks import LiveRun
from lsam_hpc.tools.report import main
from lsam_hpc.trajectory import Run, TrajectoryWriter
from tests.helpers.logs import LAYOUT, attributes, exchange_row, make_run, step_row, write_rows
from tests.helpers.mpis import ROOT


def start_run(path, ranks=2, **more):
    path.mkdir()
    (path / "config.json").write_text("{}")
    about = attributes(ranks, start_time=time.time(), **more)
    return [TrajectoryWriter(path, rank, LAYOUT, about) for rank in range(ranks)]


def numbers_of_the_monitor(path):
    """Return the table's numbers, as `lsam monitor` computes them from all rows."""
    with Run(path, partial=True) as run:
        return [
            (s.rank, s.host, s.state, s.step, s.loss, s.rate, s.staleness_mean, s.staleness_max, s.distance, s.refused)
            for s in monitor.statuses(run, time.time())
        ]


def numbers_of_the_page(seen):
    names = ("rank", "host", "state", "step", "loss", "rate", "staleness_mean", "staleness_max", "distance", "refused")
    return [tuple(np.nan if row[name] is None else row[name] for name in names) for row in seen["ranks"]]


def assert_same(path, seen):
    for ours, known in zip(numbers_of_the_page(seen), numbers_of_the_monitor(path), strict=True):
        assert ours[:4] == known[:4]
        np.testing.assert_allclose(ours[4:], known[4:], rtol=1e-5)


def test_new_rows_only_give_the_monitors_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(live_ranks, "ROWS", 300)  # a look reads 150 rows of each table of a rank
    monkeypatch.setattr(live_ranks, "LEAST", 10)
    path = tmp_path / "run"
    writers = start_run(path)
    chance = np.random.default_rng(0)
    run = LiveRun(path)
    for pieces in range(3):
        for writer in writers:
            for i in range(int(chance.integers(0, 500))):
                writer.step(**{**step_row(i), "loss": chance.random()})
                row = {
                    "staleness": 9 if pieces == i == 0 else int(chance.integers(9)),
                    "accepted": int(chance.random() < 0.9),
                }
                writer.exchange(**{**exchange_row(i), **row, "center_distance": chance.random()})
            assert writer.flush()
        looks = [run.look()]
        while looks[-1]["behind"]:
            looks.append(run.look())
        assert_same(path, looks[-1])
    assert len(looks) > 1
    for writer in writers:
        writer.close({"steps": 1})
    seen = run.look()
    assert (seen["over"], [row["state"] for row in seen["ranks"]]) == (True, ["ended", "ended"])
    assert_same(path, seen)
    json.dumps(seen, allow_nan=False)
    for rank in (0, 1):
        steps, curve = run._chains[rank].curves["loss"], seen["curves"]["loss"][rank]
        assert steps.rows == len(Run(path).steps(rank)["time"])
        assert len(curve["x"]) <= 256
        # The mean of all rows is that of the buckets, which hold `width` rows each, the last one the rest.
        weights = np.full(len(curve["x"]), steps.width)
        weights[-1] = steps.rows - steps.width * (len(weights) - 1)
        mean = Run(path).steps(rank)["loss"].mean(dtype=np.float64)
        assert np.average(curve["mean"], weights=weights) == pytest.approx(mean, rel=1e-5)


def test_a_job_that_resumes_and_a_log_that_is_missing_or_damaged(tmp_path):
    path = make_run(tmp_path / "run", rows=100)
    run = LiveRun(path)
    assert run.look()["ranks"][1]["step"] == 100
    (path / "rank-0001.h5").unlink()
    seen = run.look()
    assert any("rank-0001.h5: expected a readable file" in text for text in seen["problems"])
    with TrajectoryWriter(path, 1, LAYOUT, attributes(2)) as writer:
        write_rows(writer, 0, 30)
    seen = run.look()
    assert ([row["step"] for row in seen["ranks"]], seen["problems"]) == ([100, 30], [])
    assert len(seen["curves"]["loss"][1]["x"]) == 30
    (path / "rank-0000.h5").write_bytes(b"nothing")
    assert any("rank-0000.h5: expected a readable HDF5 file" in text for text in run.look()["problems"])


def test_progress_and_lost_ranks_of_a_lock(tmp_path):
    path = tmp_path / "run"
    writers = start_run(path)
    (path / "config.json").write_text('{"out": "x"}')
    for writer in writers:
        for i in range(100):
            writer.step(**step_row(i))
        writer.flush()
    here = this_process()
    holder = Holder("t", "4711", "n1", 9, 0, [here, here], 0, [0, 1])
    progress = Progress([100, 130], [1], 1000)
    (path / NAME).write_bytes(as_line(holder) + as_line(progress))
    run = LiveRun(path)
    seen = run.look()
    assert [row["state"] for row in seen["ranks"]] == ["running", "lost"]
    assert [row["step"] for row in seen["ranks"]] == [100, 130]
    assert seen["job"] == "job 4711: running on n1"
    rate = seen["ranks"][0]["rate"]
    assert seen["progress"] == {"step": 199, "total": 1000, "rate": rate, "left": pytest.approx((1000 - 199) / rate)}
    assert 0 <= seen["heartbeat"] < 5
    for writer in writers:
        writer.close()


def test_a_run_of_many_ranks_sends_the_curves_of_some(tmp_path):
    path = make_run(tmp_path / "run", ranks=11, rows=3)
    seen = LiveRun(path).look(8)
    assert (len(seen["ranks"]), seen["all"], list(seen["curves"]["loss"])) == (11, 11, [8, 9, 10])
    assert list(LiveRun(path).look()["curves"]["loss"]) == list(range(8))


@pytest.fixture
def server(tmp_path):
    path = make_run(tmp_path / "run", rows=50)
    with live.LiveServer(path, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, path, method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_only_the_page_and_its_data_are_served(server, tmp_path):
    before = {f: (hashlib.sha256(f.read_bytes()).digest(), f.stat().st_mtime_ns) for f in (tmp_path / "run").iterdir()}
    answer, page = ask(server, "/")
    assert answer.status == 200
    assert b"http" not in page.replace(b"http://www.w3.org/2000/svg", b"")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    answer, data = ask(server, "/data?first=0")
    assert (answer.status, json.loads(data)["name"]) == (200, "run")
    assert ask(server, "/data?first=-1%00")[0].status == 200
    for path in ("/config.json", "/../run/config.json", "/..%2f..%2fetc/passwd", "//etc/passwd", "/data/", "/?x", "/."):
        answer, body = ask(server, path)
        assert (answer.status, body) == (404, b"there is only one page here: /\n"), path
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, "/", method)[0].status == 501
    assert ask(server, "/", "HEAD")[1] == b""
    for host, status in (("evil.example:80", 403), ("", 403), ("localhost:9999", 200), ("127.0.0.1", 200)):
        assert ask(server, "/data", host=host)[0].status == status, host
    after = {f: (hashlib.sha256(f.read_bytes()).digest(), f.stat().st_mtime_ns) for f in (tmp_path / "run").iterdir()}
    assert before == after


def test_only_this_machine_is_answered(server):
    assert server.server_address[0] == "127.0.0.1"


def test_two_pages_do_not_make_it_read_more_often(server, monkeypatch):
    looks = []
    look = server._run.look
    monkeypatch.setattr(server._run, "look", lambda first: looks.append(first) or look(first))
    for _ in range(5):
        assert json.loads(ask(server, "/data")[1])["again"] == 2
    assert looks == [0]


def test_a_run_that_goes_away_is_named(server, tmp_path):
    (tmp_path / "run").rename(tmp_path / "other")
    error = json.loads(ask(server, "/data")[1])["error"]
    assert error.endswith("run: expected a run directory with config.json, found none")


def test_bad_input(tmp_path):
    path = make_run(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"^--port: expected a free port, found {port}: one in use$"):
            main([str(path), "--live", "--port", str(port)])
    for words, line in (
        ((str(tmp_path / "none"), "--live"), r"none: expected a run directory, found nothing"),
        ((str(tmp_path), "--live"), r"expected a run directory with config.json, found none"),
        ((str(path / "rank-0000.h5"), "--live"), r"expected a run directory for --live, found a file"),
        ((str(path), "--live", "--port", "70000"), r"--port: expected 0 to 65535, found 70000"),
        ((str(path), "--port", "8000"), r"--port: expected --live with it, found none"),
        ((str(path), "--live", "--data-dir", "x"), r"--live: expected no other options than .*, found --data-dir"),
    ):
        with pytest.raises(InputError, match=line):
            main(words)


def test_ctrl_c_ends_it_and_says_so(tmp_path):
    path = make_run(tmp_path / "run")
    code = "import sys; from lsam_hpc import cli; sys.exit(cli.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "report", str(path), "--live"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
    )
    try:
        line = process.stdout.readline()
        url = line.split()[1]
        assert line == f"{path}: {url} (Ctrl-C ends it)\n"
        port = int(url.rsplit(":", 1)[1].strip("/"))
        with socket.create_connection(("127.0.0.1", port)):  # a page that keeps its connection
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (0, f"\n{url}: no longer served; the run was not touched\n", "")
