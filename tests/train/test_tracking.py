"""Trackers: real packages, written without a network; a tracker that fails or blocks changes nothing."""

import csv
import json
import logging
import shutil
import threading

import pytest

from lsam_hpc import InputError
from lsam_hpc.train import tracking
from lsam_hpc.train.trackers import TRACKERS
from lsam_hpc.train.tracking import Tracking, trackers
from tests.helpers.mpis import run as command

OPTIONS = {"lr": 0.1, "data": "digits"}
RESULTS = {"center_test_error": 2.5, "sample_test_error": float("nan")}


class Chain:
    param_groups = ({"lr": 0.1, "rho": 0.05},)
    center_distance = float("nan")  # before the first exchange

    @staticmethod
    def stats():
        return {"staleness_mean": 0.25}


def track(names, folder, monkeypatch):
    """Track three steps, a point each."""
    monkeypatch.setattr(tracking, "INTERVAL", 0.0)
    with Tracking(names, folder, OPTIONS) as tracked:
        for step, loss in enumerate((3.0, 2.0, 1.0)):
            tracked.step(Chain, step, loss)
        tracked.end(RESULTS)


def test_csv(tmp_path, monkeypatch):
    for _ in range(2):  # the second time as a resumed job does
        track(["csv"], tmp_path, monkeypatch)
    with (tmp_path / "tracked.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["lr"]) for row in rows] == [
        ("0", "3.0", "0.1"),
        ("1", "2.0", "0.1"),
        ("2", "1.0", "0.1"),
    ] * 2
    assert json.loads((tmp_path / "tracked-results.json").read_text()) == {"center_test_error": 2.5}


def test_a_number_that_is_not_known_at_first(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "INTERVAL", 0.0)
    chain = Chain()
    with Tracking(["csv"], tmp_path, OPTIONS) as tracked:
        tracked.step(chain, 0, 3.0)  # before the first exchange
        chain.center_distance = 0.5
        tracked.step(chain, 1, 2.0)
    with (tmp_path / "tracked.csv").open() as file:
        assert [row["center_distance"] for row in csv.DictReader(file)] == ["", "0.5"]


def test_a_point_has_the_mean_loss_since_the_last_one(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now[0])
    with Tracking(["csv"], tmp_path, OPTIONS) as tracked:
        for step, loss in enumerate((3.0, 2.0, 1.0, 5.0, 7.0)):
            now[0] += 0.5
            tracked.step(Chain, step, loss)
    with (tmp_path / "tracked.csv").open() as file:
        assert [(r["step"], r["loss"], r["steps_per_second"]) for r in csv.DictReader(file)] == [
            ("1", "2.5", "2.0"),
            ("3", "3.0", "2.0"),
        ]


def test_tensorboard(tmp_path, monkeypatch):
    track(["tensorboard"], tmp_path, monkeypatch)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert [(event.step, event.value) for event in events.Scalars("result/center_test_error")] == [(2, 2.5)]


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else the tracker sets it, as in the job below
    track(["mlflow"], tmp_path, monkeypatch)
    client = mlflow.MlflowClient((tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("lsam-hpc").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "data": "digits"}
    assert run.data.metrics["result_center_test_error"] == 2.5
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]


def test_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)
    track(["wandb"], tmp_path, monkeypatch)
    points, summary = [], {}
    for data in leveldb_records(next(tmp_path.glob("wandb/offline-run-*/*.wandb")).read_bytes()[7:], 7):
        record = Record()
        record.ParseFromString(data)
        values = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if values:
            points.append((values["_step"], values["loss"]))
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    assert sorted(points) == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert summary["center_test_error"] == 2.5


def leveldb_records(data, at):
    """Yield the records of a file in LevelDB's log format, which W&B's offline files have after 7 bytes."""
    block, parts = 1 << 15, b""
    start = 0
    while start + 7 <= len(data):
        left = block - (start + at) % block
        if left < 7:  # too short for a header: padding
            start += left
            continue
        length, kind = int.from_bytes(data[start + 4 : start + 6], "little"), data[start + 6]
        parts += data[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


class Failing:
    def __init__(self, run_dir, options):
        self.run_dir = run_dir

    def log(self, step, values):
        raise RuntimeError("the server is away\nand more")

    def close(self, results):
        (self.run_dir / "closed").touch()


def test_a_tracker_that_raises_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(TRACKERS, "failing", Failing)
    with caplog.at_level(logging.WARNING, "lsam_hpc"):
        track(["failing", "csv"], tmp_path, monkeypatch)
    assert [record.getMessage() for record in caplog.records] == [
        "--track failing: not written any more: the server is away"
    ]
    assert len((tmp_path / "tracked.csv").read_text().splitlines()) == 4
    assert not (tmp_path / "closed").exists()


def test_a_tracker_that_blocks_is_left_behind(tmp_path, monkeypatch, caplog):
    free = threading.Event()

    class Blocking(Failing):
        def log(self, step, values):
            free.wait()

    monkeypatch.setitem(TRACKERS, "blocking", Blocking)
    monkeypatch.setattr(tracking, "PATIENCE", 0.1)
    monkeypatch.setattr(tracking, "WAITING", 1)
    with caplog.at_level(logging.WARNING, "lsam_hpc"):
        track(["blocking"], tmp_path, monkeypatch)
    free.set()
    assert "--track blocking: not finished after 0 s, and left behind" in caplog.text
    assert "points were dropped: too slow" in caplog.text


def test_bad_names(monkeypatch):
    assert trackers("none") == []
    assert trackers("csv, tensorboard") == ["csv", "tensorboard"]
    with pytest.raises(
        InputError, match="--track: expected none, or some of csv, tensorboard, wandb, mlflow, found 'c"
    ):
        trackers("comet")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"--track wandb: expected the package wandb \(pip install wandb\), found none"
    ):
        trackers("wandb")


@pytest.mark.slow("a job with all trackers")
def test_a_job_without_a_network(openmpi, tmp_path):
    isolated = ["unshare", "-n"] if shutil.which("unshare") else []
    words = ["-m", "lsam_hpc", "train", "--steps", "400", "--out", str(tmp_path / "run")]
    done = command([*isolated, openmpi.python, *words, "--track", "csv,tensorboard,wandb,mlflow"], 180)
    assert done.returncode == 0, done.stderr
    assert "--track" not in done.stderr
    for pattern in ("tracked-results.json", "tensorboard/events*", "wandb/offline-run-*/*.wandb", "mlflow/*/*/metrics"):
        assert list((tmp_path / "run").glob(pattern)), pattern
