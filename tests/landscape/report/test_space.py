"""The surface that can be turned: tracks above it, and the colours of the two-dimensional figure."""

from itertools import pairwise

import numpy as np
import pytest

from lsam_hpc.landscape.figures.draw_surface import levels
from lsam_hpc.landscape.figures.figures import COLOURS
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry.tracks import Track, Tracks
from lsam_hpc.landscape.report.space import GREY, on_surface, path_above, space

X, Y = np.linspace(-2, 3, 6), np.linspace(0, 4, 5)


def hills(*, logarithmic: bool = False) -> Surface:
    loss = 2 + np.sin(2 * X)[None, :] * np.cos(3 * Y)[:, None]
    return Surface(X, Y, {"loss": 10**loss if logarithmic else loss})


def tracks(ranks: int = 2, states: int = 4) -> Tracks:
    rng = np.random.default_rng(0)
    each = {}
    for rank in range(ranks):
        at = rng.uniform((X[0], Y[0]), (X[-1], Y[-1]), (states, 2))
        count = np.arange(states)
        each[rank] = Track(4 * count, 8 * count, count, at, np.full(states, 0.1), at / 2 + 0.5, np.full(states, 0.1))
    labels = ("principal component 1 (distance; 60.0 % of variance)", "principal component 2 (distance; 20.0 %)")
    return Tracks("snapshots", each, labels, np.array([0.6, 0.2]), None, {})


def triangles(surface: Surface, at: np.ndarray) -> np.ndarray:
    """Return the height of the surface with cells split along either diagonal, shape (2, n)."""
    z = surface.values["loss"]
    u = np.interp(at[:, 0], surface.x, np.arange(len(surface.x)))
    v = np.interp(at[:, 1], surface.y, np.arange(len(surface.y)))
    i, j = np.minimum(u.astype(int), len(surface.x) - 2), np.minimum(v.astype(int), len(surface.y) - 2)
    s, t = u - i, v - j
    a, b, c, d = z[j, i], z[j, i + 1], z[j + 1, i], z[j + 1, i + 1]
    rising = np.where(s >= t, a + s * (b - a) + t * (d - b), a + t * (c - a) + s * (d - c))
    falling = np.where(s + t <= 1, a + s * (b - a) + t * (c - a), d + (1 - s) * (c - d) + (1 - t) * (b - d))
    return np.stack([rising, falling])


def fine(points: np.ndarray, heights: np.ndarray, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return many places on the straight lines between points, and their heights."""
    shares = np.linspace(0, 1, count)[:, None]
    at = np.concatenate([a + shares * (b - a) for a, b in pairwise(points)])
    z = np.concatenate([a + shares[:, 0] * (b - a) for a, b in pairwise(heights)])
    return at, z


def test_the_loss_under_a_chain_is_linear_between_the_grid_s_points():
    x, y = np.array([0.0, 1, 3]), np.array([-1.0, 0, 5, 6])
    plane = 2 + 3 * x[None, :] - 0.5 * y[:, None]
    losses = on_surface(Surface(x, y, {"loss": plane}), np.array([[0, -1], [0.25, 3], [3, 6], [2.9, -0.1]]))
    np.testing.assert_allclose(losses, [2.5, 2 + 0.75 - 1.5, 2 + 9 - 3, 2 + 8.7 + 0.05], rtol=1e-12)
    np.testing.assert_allclose(on_surface(Surface(x, y, {"loss": plane}), np.array([[9.0, 9.0]])), [8])


def test_a_path_is_never_under_the_surface_however_its_cells_are_split():
    rough = Surface(X, Y, {"loss": np.random.default_rng(1).standard_normal((len(Y), len(X)))})
    states = np.random.default_rng(2).uniform((X[0], Y[0]), (X[-1], Y[-1]), (12, 2))
    points, heights = path_above(rough, states)
    assert all((np.abs(points - state).sum(1) < 1e-12).any() for state in states)
    at, z = fine(points, heights)
    below = np.maximum(triangles(rough, at).max(0), on_surface(rough, at)) - z
    assert below.max() < 1e-12
    # It is on the higher triangle, not anywhere above.
    assert np.abs(triangles(rough, points).max(0) - heights).max() < 1e-12


@pytest.mark.parametrize("logarithmic", [False, True])
def test_tracks_lie_above_the_surface_in_the_colours_of_the_figure(logarithmic):
    surface, paths = hills(logarithmic=logarithmic), tracks()
    at, as_drawn = levels([surface.values["loss"]])
    assert as_drawn == logarithmic
    drawn = space(paths, surface, "train loss")
    first, *rest = drawn["traces"]
    shown = Surface(X, Y, {"loss": np.array(first["z"])})
    unit = np.log10 if logarithmic else np.asarray
    np.testing.assert_allclose(shown.values["loss"], unit(surface.values["loss"]))
    np.testing.assert_allclose([first["cmin"], first["cmax"]], unit(at[[0, -1]]))
    for trace in rest:
        points, heights = np.array([trace["x"], trace["y"]], float).T, np.array(trace["z"], float)
        places, z = fine(points, heights) if trace["mode"] == "lines" else (points, heights)
        known = np.isfinite(z)
        assert known.sum() > 3
        assert (z[known] - triangles(shown, places[known]).max(0)).min() > 1e-3 * (first["cmax"] - first["cmin"])
    coloured = {trace["name"]: trace["line"]["color"] for trace in rest if trace["showlegend"]}
    assert coloured == {"rank 0": COLOURS[0], "rank 1": COLOURS[1], "center": GREY}
    assert {trace["meta"] for trace in rest} == {"rank 0", "rank 1", None}
    assert first["colorscale"][0] == (0, "rgb(162,128,170)")  # viridis (68, 1, 84), half of it white
    # Lines are where the figure has them: where they cross the grid, the loss is one of its levels.
    (lines,) = (trace for trace in rest if trace["name"] == "contours")
    points = np.array([lines["x"], lines["y"]], float).T
    on_grid = [np.isclose(points[:, [i]], axis[None]).any(1) for i, axis in enumerate((X, Y))]
    points = points[on_grid[0] | on_grid[1]]
    height = np.array(first["z"])
    assert len(points) > 20
    off = np.abs(on_surface(shown, points)[:, None] - unit(at)[None]).min(1)
    assert off.max() < 1e-9 * np.ptp(height)
    ratio = drawn["layout"]["scene"]["aspectratio"]
    assert ratio["x"] / ratio["y"] == pytest.approx(5 / 4)  # equal units along both axes


def test_ticks_of_a_logarithmic_axis_are_powers_of_ten():
    losses = np.broadcast_to(np.geomspace(1e-3, 10, len(X)), (len(Y), len(X)))
    axis = space(tracks(), Surface(X, Y, {"loss": losses}), "train loss")["layout"]["scene"]["zaxis"]
    assert axis["title"]["text"] == "train loss, log scale"
    assert axis["ticktext"] == ["1e-3", "1e-2", "0.1", "1", "10"]
    np.testing.assert_allclose(axis["tickvals"], [-3, -2, -1, 0, 1])


def test_the_view_is_from_the_low_side():
    eye = space(tracks(), Surface(X, Y, {"loss": 2 - 0.1 * X[None, :] + 0 * Y[:, None]}), "loss")["layout"]["scene"]
    assert eye["camera"]["eye"]["x"] > abs(eye["camera"]["eye"]["y"])


def test_a_loss_that_is_not_finite_leaves_a_gap():
    surface = hills()
    surface.values["loss"][2, 2] = np.nan
    drawn = space(tracks(), surface, "loss")
    assert drawn["traces"][0]["z"][2][2] is None
