"""Still pictures of a surface in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.figures.draw_surface import LOSSES, TITLES
from lsam_hpc.landscape.figures.figures import SURFACE, figure, heading, save
from lsam_hpc.landscape.figures.scales import AUTOMATIC, LOG, Scale, levels, log_places, number
from lsam_hpc.landscape.formats.loss_landscape import Surface

ELEVATION = 35  # of the eye, in degrees
AZIMUTHS = {(0, -1): -60, (-1, -1): 30, (-1, 0): 120, (0, 0): 210}  # (y, x) index of the corner in front -> azimuth


def draw_space(
    surface: Surface,
    path: Path,
    labels: Sequence[str],
    marks: Mapping[str, NDArray[np.float64]] | None = None,
    title: str = "",
    *,
    scale: Scale = AUTOMATIC,
) -> Path:
    """Draw the losses of a surface as heights over its plane, with contours below; the arguments of `draw_surface`.

    Raises:
        InputError: the surface is a line.
    """
    if surface.y is None:
        raise InputError("--static-3d: expected a surface on a plane, found one on a line")
    names = [name for name in LOSSES if name in surface.values]
    at, logarithmic = levels([surface.values[name] for name in names], scale=scale)
    low, high = (np.log10(at[[0, -1]]) if logarithmic else at[[0, -1]]).tolist()
    x, y = np.meshgrid(surface.x, surface.y)
    with figure(5.0 * len(names), 4.6, 1, len(names), projection="3d") as (drawing, axes):
        for ax, name in zip(np.ravel(axes), names, strict=True):
            values = np.clip(surface.values[name], at[0], at[-1])  # NaN stays NaN, and is not drawn
            height = np.log10(values) if logarithmic else values
            floor = low - 0.35 * (high - low)
            look = {"cmap": SURFACE, "vmin": low, "vmax": high}
            ax.plot_surface(x, y, height, rstride=1, cstride=1, linewidth=0.2, edgecolor="#00000040", **look)
            lines = np.log10(at) if logarithmic else at
            ax.contour(x, y, np.ma.masked_invalid(height), lines, zdir="z", offset=floor, linewidths=0.8, **look)
            for place in (marks or {}).values():
                if surface.x[0] <= place[0] <= surface.x[-1] and surface.y[0] <= place[1] <= surface.y[-1]:
                    ax.plot(*place, floor, "o", color="white", markeredgecolor="black", markersize=5, zorder=10)
            ticks = log_places(at[0], at[-1]) if logarithmic else at[:: -(-len(at) // 6)]
            ax.set_zticks(np.log10(ticks) if logarithmic else ticks, [number(value) for value in ticks])
            ax.set_zlim(floor, high)
            ax.set_xlabel(labels[0].replace(" (", "\n("), labelpad=8)
            ax.set_ylabel(labels[1].replace(" (", "\n("), labelpad=8)
            ax.set_zlabel(f"loss, {LOG}" if logarithmic else "loss", labelpad=6)
            ax.set_title(TITLES[name], y=1.0)
            ax.tick_params(labelsize=8)
            ax.locator_params(axis="x", nbins=5)
            ax.locator_params(axis="y", nbins=5)
            lowest = min(AZIMUTHS, key=lambda corner: float(np.nan_to_num(height[corner], nan=np.inf)))
            ax.view_init(ELEVATION, AZIMUTHS[lowest])  # a high corner in front would hide what is behind it
            ax.set_box_aspect((1, 1, 0.75), zoom=0.92)
        named = ", ".join(marks or {})
        heading(drawing, f"{title}; circle: {named}" if named else title)
        return save(drawing, path)
