"""Lines and planes through states."""

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.landscape.geometry.axes import line, random_axes, ranges, through
from lsam_hpc.landscape.geometry.directions import normalised, random_direction

LAYOUT = [("conv.weight", (4, 5)), ("conv.bias", (4,))]
A, B, C = np.random.default_rng(0).standard_normal((3, 24))


def test_a_plane_contains_its_three_states():
    axes = through([A, B, C], ["a", "b", "c"])
    np.testing.assert_allclose(axes.directions @ axes.directions.T, np.eye(2), atol=1e-12)
    for name, state in (("a", A), ("b", B), ("c", C)):
        np.testing.assert_allclose(axes.point(axes.marks[name]), state, atol=1e-12)
    np.testing.assert_allclose(axes.marks["a"], 0, atol=1e-12)
    np.testing.assert_allclose(axes.marks["b"], [np.linalg.norm(B - A), 0], atol=1e-12)
    normal = np.linalg.svd(np.stack([B - A, C - A]))[2][-1]  # orthogonal to the plane
    at, off = axes.coordinates((axes.point([2.0, -3.0]) + 5 * normal)[None])
    np.testing.assert_allclose(at, [[2, -3]], atol=1e-12)
    np.testing.assert_allclose(off, 5, rtol=1e-12)


def test_a_line():
    axes = line(A, B, ("a", "b"))
    np.testing.assert_allclose(axes.point([1.0]), B, atol=1e-12)
    np.testing.assert_allclose(axes.coordinates(((A + B) / 2)[None])[0], [[0.5]], atol=1e-12)


def test_random_axes_are_normalised():
    axes = random_axes(A.astype(np.float32), LAYOUT, 2, 5)
    for i in range(2):
        expected = normalised(random_direction(LAYOUT, 5, i), A.astype(np.float32), LAYOUT)
        np.testing.assert_array_equal(axes.directions[i], expected)


def test_ranges_cover_with_a_margin():
    x, y = ranges(np.array([[0.0, 0.0], [4.0, 1.0]]), 5)
    np.testing.assert_allclose(x, [-1, 0.5, 2, 3.5, 5])
    np.testing.assert_allclose([y[0], y[-1]], [0.5 - 2.1, 0.5 + 2.1])
    (z,) = ranges(np.zeros((2, 1)), 3)
    assert z[0] < 0 < z[-1]


def test_bad_input():
    with pytest.raises(InputError, match="expected two that span a plane, found parallel ones"):
        through([A, A + B, A - 2 * B], ["a", "b", "c"])
    with pytest.raises(InputError, match="c: expected another state than a, found the same"):
        through([A, B, A], ["a", "b", "c"])
    with pytest.raises(InputError, match="b: expected a finite state"):
        line(A, np.full(24, np.nan), ("a", "b"))
    with pytest.raises(InputError, match="b: expected 24 parameters, found 3"):
        line(A, np.ones(3), ("a", "b"))
