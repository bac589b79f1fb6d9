"""Normalisation against numbers computed by hand from the definition of Li et al. 2018."""

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.landscape.geometry.directions import normalised, orthogonal, random_direction

# Two filters of three weights, a bias of two, and a layer of one filter.
LAYOUT = [("conv.weight", (2, 3)), ("conv.bias", (2,)), ("out.weight", (1, 2))]
AT = np.array([3.0, 0, 4, 0, 6, 8, 0.5, -1, 5, 12])
D = np.array([1.0, 2, 2, 2, 3, 6, 1, 1, 3, -4])


@pytest.mark.parametrize(
    ("how", "small", "expected"),
    [
        # Norms of the state's filters: 5, 10; 13. Of the direction's: 3, 7; 5.
        ("filter", "ignore", [5 / 3, 10 / 3, 10 / 3, 20 / 7, 30 / 7, 60 / 7, 0, 0, 39 / 5, -52 / 5]),
        ("filter", "keep", [5 / 3, 10 / 3, 10 / 3, 20 / 7, 30 / 7, 60 / 7, 0.5, -1, 39 / 5, -52 / 5]),
        # Of the layers: sqrt(125), sqrt(58).
        ("layer", "ignore", [*(np.array([1, 2, 2, 2, 3, 6]) * np.sqrt(125 / 58)), 0, 0, 39 / 5, -52 / 5]),
        ("model", "keep", D * np.sqrt(295.25 / 85)),
        ("none", "ignore", D),
    ],
)
def test_by_hand(how, small, expected):
    np.testing.assert_allclose(normalised(D, AT, LAYOUT, how, small), expected, rtol=1e-9)


def test_a_filter_of_zeros_stays_zero():
    at = AT.copy()
    at[:3] = 0
    scaled = normalised(D, at, LAYOUT)
    assert (scaled[:3] == 0).all()
    direction = D.copy()
    direction[:3] = 0
    assert (normalised(direction, AT, LAYOUT)[:3] == 0).all()


def test_random_directions_depend_on_seed_and_index_only():
    a = random_direction(LAYOUT, 1)
    np.testing.assert_array_equal(a, random_direction(LAYOUT, 1))
    assert (a != random_direction(LAYOUT, 1, 1)).all()
    assert (a != random_direction(LAYOUT, 2)).all()
    long = random_direction([("w", (100_000,))], 0)
    # Mean and variance within 5 standard errors: one false alarm in a million.
    assert abs(long.mean()) < 5 / np.sqrt(1e5)
    assert abs(long.var() - 1) < 5 * np.sqrt(2 / 1e5)


def test_orthogonal():
    rest = orthogonal(D, AT)
    assert abs(rest @ AT) < 1e-12 * np.linalg.norm(rest) * np.linalg.norm(AT)
    with pytest.raises(InputError, match="found parallel ones"):
        orthogonal(2 * AT, AT)


def test_bad_input():
    with pytest.raises(InputError, match="normalisation: expected one of filter, layer, model, none, found 'weight'"):
        normalised(D, AT, LAYOUT, "weight")
    with pytest.raises(InputError, match="small parameters: expected one of keep, ignore, found 'drop'"):
        normalised(D, AT, LAYOUT, "filter", "drop")
    with pytest.raises(InputError, match="direction: expected 10 elements"):
        normalised(D[:9], AT, LAYOUT)
