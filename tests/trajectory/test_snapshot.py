"""Snapshots: when they are taken, how they are stored and read."""

import sys

import h5py
import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter, schema
from lsam_hpc.trajectory.snapshot import decode, to_bfloat16
from tests.helpers.logs import attributes


@pytest.mark.parametrize(
    ("every", "steps"),
    [("log", [0, 1, 2, 4, 8, 16, 32]), (1, list(range(40))), (7, [0, 7, 14, 21, 28, 35]), (100, [0])],
)
def test_due(every, steps):
    snapshots = Snapshots(every=every)
    assert [step for step in range(40) if snapshots.due(step)] == steps


@pytest.mark.parametrize(
    ("every", "steps"), [("log", [4, 8, 16, 32]), (1, list(range(4, 40, 4))), (10, [4, 12, 20, 32]), (100, [4])]
)
def test_due_among_the_steps_of_exchanges(every, steps):
    snapshots, last, due = Snapshots(every=every), -1, []
    for step in range(4, 40, 4):
        if snapshots.due(step, last):
            due.append(step)
        last = step
    assert due == steps


def test_bfloat16_rounds_like_torch():
    special = np.array([0, -0.0, np.inf, -np.inf, 3.4e38, 1e-40, 1.00390625, 1.01171875], np.float32)
    bits = np.random.default_rng(0).integers(0, 2**32, 3_000_000, np.uint32).view(np.float32)
    values = np.concatenate([special, bits])
    rounded = decode(to_bfloat16(values))
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(np.isnan(rounded), np.isnan(values))
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(rounded[finite], expected[finite])
    assert np.isnan(decode(to_bfloat16(np.array([0x7F800001], np.uint32).view(np.float32)))).all()


@pytest.mark.parametrize("compression", ["none", "gzip", "lzf", "blosc2", "zstd"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_snapshots_are_read_back(tmp_path, compression, dtype):
    if compression in ("blosc2", "zstd"):
        pytest.importorskip("hdf5plugin")
    size = schema.SNAPSHOT_ELEMENTS + 1000  # two chunks
    vectors = np.random.default_rng(0).standard_normal((3, size), np.float32)
    options = Snapshots(states=("center",), dtype=dtype, compression=compression)
    with TrajectoryWriter(tmp_path, 0, [("w", (size,))], attributes(), snapshots=options) as writer:
        for i, vector in enumerate(vectors):
            writer.snapshot("center", vector, i, 10 * i)
        assert writer.flush()
        during = Run(writer.path).snapshot(0, 1, "center")
    run = Run(writer.path)
    np.testing.assert_array_equal(run.snapshots(0, "center")["version"], [0, 10, 20])
    for i, vector in enumerate(vectors):
        exact = vector if dtype == "float32" else torch.from_numpy(vector).bfloat16().float().numpy()
        np.testing.assert_array_equal(run.snapshot(0, i, "center"), exact)
    np.testing.assert_array_equal(during, run.snapshot(0, 1, "center"))
    assert run.logs[0].snapshot_dtype("center") == dtype
    with h5py.File(writer.path) as file:
        assert file["snapshot"].attrs["dtype"] == dtype
        assert "bfloat16" in file["snapshot/center/values"].attrs["description"]
        stored = file["snapshot/center/values"].id.get_storage_size()
    whole = vectors.nbytes if dtype == "float32" else vectors.nbytes // 2
    assert stored < whole * (0.95 if compression != "none" else 2)


def test_a_snapshot_is_a_copy(tmp_path):
    vector = np.ones(10, np.float32)
    with TrajectoryWriter(tmp_path, 0, [("w", (10,))], attributes(), snapshots=Snapshots()) as writer:
        writer.snapshot("sample", vector, 0)
        vector[:] = 2
    np.testing.assert_array_equal(Run(writer.path).snapshot(0, 0), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "expected a number of steps of 1 or more, or 'log', found 0"),
        ({"every": "often"}, "expected a number of steps of 1 or more, or 'log', found 'often'"),
        ({"states": ("mood",)}, "expected states of sample, center, perturbation, found mood"),
        ({"dtype": "float8"}, "expected a dtype of float32, bfloat16, found 'float8'"),
        ({"compression": "zip"}, "expected a compression of none, gzip, lzf, blosc2, zstd, found 'zip'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=f"snapshots: {message}"):
        Snapshots(**options)


def test_a_plugin_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    with pytest.raises(InputError, match="snapshots: expected the package hdf5plugin for zstd, found none"):
        Snapshots(compression="zstd")
