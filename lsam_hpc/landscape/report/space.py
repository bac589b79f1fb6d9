"""The loss around the chains as a surface that can be turned, with the chains on it, for Plotly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.figures.draw_surface import levels
from lsam_hpc.landscape.figures.draw_tracks import PALE
from lsam_hpc.landscape.figures.figures import COLOURS, SURFACE
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry.surface import LOSS
from lsam_hpc.landscape.geometry.tracks import Tracks, center_tracks

LIFT = 0.012  # height of the tracks above the surface, as a share of the losses' range
MOST_NAMED = 8  # largest number of ranks for which the legend names each rank
CASING = "#ffffff"  # colour of the border of the ranks' lines
GREY = "#a6a6a6"  # colour of the center: as CENTER in the figure of the tracks, where a third of it covers the surface


def space(tracks: Tracks, background: Surface, title: str) -> dict[str, Any]:
    """Return a surface of the loss on the tracks' plane, with the chains and the center on it.

    The colours are those of the figure of the tracks. If its scale is logarithmic, the height is log10 of the loss.

    Args:
        tracks: samples and center on a plane.
        background: loss on that plane, around the tracks.
        title: of the loss axis.

    Returns:
        Traces and layout for Plotly; the "meta" of a chain's traces is the chain's name.
    """
    loss = background.values[LOSS]
    at, logarithmic = levels([loss])
    assert background.y is not None
    heights = Surface(background.x, background.y, {LOSS: _height(loss, logarithmic=logarithmic)})
    low, high = (float(v) for v in _height(np.asarray([at[0], at[-1]]), logarithmic=logarithmic))
    ticks = _ticks(low, high) if logarithmic else {}
    name = f"{title}, log scale" if logarithmic else title
    traces: list[dict[str, Any]] = [
        {
            "type": "surface",
            "x": _plain(background.x),
            "y": _plain(background.y),
            "z": _plain(heights.values[LOSS]),
            "text": [[f"loss {value:.4g}" for value in row] for row in loss],
            "hoverinfo": "text",
            "colorscale": _colours(),
            "cmin": low,
            "cmax": high,
            "colorbar": {"title": {"text": name}, **ticks},
            "contours": {axis: {"highlight": False} for axis in "xyz"},
            "lighting": {"ambient": 0.85, "diffuse": 0.25, "specular": 0.02, "fresnel": 0.0, "roughness": 1.0},
            "name": "loss",
            "showlegend": False,
        }
    ]
    lift = LIFT * (high - low)
    traces.append(_contours(heights, _height(at, logarithmic=logarithmic), 0.8 * lift))
    for i, center in enumerate(center_tracks(tracks)):  # broad, so that it is seen below the ranks
        traces.append(_line("center", GREY, center.at, heights=heights, lift=1.2 * lift, width=14, legend=not i))
    named = len(tracks.ranks) <= MOST_NAMED
    for i, (rank, track) in enumerate(tracks.ranks.items()):
        texts = [
            f"rank {rank} after {step:,} steps<br>loss on the plane {value:.4g}"
            for step, value in zip(track.iteration, on_surface(background, track.sample), strict=True)
        ]
        of_rank = {"name": f"rank {rank}", "meta": f"rank {rank}", "legendgroup": f"rank {rank}"}
        for colour, width, up in ((CASING, 8, 1.6), (COLOURS[i % 6], 5, 1.8)):
            legend = named and colour != CASING
            line = _line(
                f"rank {rank}", colour, track.sample, heights=heights, lift=up * lift, width=width, legend=legend
            )
            traces.append({**line, **of_rank})
        states = _points(track.sample, _roof(heights, track.sample) + 2.2 * lift, COLOURS[i % 6], texts)
        traces.append({**states, **of_rank})
    layout = _layout(tracks, background, name, ticks)
    layout["scene"]["camera"] = {"eye": _eye(heights), "center": {"x": 0, "y": 0, "z": -0.2}}
    return {"traces": traces, "layout": layout}


def on_surface(background: Surface, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the loss at places on the plane, by linear interpolation on the grid, shape (n,).

    Args:
        background: loss on a grid.
        places: coordinates, shape (n, 2); a place outside gets the loss at the nearest point of the grid's edge.
    """
    corners, s, t = _cell(background, places)
    low = (1 - s) * corners[0, 0] + s * corners[0, 1]
    high = (1 - s) * corners[1, 0] + s * corners[1, 1]
    losses: NDArray[np.float64] = (1 - t) * low + t * high
    return losses


def path_above(background: Surface, places: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a path through places that never lies under the surface, and its heights: shapes (m, 2) and (m,).

    A renderer splits each cell of the grid into two triangles along one of its diagonals. The path has a point
    wherever it crosses a line of the grid or a diagonal, at the height of the higher triangle: a straight line from
    one such point to the next is not under any triangle, while one between two states cuts through the surface.

    Args:
        background: loss on a grid.
        places: coordinates of the states, shape (n, 2); a piece that ends in NaN is left out.
    """
    assert background.y is not None
    grid = np.stack(
        [
            np.interp(places[:, i], axis, np.arange(len(axis), dtype=float))
            for i, axis in enumerate((background.x, background.y))
        ],
        axis=1,
    )
    parts = [places[:1]]
    for start, end, a, b in zip(places, places[1:], grid, grid[1:], strict=False):
        shares = _crossings(a, b)
        parts.append(start + shares[1:, None] * (end - start))
    points = np.concatenate(parts)
    corners, s, t = _cell(background, points)
    twist = corners[0, 0] + corners[1, 1] - corners[0, 1] - corners[1, 0]
    plain = corners[0, 0] + s * (corners[0, 1] - corners[0, 0]) + t * (corners[1, 0] - corners[0, 0])
    # With twist > 0 the diagonal from (0, 0) to (1, 1) is the higher one, else the other.
    ridge = np.where(twist > 0, np.minimum(s, t), np.maximum(s + t - 1, 0))
    heights: NDArray[np.float64] = plain + twist * ridge
    return points, heights


def _cell(
    background: Surface, places: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the losses at the corners of each place's cell, shape (2, 2, n), and its place in it, from 0 to 1."""
    assert background.y is not None
    x, y, values = background.x, background.y, background.values[LOSS]
    i = np.clip(np.searchsorted(x, places[:, 0]) - 1, 0, len(x) - 2)
    j = np.clip(np.searchsorted(y, places[:, 1]) - 1, 0, len(y) - 2)
    s = np.clip((places[:, 0] - x[i]) / (x[i + 1] - x[i]), 0, 1)
    t = np.clip((places[:, 1] - y[j]) / (y[j + 1] - y[j]), 0, 1)
    corners = np.array([[values[j, i], values[j, i + 1]], [values[j + 1, i], values[j + 1, i + 1]]])
    return corners, s, t


def _crossings(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where the line from a to b, in units of cells, crosses grid lines and diagonals: shares from 0 to 1."""
    shares = [0.0, 1.0]
    for across in ((1, 0), (0, 1), (1, 1), (1, -1)):
        start, end = float(a @ across), float(b @ across)
        if math.isfinite(end - start) and start != end:
            whole = np.arange(math.ceil(min(start, end)), math.floor(max(start, end)) + 1)
            shares.extend((whole - start) / (end - start))
    return np.unique(np.clip(shares, 0, 1))


def _height(loss: NDArray[np.float64], *, logarithmic: bool) -> NDArray[np.float64]:
    if not logarithmic:
        return loss
    with np.errstate(divide="ignore", invalid="ignore"):
        heights: NDArray[np.float64] = np.log10(loss)
    return heights


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Return ticks of a logarithmic axis between two exponents: 1e-3, 1e-2, ..., or 1, 2 and 5 times these."""
    decades = np.arange(math.floor(low), math.ceil(high) + 1)
    steps = (1,) if high - low >= 2 else (1, 2, 5)
    values = [float(step * 10.0**decade) for decade in decades for step in steps]
    shown = [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    return {"tickvals": [math.log10(value) for value in shown], "ticktext": [_short(value) for value in shown]}


def _short(value: float) -> str:
    """Return a number as 0.1, 1, 10 or 100, else as 2e-3."""
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{value:g}" if 0.1 <= value <= 100 else f"{mantissa}e{int(exponent)}"


def _layout(tracks: Tracks, background: Surface, title: str, ticks: Mapping[str, Any]) -> dict[str, Any]:
    assert background.y is not None
    x, y = (label.partition(" (")[0].replace("principal ", "") for label in tracks.labels[:2])
    extents = [float(np.ptp(axis)) for axis in (background.x, background.y)]
    ratios = [1.3 * extent / max(extents) for extent in extents]  # the same unit of distance along both axes
    return {
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "top", "bgcolor": "rgba(0, 0, 0, 0)"},
        "scene": {
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "zaxis": {"title": {"text": title}, **ticks},
            "aspectmode": "manual",
            "aspectratio": {"x": ratios[0], "y": ratios[1], "z": 0.8},
        },
    }


def _eye(heights: Surface) -> dict[str, float]:
    """Return a place to look from, above the side on which the surface is low: no slope hides the basin."""
    z = heights.values[LOSS]
    grid = np.meshgrid(np.linspace(-1, 1, z.shape[1]), np.linspace(-1, 1, z.shape[0]))
    known = np.isfinite(z)
    rise = [float((axis[known] * (z[known] - z[known].mean())).sum()) if known.any() else 0.0 for axis in grid]
    side = math.atan2(-rise[1], -rise[0]) + math.radians(25)
    return {"x": 1.75 * math.cos(side), "y": 1.75 * math.sin(side), "z": 1.35}


def _line(
    name: str,
    colour: str,
    places: NDArray[np.float64],
    *,
    heights: Surface,
    lift: float,
    width: float,
    legend: bool = False,
) -> dict[str, Any]:
    """Return a line above the surface."""
    points, above = path_above(heights, places)
    return {
        "type": "scatter3d",
        "mode": "lines",
        "name": name,
        "meta": None,
        "x": _plain(points[:, 0]),
        "y": _plain(points[:, 1]),
        "z": _plain(above + lift),
        "line": {"color": colour, "width": width},
        "hoverinfo": "skip",
        "showlegend": legend,
    }


def _contours(heights: Surface, at: NDArray[np.float64], lift: float) -> dict[str, Any]:
    """Return the lines on the surface at the levels of the figure of the tracks."""
    from contourpy import contour_generator  # a part of matplotlib that draws nothing

    values = heights.values[LOSS]
    lines = contour_generator(heights.x, heights.y, np.ma.masked_invalid(values))
    gap = np.full((1, 2), np.nan)
    parts = [part for level in at for line in lines.lines(float(level)) for part in (np.asarray(line), gap)]
    points = np.concatenate([gap, *parts])
    return _line("contours", "#666666", points, heights=heights, lift=lift, width=2)


def _colours() -> list[tuple[float, str]]:
    """Return the colours of the figure of the tracks as a scale of Plotly."""
    import matplotlib as mpl

    shares = np.linspace(0, 1, 17)
    colours = 255 * (PALE + (1 - PALE) * mpl.colormaps[SURFACE](shares)[:, :3])
    return [
        (float(share), "rgb({:.0f},{:.0f},{:.0f})".format(*rgb)) for share, rgb in zip(shares, colours, strict=True)
    ]


def _points(
    places: NDArray[np.float64], heights: NDArray[np.float64], colour: str, texts: Sequence[str]
) -> dict[str, Any]:
    """Return a rank's logged states as points: the first is a white circle, the last a square."""
    last = len(texts) - 1
    return {
        "type": "scatter3d",
        "mode": "markers",
        "showlegend": False,
        "x": _plain(places[:, 0]),
        "y": _plain(places[:, 1]),
        "z": _plain(heights),
        "text": texts,
        "hoverinfo": "text",
        "marker": {
            "size": [6 if i in (0, last) else 3 for i in range(len(texts))],
            "symbol": ["square" if i == last else "circle" for i in range(len(texts))],
            "color": [CASING if i == 0 else colour for i in range(len(texts))],
            "line": {"color": "#000000", "width": 1},
        },
    }


def _roof(background: Surface, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the height of `path_above` at each place, shape (n,)."""
    return np.array([path_above(background, place[None])[1][0] for place in places])


def _plain(values: NDArray[np.float64]) -> list[Any]:
    """Return numbers as lists for JSON, with None for numbers that are not finite."""
    lists: list[Any] = np.where(np.isfinite(values), values.astype(object), None).tolist()  # type: ignore[call-overload]
    return lists
