"""Logs for tests that read them: every value follows from the number of its row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np

from lsam_hpc.trajectory import CountSketch, Run, Snapshots, TrajectoryWriter, layer_groups

LAYOUT = [("weight", (2, 3)), ("bias", (3,)), ("scale", ())]
CONFIG = {"data": "digits", "rho": 0.1}
VECTOR = np.array([1.0, -2.0, 0.5, 3.0, -0.25, 4.0, 8.0, -16.0, 0.125, 2.0], np.float32)
SKETCH = CountSketch(10, layer_groups(LAYOUT, 2), buckets=16, seed=7)


def attributes(ranks: int = 1, **more: str | int | float) -> dict[str, str | int | float]:
    """Return root attributes for a writer."""
    defaults: dict[str, str | int | float] = {
        "code_version": "0",
        "git_commit": "",
        "git_dirty": -1,
        "created": "2026-01-01T00:00:00+00:00",
        "start_time": 0.0,
        "config": json.dumps(CONFIG),
        "ranks": ranks,
        "seed": 0,
        "host": "here",
        "mpi_library": "none",
        "launcher": "none",
        "job_id": "",
        "torch_version": "0",
        "device": "cpu",
    }
    return {**defaults, **more}


def step_row(i: int) -> dict[str, float]:
    """Return the columns of step i; every value follows from i."""
    return {
        "iteration": i,
        "total_iteration": 2 * i,
        "loss": i / 2,
        "grad_norm": i,
        "perturbation_norm": i,
        "center_distance": i,
        "lr": i,
        "rho": i,
    }


def exchange_row(i: int) -> dict[str, float]:
    """Return the columns of exchange i; every value follows from i."""
    return {
        "began": float(i),
        "iteration": i,
        "seconds": i,
        "version_read": i,
        "version_added": i + 2,
        "staleness": 2,
        "bytes": 8 * i,
        "center_distance": i,
        "delta_norm": i,
        "accepted": 1,
        "delay": i % 5,
        "blocked": i,
    }


def write_rows(writer: TrajectoryWriter, start: int, stop: int) -> None:
    """Log steps and exchanges start to stop, a sketch of each 10th and a snapshot of each 100th."""
    for i in range(start, stop):
        writer.step(**step_row(i))
        writer.exchange(**exchange_row(i))
        if writer.sketcher and i % 10 == 0:
            writer.sketch("sample", writer.sketcher(i * VECTOR), i, i)
        if writer.snapshots and i % 100 == 0:
            writer.snapshot("sample", i * VECTOR, i, i)


def assert_rows(run: Run, rank: int, least: int = 0, most: int | None = None, states: bool = True) -> int:
    """Assert that a rank's rows are the first rows of `write_rows`, without gaps; return the number of steps."""
    steps, exchanges = run.steps(rank), run.exchanges(rank)
    count = len(steps["iteration"])
    i = np.arange(max(count, len(exchanges["iteration"])))
    for name, value in step_row(1).items():
        np.testing.assert_array_equal(steps[name], (value * i[:count]).astype(steps[name].dtype), err_msg=name)
    e = i[: len(exchanges["iteration"])]
    for name in ("iteration", "time", "version_read", "seconds", "delta_norm", "blocked"):
        np.testing.assert_array_equal(exchanges[name], e, err_msg=name)
    np.testing.assert_array_equal(exchanges["version_added"], e + 2)
    np.testing.assert_array_equal(exchanges["delay"], e % 5)
    assert least <= count
    assert least <= len(e)
    assert most is None or max(count, len(e)) <= most
    if states:
        sketches = run.sketch(rank)
        np.testing.assert_array_equal(sketches["iteration"], 10 * np.arange(len(sketches["iteration"])))
        expected = [SKETCH(k * VECTOR).sum(0) for k in sketches["iteration"]]
        np.testing.assert_array_equal(sketches["values"], np.reshape(expected, (-1, SKETCH.buckets)))
        table, vectors = run.logs[rank].values("snapshot/sample")
        iterations = table["iteration"]
        np.testing.assert_array_equal(iterations, 100 * np.arange(len(iterations)))
        np.testing.assert_array_equal(vectors, np.outer(iterations, VECTOR))
        assert len(sketches["iteration"]) >= -(-least // 10)
        assert len(iterations) >= -(-least // 100)
    return count


def make_run(
    path: Path, ranks: int = 2, rows: int = 10, result: dict[str, float] | None = None, states: bool = False
) -> Path:
    """Write a whole run directory, with sketches and snapshots if `states`."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    more = {"sketch": SKETCH, "snapshots": Snapshots()} if states else {}
    for rank in range(ranks):
        with TrajectoryWriter(path, rank, LAYOUT, attributes(ranks), **more) as writer:
            write_rows(writer, 0, rows)
            writer.close(result)
    return path


def leave_unclosed(path: Path, rows: int = 10, rank: int = 0, ranks: int = 1, **options: object) -> Path:
    """Leave a rank's file like a killed writer: a copy made while the file was open."""
    path.mkdir(exist_ok=True)
    with TrajectoryWriter(path, rank, LAYOUT, attributes(ranks), **options) as writer:  # type: ignore[arg-type]
        write_rows(writer, 0, rows)
        assert writer.flush()
        copy = shutil.copy(writer.path, path / "copy")
    writer.path.unlink()
    return Path(copy).rename(writer.path)


def make_version_1(path: Path, rank: int = 0, ranks: int = 1, rows: int = 10) -> Path:
    """Write a file like the first writer of lsam-hpc 0.1: no check sums, no paged allocation, result in attributes."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    file = path / f"rank-{rank:04d}.h5"
    text = h5py.string_dtype()
    with h5py.File(file, "x", libver="latest") as root:
        root.attrs.update({**attributes(ranks), "format": "lsam-hpc trajectory", "schema_version": 1, "rank": rank})
        layout = root.create_group("layout")
        layout["name"] = np.array(["weight", "bias", "scale"], dtype=text)
        layout["shape"] = np.array(["2,3", "3", ""], dtype=text)
        layout["offset"] = np.array([0, 6, 9])
        layout.attrs["size"] = 10
        for table, row, integers in (
            ("step", {"time": 1.0, **step_row(1)}, ("iteration", "total_iteration")),
            ("exchange", exchange_row(1), ("iteration", "version_read", "version_added", "staleness", "bytes")),
        ):
            for name in row.keys() - {"delay", "blocked", "began"} | {"time"}:
                values = [
                    {"time": i, **step_row(i)} if table == "step" else {**exchange_row(i), "time": i}
                    for i in range(rows)
                ]
                dtype = "i8" if name in integers else {"time": "f8", "accepted": "u1"}.get(name, "f4")
                data = np.array([v[name] for v in values], dtype)
                root.create_dataset(f"{table}/{name}", data=data, maxshape=(None,), chunks=(1024,))
        root.create_group("result").attrs.update({"steps": 10, "center_test_error": 1.5})
    return file
