"""Basins against a threshold sweep with connected components by scipy, and two planted basins in closed form."""

import itertools
import math

import numpy as np
import pytest
from scipy import ndimage

from lsam_hpc import InputError
from lsam_hpc.landscape.figures.draw_basins import order
from lsam_hpc.landscape.geometry.persistence import basins

EIGHT = np.ones((3, 3))


def swept(values):
    """Return {minimum: (level, minimum of the basin that it merges into)} by labelling {f <= t} at every level t."""
    flat = values.reshape(-1)
    before, ended = set(), {}
    for level in np.unique(flat[np.isfinite(flat)]):
        labels, count = ndimage.label(np.isfinite(values) & (values <= level), EIGHT)
        parts = [np.flatnonzero(labels == part) for part in range(1, count + 1)]
        lowest = [min(part, key=lambda i: (flat[i], i)) for part in parts]
        for minimum in before - set(lowest):
            part = next(i for i, part in enumerate(parts) if minimum in part)
            ended[int(minimum)] = (float(level), int(lowest[part]))
        before = set(lowest)
    return {**ended, **{int(minimum): (math.inf, None) for minimum in before}}


def surfaces():
    rng = np.random.default_rng(0)
    for shape in ((7, 9), (1, 12), (12, 1), (1, 1), (8, 8)):
        yield rng.standard_normal(shape)
        holes = rng.standard_normal(shape)
        holes.reshape(-1)[1:][rng.random(holes.size - 1) < 0.4] = np.nan
        yield holes
        yield rng.integers(0, 4, shape).astype(float)  # plateaus
    infinite = rng.standard_normal((6, 6))
    infinite[2:4], infinite[:, 3] = np.inf, -np.inf
    yield infinite
    yield np.zeros((5, 4))
    yield ndimage.gaussian_filter(rng.standard_normal((25, 25)), 1.5)


@pytest.mark.parametrize("values", list(surfaces()))
def test_basins_equal_a_threshold_sweep(values):
    expected, columns = swept(values), values.shape[1]
    result = basins(values)
    minima = [row * columns + column for row, column in (basin.minimum for basin in result)]
    assert {minimum: basin.level for minimum, basin in zip(minima, result, strict=True)} == {
        minimum: level for minimum, (level, _) in expected.items()
    }
    assert [b.persistence for b in result] == sorted((b.persistence for b in result), reverse=True)
    for i, (minimum, basin) in enumerate(zip(minima, result, strict=True)):
        assert basin.value == values[basin.minimum]
        level, deeper = expected[minimum]
        if deeper is None:
            assert basin.into is None
            assert basin.saddle is None
            labels, _ = ndimage.label(np.isfinite(values), EIGHT)
            assert basin.top == values[labels == labels[basin.minimum]].max()
            continue
        assert values[basin.saddle] == level
        into = basin.into
        while into is not None and result[into].level == level:  # several merge at one level
            into = result[into].into
        assert into < i
        assert minima[into] == deeper
        labels, _ = ndimage.label(np.isfinite(values) & (values <= level), EIGHT)
        assert labels[basin.saddle] == labels[basin.minimum] == labels[result[basin.into].minimum]


def test_basins_of_small_persistence_are_left_out():
    values = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal((20, 20)), 1.0)
    everything = basins(values)
    for least in (0.05, everything[5].persistence):
        assert basins(values, least) == [basin for basin in everything if basin.persistence > least]
    assert 1 < len(basins(values, 0.05)) < len(everything)


def test_two_planted_basins():
    """f = (x^2 - 1)^2 + tilt x + y^2: two minima and the saddle between them solve 4 x^3 - 4 x + tilt = 0, y = 0."""
    tilt, x, y = 0.3, np.linspace(-1.5, 1.5, 301), np.linspace(-1, 1, 101)
    deep, saddle, shallow = np.sort(np.roots([4, 0, -4, tilt]).real)
    f = lambda u, v: (u**2 - 1) ** 2 + tilt * u + v**2  # noqa: E731
    first, second = basins(f(x[None], y[:, None]))
    # A point of the grid is at most half a step h away, so a value at a critical point errs by at most f'' h^2 / 8.
    within = np.abs(12 * np.array([deep, saddle, shallow]) ** 2 - 4).max() * 0.01**2 / 8 * 1.1
    assert first.into is None
    assert second.into == 0
    for point, at in ((first.minimum, deep), (second.minimum, shallow), (second.saddle, saddle)):
        assert abs(x[point[1]] - at) <= 0.0051
        assert abs(y[point[0]]) < 1e-9
    assert second.persistence == pytest.approx(f(saddle, 0) - f(shallow, 0), abs=2 * within)
    assert first.value == pytest.approx(f(deep, 0), abs=within)
    assert not first.border
    assert not second.border
    cut, *_ = basins(f(x[None], y[:, None])[:, 60:])  # without the deep minimum, and its slope's lowest point
    assert cut.border == (f(x[60], 0) < f(shallow, 0))


def test_a_diagonal_joins_and_a_missing_point_separates():
    values = np.array([[0.0, 5, 9], [5, 5, 1], [9, 2, 5]])
    assert [(b.value, b.level) for b in basins(values)] == [(0.0, math.inf), (1.0, 5.0)]  # 1 and 2 are neighbours
    values = np.array([[0.0, np.nan, 1.0], [3, np.nan, 2]])
    assert [(b.value, b.level, b.top, b.border) for b in basins(values)] == [
        (0.0, math.inf, 3.0, True),
        (1.0, math.inf, 2.0, True),
    ]


def test_no_lines_of_the_merge_tree_cross():
    for seed in range(20):
        values = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((20, 20)), 1.0)
        found = basins(values)
        placed = order(found)
        assert sorted(placed) == list(range(len(found)))
        at = {basin: place for place, basin in enumerate(placed)}
        for i, j in itertools.permutations(range(len(found)), 2):
            if found[i].into is not None:  # its horizontal line at its level crosses no vertical line of another
                low, high = sorted((at[i], at[found[i].into]))
                crosses = low < at[j] < high and found[j].value < found[i].level < found[j].level
                assert not crosses


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), "surface: expected values on a plane, found shape (3,)"),
        (np.full((2, 2), np.nan), "surface: expected finite values, found none"),
    ],
)
def test_input_errors(values, message):
    with pytest.raises(InputError) as caught:
        basins(values)
    assert str(caught.value) == message
