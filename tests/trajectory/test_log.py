"""Writer and reader together: written rows are read back, also while the file is being written."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.trajectory import RankLog, Run, Snapshots, TrajectoryWriter, schema
from tests.helpers.logs import (
    CONFIG,
    LAYOUT,
    SKETCH,
    VECTOR,
    assert_rows,
    attributes,
    exchange_row,
    leave_unclosed,
    make_run,
    step_row,
    write_rows,
)
from tests.helpers.mpis import ROOT
from tests.helpers.waiting import wait_until


@pytest.mark.parametrize("rows", [0, 1, schema.CHUNK_ROWS - 1, schema.CHUNK_ROWS, 2 * schema.CHUNK_ROWS + 5])
def test_every_row_is_read_back(tmp_path, rows):
    run = Run(make_run(tmp_path / "run", rows=rows, states=True))
    assert run.ranks == [0, 1]
    assert run.config == CONFIG
    assert run.problems == []
    for rank in run.ranks:
        assert assert_rows(run, rank, least=rows) == rows
        steps, exchanges = run.steps(rank), run.exchanges(rank)
        assert {name: a.dtype.str[1:] for name, a in steps.items()} == {c.name: c.dtype for c in schema.STEP}
        assert {name: a.dtype.str[1:] for name, a in exchanges.items()} == {c.name: c.dtype for c in schema.EXCHANGE}


@pytest.mark.parametrize("closed", [True, False])
def test_counts(tmp_path, closed):
    if closed:
        path = make_run(tmp_path / "run", rows=101, states=True) / "rank-0001.h5"
    else:
        path = leave_unclosed(tmp_path / "run", 101, sketch=SKETCH, snapshots=Snapshots())
    states = {"sketch/sample": 11, "sketch/center": 0, "snapshot/sample": 2, "snapshot/center": 0}
    assert RankLog(path).counts() == {"step": 101, "exchange": 101, **states, "dropped": 0, "result": 0}


def test_one_file_is_a_run_of_one_rank(tmp_path):
    run = Run(make_run(tmp_path / "run") / "rank-0001.h5")
    assert run.ranks == [1]
    assert run.config == CONFIG
    assert_rows(run, 1, 10, states=False)
    with pytest.raises(InputError, match=r"rank-0001.h5: expected a rank of 1, found 0"):
        run.steps(0)


def test_missing_optional_values(tmp_path):
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes()) as writer:
        writer.step(**{c.name: 1 for c in schema.STEP if not c.optional and c.name != "time"})
        row = exchange_row(1)
        for c in schema.EXCHANGE:
            if c.optional:
                del row[c.name]
        writer.exchange(**row)
    log = RankLog(writer.path)
    for name, columns in (("step", schema.STEP), ("exchange", schema.EXCHANGE)):
        table = log.table(name)
        for c in columns:
            if c.optional:
                np.testing.assert_array_equal(table[c.name], -1 if c.dtype[0] == "i" else np.nan)
            else:
                assert np.isfinite(table[c.name]).all()


def test_plain_h5py_shows_units_and_descriptions(tmp_path):
    make_run(tmp_path / "run", states=True)
    with h5py.File(tmp_path / "run" / "rank-0001.h5") as file:
        for name, attribute in schema.ATTRIBUTES.items():
            kinds = {str: str, int: np.integer, float: np.floating}
            assert isinstance(file.attrs[name], kinds[attribute.kind]), name
        assert file.attrs["rank"] == 1
        assert "HDF5" in file.attrs["creator"]
        for table, columns in schema.TABLES.items():
            for c in schema.stored(columns):
                if table in file:
                    assert file[f"{table}/{c.name}"].attrs["unit"] == c.unit
                    assert file[f"{table}/{c.name}"].attrs["description"] == c.description
        assert list(file["layout/name"].asstr()) == ["weight", "bias", "scale"]
        assert dict(file["sketch"].attrs) | {"description": ""} == {
            "description": "",
            "size": 10,
            "buckets": 16,
            "seed": 7,
        }


def test_hdf5_1_10_can_read_the_file(tmp_path):
    # These bounds exclude newer features of the format.
    make_run(tmp_path / "run")
    with h5py.File(tmp_path / "run" / "rank-0000.h5") as file:
        assert file.id.get_create_plist().get_version()[0] == 3  # superblock
    assert "v110" in TrajectoryWriter.__init__.__globals__["Store"].__init__.__globals__["LIBVER"]


def test_layout(tmp_path):
    run = Run(make_run(tmp_path / "run"))
    assert run.layout == [("weight", (2, 3), 0), ("bias", (3,), 6), ("scale", (), 9)]
    assert run.size == 10
    assert run.sketcher is None
    states = Run(make_run(tmp_path / "states", states=True))
    assert states.sketcher == SKETCH


def test_only_a_finished_run_has_a_result(tmp_path):
    assert Run(make_run(tmp_path / "open")).result(0) is None
    result = Run(make_run(tmp_path / "ended", result={"steps": 3, "sample_test_error": 1.5})).result(1)
    assert {name: value for name, value in result.items() if not np.isnan(value)} == {
        "steps": 3,
        "sample_test_error": 1.5,
    }
    assert result.keys() == {c.name for c in schema.RESULT}


def test_a_sketch_of_one_group(tmp_path):
    run = Run(make_run(tmp_path / "run", states=True, rows=20))
    names = [g.name for g in run.sketcher.groups]
    parts = [run.sketch(0, group=name)["values"] for name in names]
    np.testing.assert_allclose(sum(parts), run.sketch(0)["values"])
    np.testing.assert_array_equal(parts[0][1], SKETCH(10 * VECTOR)[0])
    with pytest.raises(InputError, match="expected a layer group of weight, bias - scale, found 'x'"):
        run.sketch(0, group="x")


def test_snapshots_by_index(tmp_path):
    run = Run(make_run(tmp_path / "run", states=True, rows=201))
    assert set(run.snapshots(0)) == {"iteration", "time", "version"}
    np.testing.assert_array_equal(run.snapshots(0)["version"], [0, 100, 200])
    np.testing.assert_array_equal(run.snapshot(0, -1), 200 * VECTOR)
    for index in (3, -4):
        with pytest.raises(InputError, match=f"expected one of 3 snapshots of rank 0, found index {index}"):
            run.snapshot(0, index)


def test_a_reader_sees_flushed_rows_of_an_open_file(tmp_path):
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(), sketch=SKETCH, snapshots=Snapshots()) as writer:
        run = Run(writer.path)
        for start, end in ((0, 10), (10, 1000), (1000, 1030), (1030, 5000)):
            write_rows(writer, start, end)
            assert writer.flush()
            assert assert_rows(run, 0, least=end) == end
        # Plain h5py needs SWMR mode for a file that is being written.
        with h5py.File(writer.path, libver="latest", swmr=True) as file:
            assert len(file["step/loss"]) == 5000


def test_rows_are_flushed_after_flush_seconds(tmp_path):
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(), flush_seconds=0.01) as writer:
        writer.step(**step_row(0))
        log = RankLog(writer.path)
        wait_until(lambda: log.rows("step") == 1, "a row on disk", pause=0.01)


def test_a_file_that_is_not_closed_is_closed_at_exit(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lsam_hpc.trajectory import TrajectoryWriter\n"
        "from tests.helpers.logs import *\n"
        "writer = TrajectoryWriter(Path(sys.argv[1]), 0, LAYOUT, attributes())\n"
        "write_rows(writer, 0, 10)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, timeout=60)
    with h5py.File(tmp_path / "rank-0000.h5") as file:
        assert len(file["step/loss"]) == 10


def test_the_writer_refuses_what_is_not_in_the_schema(tmp_path):
    with pytest.raises(InputError, match="attributes: expected those of the schema, found a difference in colour"):
        TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(colour="red"))
    with pytest.raises(InputError, match="sketch: expected a map of 10 elements, found one of 9"):
        TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(), sketch=type(SKETCH)(9))
    with pytest.raises(InputError, match="sketched: expected states of sample, center, perturbation, found mood"):
        TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(), sketch=SKETCH, sketched=["mood"])
    assert not list(tmp_path.iterdir())
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(), sketch=SKETCH) as writer:
        with pytest.raises(InputError, match="row: expected the columns iteration"):
            writer.step(iteration=1)
        with pytest.raises(InputError, match="row: expected the columns iteration"):
            writer.step(**step_row(1), colour=1)
        with pytest.raises(InputError, match="sketch: expected a state that has a table, found 'perturbation'"):
            writer.sketch("perturbation", SKETCH(VECTOR), 0)
        with pytest.raises(InputError, match=r"sketch/sample: expected shape \(2, 16\), found \(16,\)"):
            writer.sketch("sample", SKETCH(VECTOR).sum(0), 0)
        with pytest.raises(InputError, match="snapshot: expected a state that has a table, found 'sample'"):
            writer.snapshot("sample", VECTOR, 0)
        with pytest.raises(InputError, match="result: expected keys of the schema, found luck"):
            writer.close({"luck": 1})
    with pytest.raises(InputError, match=r"rank-0000.h5: expected no such file, found one"):
        TrajectoryWriter(tmp_path, 0, LAYOUT, attributes())
    with pytest.raises(InputError, match=r"rank-0000.h5: expected a file that can be made, found: "):
        TrajectoryWriter(tmp_path / "nowhere", 0, LAYOUT, attributes())


def test_rows_after_close_are_dropped_with_a_warning(tmp_path):
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes()) as writer:
        writer.step(**step_row(0))
    with pytest.warns(UserWarning, match="left out"):
        writer.step(**step_row(1))
    assert not writer.flush(0.1)
    writer.close()
    assert RankLog(writer.path).rows("step") == 1


def test_rows_are_read_once_each_while_the_file_grows(tmp_path):
    (tmp_path / "run").mkdir()
    with TrajectoryWriter(tmp_path / "run", 0, LAYOUT, attributes()) as writer:
        log, places, seen = RankLog(writer.path), {"step": 0, "exchange": 0}, []
        for start, stop in ((0, 1), (1, 700), (700, 700), (700, 2500)):
            write_rows(writer, start, stop)
            assert writer.flush()
            while (new := log.after(places, most=400))["step"].rows["time"].size:
                places = {name: part.place for name, part in new.items()}
                assert len(new["step"].rows["iteration"]) <= 400
                assert new["step"].rows.keys() == log.table("step").keys()
                seen += new["step"].rows["iteration"].tolist()
            assert new["step"].stored >= stop
        assert seen == list(range(2500))
    new = log.after({"exchange": 2400}, most=400)["exchange"]  # closed
    assert (new.place, new.stored, new.rows["iteration"].tolist()) == (2500, 2500, list(range(2400, 2500)))


def test_rows_that_the_writer_had_not_finished_are_read_again(tmp_path):
    path = leave_unclosed(tmp_path / "run", 100)
    whole = path.read_bytes()
    log, broken = RankLog(path, partial=True), bytearray(whole)
    crc = log.table("step")["loss"][-1].tobytes()  # the last loss is in one place of the file
    assert whole.count(crc) >= 1
    at = whole.rindex(crc)
    broken[at : at + 4] = b"\x01\x02\x03\x04"
    path.write_bytes(broken)
    new = log.after({"step": 40}, most=1000)["step"]
    assert (new.place, len(new.rows["loss"])) == (99, 59)
    path.write_bytes(whole)
    new = log.after({"step": new.place}, most=1000)["step"]
    assert (new.place, new.rows["iteration"].tolist()) == (100, [99])
