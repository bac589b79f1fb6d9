"""Labels of steps along a track, none of which covers another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.geometry.tracks import Track

FAR = 12.0  # points between a state and the middle of its label
WIDTH = 1.8  # half of a digit, in points
MOST = 12  # labels
AROUND = 4  # sketches on each side that give the track's direction


def label_steps(axis: Any, track: Track, *, of_each: bool) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Write the number of all ranks' steps beside states of a track, as far as the labels do not cover each other.

    Args:
        axis: of matplotlib; everything else is drawn, and its aspect set.
        track: its states.
        of_each: label each state; otherwise those next to round numbers of steps.
    """
    from matplotlib.patheffects import withStroke

    drawing = axis.figure
    drawing.draw_without_rendering()  # places the axes
    at = axis.transData.transform(track.sample)
    points = drawing.dpi / 72
    texts: list[Any] = []  # their boxes
    middle = at.mean(0)
    for i in _states(track.total, of_each=of_each):
        near = 1 if of_each else AROUND
        along = at[min(i + near, len(at) - 1)] - at[max(i - near, 0)]
        across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-9)
        if not across.any():
            across = np.array([0.0, 1.0])
        outwards = across if (at[i] - middle) @ across >= 0 else -across
        far = FAR + 4 * (i in (0, len(at) - 1))  # a mark may be there
        for way in (outwards, -outwards, (0, 1), (0, -1), (1, 0), (-1, 0)):
            text = axis.annotate(
                f"{track.total[i]}",
                track.sample[i],
                xytext=np.asarray(way) * [far + WIDTH * len(str(track.total[i])), far] + [0, -3],
                textcoords="offset points",
                ha="center",
                fontsize=7,
                zorder=8,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
            box = text.get_window_extent().padded(1.5 * points)
            room = axis.get_window_extent()
            inside = room.x0 < box.x0 and box.x1 < room.x1 and room.y0 < box.y0 and box.y1 < room.y1
            if inside and not any(box.overlaps(other) for other in texts):
                texts.append(box)
                break
            text.remove()
            if i not in (0, len(at) - 1):
                break  # only the ends are worth another place
    # The layout must not change with the labels, which are inside the axes.
    for text in axis.texts:
        text.set_in_layout(False)


def _states(total: NDArray[np.int64], *, of_each: bool) -> list[int]:
    """Return the states to label, the first and the last one before those between them."""
    if of_each and len(total) <= 4 * MOST:
        chosen = list(range(len(total)))
    else:
        rounded = np.outer(10.0 ** np.arange(1, 16), (1, 2, 5)).ravel()
        chosen = [int(np.abs(total - steps).argmin()) for steps in rounded if steps <= 0.9 * total[-1]]
    ends = [0, len(total) - 1]
    return list(dict.fromkeys(ends + [i for i in reversed(chosen) if i not in ends]))
