"""`lsam export`: the exported files hold what was logged."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from lsam_hpc.cli import main
from lsam_hpc.landscape import read_directions, read_projection
from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter, merge, schema
from tests.helpers.logs import LAYOUT, SKETCH, VECTOR, attributes, exchange_row, leave_unclosed, make_run, step_row
from tests.helpers.logs import make_version_1 as version_1

ROWS = 130
RESULT = {"steps": ROWS, "center_test_error": 1.5}


@pytest.fixture
def path(tmp_path):
    return make_run(tmp_path / "run", 2, ROWS, RESULT, states=True)


def export(path, *words):
    return main(["export", str(path), *map(str, words)])


def check_long(frame, name, rank):
    """Compare a rank's rows of an exported table with what was logged."""
    rows = frame[frame["rank"] == rank]
    i = np.arange(ROWS)
    row = step_row(1) if name == "step" else exchange_row(1)
    assert list(frame.columns) == ["rank", *(c.name for c in schema.TABLES[name])]
    expected = {key: np.array([{**step_row(k), **exchange_row(k)}[key] for k in i]) for key in row if key != "began"}
    for key, values in expected.items():
        if key != "iteration":
            np.testing.assert_array_equal(rows[key].astype("f8"), values.astype("f4" if values.dtype == "f8" else "i8"))
    np.testing.assert_array_equal(rows["iteration"], i)


def test_csv(path, tmp_path, capsys):
    pd = pytest.importorskip("pandas")
    assert export(path, "--to", "csv") == 0
    out = tmp_path / "run.csv"
    assert capsys.readouterr().out == f"{out}: 2 ranks\n"
    assert {f.name for f in out.iterdir()} == {
        "step.csv",
        "exchange.csv",
        "dropped.csv",
        "result.csv",
        "sketch-sample.csv",
        "sketch-center.csv",
        "snapshot-sample.csv",
        "snapshot-center.csv",
    }
    for name in ("step", "exchange"):
        frame = pd.read_csv(out / f"{name}.csv")
        assert len(frame) == 2 * ROWS
        for rank in (0, 1):
            check_long(frame, name, rank)
    result = pd.read_csv(out / "result.csv")
    assert list(result["center_test_error"]) == [1.5, 1.5]
    assert result["seconds"].isna().all()
    assert list(pd.read_csv(out / "snapshot-sample.csv")["iteration"]) == [0, 100] * 2
    assert (out / "dropped.csv").read_text() == "rank,time,rows,values,states\n"


def test_parquet(path, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out"
    assert export(path, "--to", "parquet", "--out", out, "--ranks", "1", "--tables", "exchange,step") == 0
    assert {f.name for f in out.iterdir()} == {"step.parquet", "exchange.parquet"}
    for name in ("step", "exchange"):
        table = pq.read_table(out / f"{name}.parquet")
        check_long(table.to_pandas(), name, 1)
        assert table.num_rows == ROWS
        for c in schema.TABLES[name]:
            assert table.schema.field(c.name).metadata[b"unit"] == c.unit.encode()
    assert str(pq.read_schema(out / "step.parquet").field("loss").type) == "float"


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_unknown_values_are_missing(tmp_path, to):
    pd = pytest.importorskip("pandas")
    if to == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text("{}")
    with TrajectoryWriter(path, 0, LAYOUT, attributes(2), sketch=SKETCH) as writer:
        writer.sketch("sample", SKETCH(VECTOR), 3)
        row = exchange_row(7)
        del row["bytes"], row["blocked"]
        writer.exchange(**row)
    with TrajectoryWriter(path, 1, LAYOUT, attributes(2)) as writer:
        writer.exchange(**exchange_row(8))
    assert export(path, "--to", to) == 0
    read = pd.read_csv if to == "csv" else pd.read_parquet
    sketch = read(tmp_path / f"run.{to}" / f"sketch-sample.{to}")
    assert list(sketch["rank"]) == [0]  # rank 1 has no sketches
    assert sketch["version"].isna().all()
    exchange = read(tmp_path / f"run.{to}" / f"exchange.{to}")
    assert list(exchange["bytes"].isna()) == [True, False]
    assert list(exchange["blocked"].isna()) == [True, False]
    assert exchange["bytes"][1] == 64
    assert list(exchange["staleness"]) == [2, 2]


def test_tensorboard(path, tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "events"
    assert export(path, "--to", "tensorboard", "--out", out) == 0
    assert {f.name for f in out.iterdir()} == {"rank-0000", "rank-0001"}
    times = Run(path).steps(1)["time"]
    events = reading.EventAccumulator(str(out / "rank-0001"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    i = np.arange(ROWS)
    for name, factor in step_row(1).items():
        if name in ("iteration", "total_iteration"):
            assert f"step/{name}" not in tags
            continue
        scalars = events.Scalars(f"step/{name}")
        assert [event.step for event in scalars] == list(2 * i)
        np.testing.assert_array_equal([event.value for event in scalars], (factor * i).astype("f4"))
        np.testing.assert_array_equal([event.wall_time for event in scalars], times)  # the run began at 0 s
    scalars = events.Scalars("exchange/delta_norm")
    assert [event.step for event in scalars] == list(2 * i)  # the exchange after that step
    np.testing.assert_array_equal([event.value for event in scalars], i)
    np.testing.assert_array_equal([event.wall_time for event in scalars], i)
    (event,) = events.Scalars("result/center_test_error")
    assert (event.value, event.step) == (1.5, 2 * (ROWS - 1))
    assert not {"result/seconds", "exchange/time"} & set(tags)
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert json.loads(text) == {"data": "digits", "rho": 0.1}


def test_a_diverged_loss_is_shown_and_unknown_values_are_not(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(), sketch=SKETCH) as writer:
        for i in range(3):
            writer.step(iteration=i, total_iteration=i, loss=np.nan if i else 1.0)
    assert export(writer.path, "--to", "tensorboard") == 0
    events = reading.EventAccumulator(str(tmp_path / "rank-0000.h5.tensorboard" / "rank-0000"))
    events.Reload()
    assert events.Tags()["scalars"] == ["step/loss"]
    np.testing.assert_array_equal([event.value for event in events.Scalars("step/loss")], [1, np.nan, np.nan])


def test_a_result_without_steps(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = make_run(tmp_path / "run", 1, 0, {"seconds": 3})
    assert export(run, "--to", "tensorboard") == 0
    events = reading.EventAccumulator(str(tmp_path / "run.tensorboard" / "rank-0000"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("result/seconds")] == [(0, 3)]


def test_npz(path, tmp_path):
    assert export(path, "--to", "npz") == 0
    with np.load(tmp_path / "run.npz", allow_pickle=False) as arrays:
        assert list(arrays["ranks"]) == [0, 1]
        i = np.arange(ROWS)
        for rank in (0, 1):
            part = f"rank-{rank:04d}"
            for name, factor in step_row(1).items():
                np.testing.assert_array_equal(arrays[f"{part}/step/{name}"], factor * i)
            np.testing.assert_array_equal(arrays[f"{part}/exchange/delta_norm"], i)
            iterations = arrays[f"{part}/sketch/sample/iteration"]
            np.testing.assert_array_equal(iterations, np.arange(0, ROWS, 10))
            expected = [SKETCH(k * VECTOR) for k in iterations]
            np.testing.assert_array_equal(arrays[f"{part}/sketch/sample/values"], expected)
            np.testing.assert_array_equal(arrays[f"{part}/snapshot/sample/values"], [0 * VECTOR, 100 * VECTOR])
            assert arrays[f"{part}/snapshot/center/values"].shape == (0, 10)
            assert list(arrays[f"{part}/layout/name"]) == ["weight", "bias", "scale"]
            assert list(arrays[f"{part}/layout/shape"]) == ["2,3", "3", ""]
            assert list(arrays[f"{part}/layout/offset"]) == [0, 6, 9]
            assert json.loads(str(arrays[f"{part}/attributes"]))["rank"] == rank
            assert arrays[f"{part}/step/loss"].dtype == np.float32
            assert not any("crc" in name and "head" not in name for name in arrays)


def test_npz_by_parts(path, tmp_path, monkeypatch):
    import lsam_hpc.tools.export as tool

    monkeypatch.setattr(tool, "BLOCK", 3 * 2 * SKETCH.buckets)
    assert export(path, "--to", "npz", "--tables", "sketch/sample") == 0
    with np.load(tmp_path / "run.npz", allow_pickle=False) as arrays:
        expected = [SKETCH(k * VECTOR) for k in range(0, ROWS, 10)]
        np.testing.assert_array_equal(arrays["rank-0001/sketch/sample/values"], expected)
        assert "rank-0001/step/loss" not in arrays


def walk(path):
    """Write random walks of two ranks; return their samples."""
    path.mkdir()
    (path / "config.json").write_text("{}")
    samples = np.random.default_rng(0).standard_normal((2, 6, 10)).cumsum(1).astype(np.float32)
    for rank, vectors in enumerate(samples):
        with TrajectoryWriter(path, rank, LAYOUT, attributes(2), snapshots=Snapshots()) as writer:
            for i, vector in enumerate(vectors):
                writer.snapshot("sample", vector, 2**i)
    return samples


def test_li2018(tmp_path):
    samples = walk(tmp_path / "run")
    assert export(tmp_path / "run", "--to", "li2018") == 0
    out = tmp_path / "run.li2018"
    assert {f.name for f in out.iterdir()} == {"directions.h5", "rank-0000_proj.h5", "rank-0001_proj.h5"}
    # For what loss-landscape's plot_trajectory.py draws from these see tests/landscape/formats/test_loss_landscape.py.
    layout = Run(tmp_path / "run").layout
    directions = read_directions(out / "directions.h5", layout)
    matrix = samples.reshape(-1, 10).astype(np.float64)
    _, values, vectors = np.linalg.svd(matrix - matrix.mean(0), full_matrices=False)
    np.testing.assert_allclose(directions.explained, (values**2 / (values**2).sum())[:2], rtol=1e-9)
    for direction, vector in zip((directions.x, directions.y), vectors, strict=False):
        np.testing.assert_allclose(abs(direction @ vector), 1, rtol=1e-6)
    np.testing.assert_array_equal(directions.origin, samples[1, -1])
    for rank in (0, 1):
        projection = read_projection(out / f"rank-000{rank}_proj.h5")
        relative = samples[rank].astype(np.float64) - samples[1, -1]
        # As loss-landscape's project_2D with "cos": the dot product over the direction's norm.
        np.testing.assert_allclose(projection.x, relative @ directions.x / np.linalg.norm(directions.x), atol=1e-5)
        np.testing.assert_allclose(projection.y, relative @ directions.y / np.linalg.norm(directions.y), atol=1e-5)
        np.testing.assert_array_equal(projection.more["iteration"], 2 ** np.arange(6))


@pytest.mark.parametrize("to", ["csv", "parquet", "tensorboard", "npz"])
def test_every_kind_of_run_file(path, tmp_path, to):
    for package in {"csv": ["pandas"], "npz": []}.get(to, [to.replace("parquet", "pyarrow")]):
        pytest.importorskip(package)
    merge(Run(path), tmp_path / "merged.h5")
    killed = leave_unclosed(tmp_path / "killed")
    for n, target in enumerate((path / "rank-0001.h5", tmp_path / "merged.h5", killed, version_1(tmp_path / "first"))):
        assert export(target, "--to", to, "--out", tmp_path / f"out{n}") == 0, target
        if to == "npz":
            with np.load(tmp_path / f"out{n}", allow_pickle=False) as arrays:
                rank = "rank-0001" if n < 2 else "rank-0000"
                loss = arrays[f"{rank}/step/loss"]
                np.testing.assert_array_equal(loss, np.arange(ROWS if n < 2 else 10) / 2)


def test_a_run_that_is_still_written(tmp_path):
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes()) as writer:
        for i in range(10):
            writer.step(**step_row(i))
        assert writer.flush()
        assert export(writer.path, "--to", "npz", "--out", tmp_path / "out.npz") == 0
    with np.load(tmp_path / "out.npz") as arrays:
        np.testing.assert_array_equal(arrays["rank-0000/step/loss"], np.arange(10) / 2)


FORMATS = ["csv", "parquet", "tensorboard", "npz", "li2018"]


def refused(capsys, path, *words):
    before = sorted(path.parent.rglob("*"))
    assert export(path, *words) == 2
    assert sorted(path.parent.rglob("*")) == before, "expected no new files"
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "the following arguments are required: --to"),
        (("--to", "xls"), "--to: invalid choice: 'xls'"),
        (("--to", "csv", "--tables", "step,mood"), "--tables: expected some of step, exchange, .*, found 'mood'"),
        (("--to", "tensorboard", "--tables", "sketch/sample"), "--tables: expected some of .*, found 'sketch/sample'"),
        (("--to", "csv", "--tables", "sketch/perturbation"), "expected the tables .*, found no sketch/perturbation"),
        (("--to", "li2018", "--tables", "step"), "--tables: expected none with --to li2018, found step"),
        (("--to", "csv", "--state", "center"), "--state: expected none with --to csv, found center"),
        (("--to", "csv", "--ranks", "0-2"), "--ranks: expected ranks that .* has, found 0-2"),
        (("--to", "csv", "--ranks", "1-0"), "--ranks: expected ranks that .* has, found 1-0"),
        (("--to", "csv", "--ranks", "one"), "--ranks: expected ranks as in 0,2-4, found 'one'"),
        (("--to", "li2018", "--state", "center"), "expected 3 snapshots of the center or more .*, found 0: snapshots"),
    ],
)
def test_bad_usage(path, capsys, words, line):
    import re

    assert re.search(line, refused(capsys, path, *words))


@pytest.mark.parametrize("to", FORMATS)
def test_nothing_is_overwritten(path, tmp_path, capsys, to):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert refused(capsys, path, "--to", to, "--out", tmp_path / "out").endswith("expected no such file, found one")
    (tmp_path / "out2.part").mkdir()
    assert "out2.part: expected no such directory" in refused(capsys, path, "--to", to, "--out", tmp_path / "out2")
    assert "expected a file that can be made" in refused(capsys, path, "--to", to, "--out", tmp_path / "no" / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


@pytest.mark.parametrize("to", ["csv", "parquet", "tensorboard", "npz"])
def test_damage_is_reported_and_no_file_is_left(path, tmp_path, capsys, to):
    with h5py.File(path / "rank-0001.h5", "r+", libver="latest") as file:
        file["exchange/delta_norm"][3] = 77
    line = refused(capsys, path, "--to", to)
    assert "rank-0001.h5: exchange: expected whole rows, found 1 damaged from row 3 on" in line
    assert export(path, "--to", to, "--partial") == 0
    assert "found 1 damaged from row 3 on" in capsys.readouterr().err


def test_damaged_snapshots_are_left_out(path, tmp_path):
    with h5py.File(path / "rank-0001.h5", "r+", libver="latest") as file:
        file["snapshot/sample/values"][0, 3] = 77
    assert export(path, "--to", "npz", "--partial") == 0
    with np.load(tmp_path / "run.npz") as arrays:
        np.testing.assert_array_equal(arrays["rank-0001/snapshot/sample/values"], [100 * VECTOR])
        np.testing.assert_array_equal(arrays["rank-0001/snapshot/sample/iteration"], [100])
        assert len(arrays["rank-0000/snapshot/sample/values"]) == 2


@pytest.mark.parametrize(
    ("to", "package"),
    [("csv", "pandas"), ("parquet", "pyarrow"), ("parquet", "pandas"), ("tensorboard", "tensorboard")],
)
def test_a_package_that_is_missing(path, capsys, monkeypatch, to, package):
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(capsys, path, "--to", to)
    assert line.endswith(f"{to}: expected the package {package}, found none: pip install 'lsam-hpc[analysis]'")


@pytest.mark.parametrize("to", ["csv", "npz", "li2018"])
def test_full_disk(tmp_path, to):
    """With a limit of 4 KB per file, as on a full disk, the program prints one line and leaves no file."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "import pandas; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from lsam_hpc.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    path = tmp_path / "run"
    if to == "li2018":
        walk(path)
    else:
        make_run(path, 2, ROWS)
    done = subprocess.run(
        [sys.executable, "-c", code, "export", str(path), "--to", to], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr
    assert os.listdir(tmp_path) == ["run"]
