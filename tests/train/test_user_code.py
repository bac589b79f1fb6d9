"""Data sets of the user: valid arrays, and messages for invalid ones."""

import sys

import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.train.data import load

MODULE = """
import numpy as np, torch
from lsam_hpc.train.data import of_arrays
rng = np.random.default_rng(0)
x, y = rng.integers(0, 256, (20, 2, 4, 4), np.uint8), np.arange(20) % 5
def arrays(directory): return x, y, x[:5], list(y[:5])
def floats(directory): return torch.from_numpy(x).double(), torch.from_numpy(y), x[:5].astype("f2"), y[:5].astype("u1")
def dataset(directory): return of_arrays((x, y), (x, y), classes=7, mirror=False)
def place(directory): raise OSError(f"it is in {directory}")
def three(directory): return x, y, x
def flat(directory): return x.reshape(20, -1), y, x, y
def words(directory): return x, ["a"] * 20, x, y
def short(directory): return x, y[:3], x, y
def empty(directory): return x, y, x[:0], y[:0]
def negative(directory): return x, y - 1, x, y
def other(directory): return x, y, x[:, :1], y
def infinite(directory): return np.full(x.shape, np.nan), y, x / 1.0, y
def half(directory): return x, y + 0.5, x, y
def ragged(directory): return [[1], [1, 2]], y, x, y
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_own_data", raising=False)
    (tmp_path / "my_own_data.py").write_text(MODULE)


@pytest.mark.usefixtures("user_module")
def test_user_data():
    data = load("my_own_data:arrays", None)
    assert (data.classes, data.mirror, data.train_x.shape) == (5, True, (20, 2, 4, 4))
    np.testing.assert_allclose(data.train_x[:].mean((0, 2, 3)), 0, atol=1e-5)
    floats = load("my_own_data:floats", None)
    assert torch.equal(floats.train_x[:], data.train_x._stored.float())  # not normalised
    assert floats.test_x[:].dtype == torch.float32
    dataset = load("my_own_data:dataset", None, subset=10)
    assert (dataset.classes, dataset.mirror, len(dataset.train_y)) == (7, False, 10)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("place", r"--data: expected my_own_data:place to return, found OSError: it is in /data \(.*_data.py:9\)"),
        ("three", r"expected a Dataset or \(train_x, train_y, test_x, test_y\) from my_own_data:three, found tuple"),
        ("flat", r":flat: training images: expected shape \(N, C, H, W\) and uint8 or floats, found \(20, 32\)"),
        ("words", "training labels: expected an array of numbers, found list"),
        ("short", "training data: expected as many images as labels, found 20 and 3"),
        ("empty", "test data: expected at least one image, found none"),
        ("negative", "labels: expected 0 to 4, found -1 to 4"),
        ("other", r"test images: expected \(2, 4, 4\) torch.uint8, as those of the training set, found \(1, 4, 4\)"),
        ("infinite", "training images: expected finite numbers, found infinity or NaN"),
        ("half", r"training labels: expected integers of shape \(N,\), found \(20,\) torch.float64"),
        ("ragged", "training images: expected an array of numbers, found list"),
        ("nothing", "--data: expected a function that can be imported, found my_own_data:nothing"),
    ],
)
def test_bad_user_data_is_reported_in_one_line(name, message):
    with pytest.raises(InputError, match=message) as caught:
        load(f"my_own_data:{name}", "/data")
    assert "\n" not in str(caught.value)
