"""Damaged runs: every error is named, and the intact parts can be read with `partial`."""

import os

import h5py
import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter, schema, verify
from tests.helpers.logs import LAYOUT, SKETCH, assert_rows, attributes, exchange_row, leave_unclosed, make_run, step_row


def edit(path, change):
    with h5py.File(path, "r+", libver="latest") as file:
        change(file)


def replace(name, make):
    def change(file):
        del file[name]
        make(file)

    return lambda path: edit(path, change)


def flip(name, row):
    """Flip one bit of a column's value in the file's bytes."""

    def damage(path):
        with h5py.File(path) as file:
            column = file[name]
            at = column.id.get_chunk_info(0).byte_offset + row * column.dtype.itemsize
        with open(path, "r+b") as stream:
            stream.seek(at)
            byte = stream.read(1)[0]
            stream.seek(at)
            stream.write(bytes([byte ^ 1]))

    return damage


DAMAGE = {
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:500]), "rank-0001.h5: expected a readable HDF5 file, found"),
    "text": (lambda p: p.write_bytes(b"not HDF5 at all" * 100), "rank-0001.h5: expected a readable HDF5 file, found"),
    "missing": (lambda p: p.unlink(), "expected the logs of 2 ranks, found none for rank 1"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "rank-0001.h5: expected a file, found something else"),
    "pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "rank-0001.h5: expected a file, found something else"),
    "version": (
        lambda p: edit(p, lambda f: f.attrs.modify("schema_version", 99)),
        "expected schema version 1, 2 or 3, found 99",
    ),
    "format": (lambda p: edit(p, lambda f: f.attrs.modify("format", "else")), "expected a file of format 'lsam-hpc"),
    "attribute": (lambda p: edit(p, lambda f: f.attrs.pop("host")), "expected the attribute host, found none"),
    "kind": (
        lambda p: edit(p, lambda f: f.attrs.create("seed", "x")),
        "rank-0001.h5: expected seed of type int, found 'x'",
    ),
    "array": (lambda p: edit(p, lambda f: f.attrs.create("seed", [1, 2])), "expected a text or a number in seed"),
    "head": (lambda p: edit(p, lambda f: f.attrs.modify("host", "elsewhere")), "found another check sum"),
    "layout": (
        replace("layout/offset", lambda f: f.create_dataset("layout/offset", data=np.arange(3))),
        "expected offsets that follow from the shapes in layout",
    ),
    "sketch": (
        replace("sketch/groups/stop", lambda f: f.create_dataset("sketch/groups/stop", data=np.array([1, 2]))),
        "sketch: groups: expected parts that cover 10 elements",
    ),
    "no layout": (lambda p: edit(p, lambda f: f.pop("layout")), "rank-0001.h5: expected layout/shape, found none"),
    "another rank": (
        lambda p: p.write_bytes((p.parent / "rank-0000.h5").read_bytes()),
        "expected the log of rank 1, found that of rank 0",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_rank_that_cannot_be_read(tmp_path, damage, message):
    path = make_run(tmp_path / "run", states=True)
    damage(path / "rank-0001.h5")
    with pytest.raises(InputError, match=message):
        Run(path)
    run = Run(path, partial=True)
    assert run.ranks == [0]
    assert_rows(run, 0, 10)
    assert "rank 1" in "".join(run.problems)
    assert run.problems[0] in verify(run)


COLUMNS = {
    "type": (
        replace(
            "step/loss",
            lambda f: f.create_dataset("step/loss", data=np.zeros(10, "i2"), maxshape=(None,), chunks=(1024,)),
        ),
        "step",
        "expected a column step/loss of type f4, found",
    ),
    "shape": (
        replace("sketch/sample/values", lambda f: f.create_dataset("sketch/sample/values", (1, 2, 8), "f4")),
        "sketch/sample",
        "expected a column sketch/sample/values of type f4, found",
    ),
    "missing": (lambda p: edit(p, lambda f: f.pop("step/loss")), "step", "step: expected loss, found none"),
    "no table": (lambda p: edit(p, lambda f: f.pop("step")), "step", "expected a table step, found none"),
    "external link": (
        replace("step/loss", lambda f: f.__setitem__("step/loss", h5py.ExternalLink("/etc/passwd", "/"))),
        "step",
        "step: expected loss in this file, found a link to elsewhere",
    ),
    "soft link": (
        replace("step/loss", lambda f: f.__setitem__("step/loss", h5py.SoftLink("/step/lr"))),
        "step",
        "step: expected loss in this file, found a link to elsewhere",
    ),
    "table link": (
        replace("step", lambda f: f.__setitem__("step", h5py.ExternalLink("/etc/passwd", "/"))),
        "step",
        "expected step in this file, found a link to elsewhere",
    ),
    "external storage": (
        replace("step/loss", lambda f: f.create_dataset("step/loss", (10,), "f4", external="/etc/passwd")),
        "step",
        "expected the values of loss in this file, found a reference to another file",
    ),
    "virtual": (
        replace("step/loss", lambda f: f.create_virtual_dataset("step/loss", virtual("/etc/passwd", (10,), "f4"))),
        "step",
        "expected the values of loss in this file, found a reference to another file",
    ),
    "filter": (
        replace(
            "step/loss",
            lambda f: f.create_dataset("step/loss", (10,), "f4", maxshape=(None,), chunks=(1024,), fletcher32=True),
        ),
        "step",
        "expected a known filter in loss, found number 3",
    ),
    "huge": (
        lambda p: edit(p, lambda f: [f["step"][name].resize((2**50,)) for name in f["step"]]),
        "step",
        r"expected \(1125899906842624,\) values in step/iteration, found \d+ bytes",
    ),
    "chunks": (
        replace("step/loss", lambda f: f.create_dataset("step/loss", data=np.zeros(10, "f4"), chunks=(5,))),
        "step",
        "expected chunks as in the schema in step/loss",
    ),
    "fill values": (
        lambda p: edit(p, lambda f: [f["step"][name].resize((12,)) for name in f["step"]]),
        "step",
        "step: expected whole rows, found 2 damaged from row 10 on",
    ),
    "flipped": (flip("step/loss", 4), "step", "step: expected whole rows, found 1 damaged from row 4 on"),
    "flipped sum": (flip("step/crc", 4), "step", "step: expected whole rows, found 1 damaged from row 4 on"),
    "flipped sketch": (flip("sketch/sample/values", 3), "sketch/sample", "sketch/sample: expected whole rows, found 1"),
    "flipped snapshot": (flip("snapshot/sample/crc", 0), "snapshot/sample", "expected whole rows, found 1 damaged"),
}


def virtual(file, shape, dtype):
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource(file, "x", shape, dtype)
    return layout


@pytest.mark.parametrize(("damage", "table", "message"), COLUMNS.values(), ids=COLUMNS.keys())
def test_a_column_that_is_wrong(tmp_path, damage, table, message):
    path = make_run(tmp_path / "run", states=True)
    damage(path / "rank-0000.h5")
    log = Run(path).logs[0]
    read = log.values if "/" in table else log.table
    with pytest.raises(InputError, match=f"rank-0000.h5.*{message}"):
        read(table)
    assert any(message.split(",")[0][-12:] in text for text in verify(Run(path, partial=True)))


def test_partial_leaves_out_damaged_rows(tmp_path):
    path = make_run(tmp_path / "run", states=True, rows=30)
    for damage in (flip("step/loss", 4), flip("step/time", 7), flip("sketch/sample/values", 0)):
        damage(path / "rank-0000.h5")
    run = Run(path, partial=True)
    np.testing.assert_array_equal(run.steps(0)["loss"], np.delete(np.arange(30), [4, 7]) / 2)
    sketches = run.sketch(0)
    np.testing.assert_array_equal(sketches["iteration"], [10, 20])
    assert len(sketches["values"]) == 2
    assert [text.rpartition(": ")[2] for text in run.problems] == [
        "expected whole rows, found 2 damaged from row 4 on",
        "expected whole rows, found 1 damaged from row 0 on",
    ]
    assert_rows(run, 1, 30)


def test_partial_numbers_the_intact_snapshots(tmp_path):
    path = make_run(tmp_path / "run", states=True, rows=301)
    flip("snapshot/sample/iteration", 1)(path / "rank-0000.h5")
    run = Run(path, partial=True)
    iterations = run.snapshots(0)["iteration"]
    np.testing.assert_array_equal(iterations, [0, 200, 300])
    for row, step in enumerate(iterations):
        np.testing.assert_array_equal(run.snapshot(0, row), step * run.snapshot(0, 1) / 200)


def read_all(path):
    log = Run(path).logs[0]
    for table in log.tables:
        (log.values if "/" in table else log.table)(table)


def test_an_unclosed_file_that_was_cut(tmp_path):
    path = leave_unclosed(tmp_path / "run", 5000, sketch=SKETCH, snapshots=Snapshots())
    assert_rows(Run(path), 0, 5000)
    whole = path.read_bytes()
    for size in (len(whole) - 4096, len(whole) - 70000, len(whole) // 2, len(whole) // 9, 100):
        path.write_bytes(whole[:size])
        os.utime(path, (0, 0))
        with pytest.raises(InputError, match=r"truncated|damaged|readable"):
            read_all(path)


def test_damaged_metadata_of_an_unclosed_file_is_an_error(tmp_path):
    # HDF5's SWMR mode waits for ever for the right check sum.
    path = leave_unclosed(tmp_path / "run", 3000)
    with h5py.File(path, libver="latest", swmr=True) as file:
        at = h5py.h5o.get_info(file["step/loss"].id).addr
    with open(path, "r+b") as stream:
        stream.seek(at + 40)
        stream.write(b"\xff\xff")
    os.utime(path, (0, 0))
    with pytest.raises(InputError, match=r"rank-0000.h5: expected a readable HDF5 file, found: .*checksum"):
        Run(path).steps(0)


def test_unwritten_rows_of_an_unclosed_file_are_left_out(tmp_path):
    path = leave_unclosed(tmp_path / "run", 20)
    with h5py.File(path, "r", libver="latest", swmr=True) as file:
        at = [file["step"][c.name].id.get_chunk_info(0).byte_offset for c in schema.STEP]
    with open(path, "r+b") as stream:
        stream.seek(at[0] + 18 * 8)
        stream.write(b"\xff" * 16)  # as if the last two were not written yet
    run = Run(path)
    assert len(run.steps(0)["loss"]) == 18
    assert "step: rows from 18 on are incomplete: the writer had not finished them" in run.problems[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "expected a run directory, found nothing"),
        (lambda p: p.write_text("x"), "run: expected a readable HDF5 file, found: "),
        (lambda p: p.mkdir(), "expected a run directory with config.json, found none"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("{")), "config.json: expected JSON, found"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("[" * 10**5)), "config.json: expected JSON, found"),
        (lambda p: (p.mkdir(), (p / "config.json").write_bytes(b"\xff")), "config.json: expected JSON, found"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("[]")), "expected options and their values, found list"),
        (lambda p: (p.mkdir(), (p / "config.json").write_text("{}")), "expected files rank-NNNN.h5, found none"),
    ],
)
def test_errors_for_paths_that_are_no_run(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        Run(tmp_path / "run")


def test_an_impossible_number_of_ranks(tmp_path):
    path = make_run(tmp_path / "run", ranks=1)
    file = path / "rank-0000.h5"

    def change(f):  # version 1 has no check sums
        f.attrs.modify("schema_version", 1)
        f.attrs.create("ranks", 2**60)
        del f.attrs["head_crc"]

    edit(file, change)
    with pytest.raises(InputError, match="expected 1 to 1000000 ranks, found 1152921504606846976"):
        Run(path)


@pytest.mark.parametrize(
    ("steps", "exchanges", "message"),
    [
        ({}, {}, None),
        (
            {5: {"iteration": 6}},
            {},
            "step: iteration: expected a rise by 1 or more, found other values in 1 rows from row 6",
        ),
        ({5: {"total_iteration": 3}}, {}, "step: total_iteration: expected a rise by 1 or more"),
        ({9: {"iteration": 11}}, {}, "step: expected every step, found 2 missing, and 0 rows counted in /dropped"),
        ({}, {3: {"staleness": 1}}, "staleness: expected version_added - version_read, found other values in 1 rows"),
        ({}, {3: {"staleness": -1, "version_added": 2}}, "exchange: staleness: expected 0 or more"),
        ({}, {3: {"accepted": 2}}, "exchange: accepted: expected 0 or 1"),
        ({}, {3: {"blocked": -1}}, "exchange: blocked: expected 0 or more"),
        ({}, {3: {"began": np.nan}}, "exchange: time: expected a finite time"),
        ({}, {3: {"iteration": 2**40}}, "exchange: iteration: expected a rise by 0 or more"),
    ],
)
def test_verify_compares_the_numbers(tmp_path, steps, exchanges, message):
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes()) as writer:
        for i in range(10):
            writer.step(**{**step_row(i), **steps.get(i, {})})
            writer.exchange(**{**exchange_row(i), **exchanges.get(i, {})})
    errors = verify(Run(writer.path))
    assert any(message in text for text in errors) if message else errors == []


def test_verify_compares_the_ranks(tmp_path):
    path = make_run(tmp_path / "run", ranks=1)
    with TrajectoryWriter(path, 1, LAYOUT[:2], attributes(ranks=2, config="{}")):
        pass
    assert [text.partition("rank-0001.h5: ")[2] for text in verify(Run(path))] == [
        "expected the layout of rank 0, found another",
        "expected the ranks of rank 0, found another",
        "expected the config of rank 0, found another",
        "expected the options of config.json, found others",
    ]
