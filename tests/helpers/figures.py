"""Checks of drawn figures: what is where, not which pixels."""

import re

import numpy as np

TICK = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")  # 1e-3, 2.5e4, 0.1, 20


def shown(figure):
    """Return the axes of a figure that are visible, those of colour bars too."""
    inner = [child for axes in figure.axes for child in axes.child_axes]
    return [axes for axes in dict.fromkeys([*figure.axes, *inner]) if axes.get_visible()]


def tick_labels(axis):
    """Return the tick labels of an axis that can be seen."""
    low, high = sorted(axis.get_view_interval())
    room = 1e-9 * (high - low)
    ticks = [tick for tick in axis.get_major_ticks() if low - room <= tick.get_loc() <= high + room]
    return [text for tick in ticks for text in (tick.label1, tick.label2) if text.get_visible() and text.get_text()]


def overlapping(texts):
    """Return the pairs of texts whose boxes overlap."""
    boxes = [text.get_window_extent() for text in texts]
    pairs = [(i, j) for j in range(len(boxes)) for i in range(j) if boxes[i].overlaps(boxes[j])]
    return [(texts[i].get_text(), texts[j].get_text()) for i, j in pairs]


def check(figure):
    """Check what holds for each figure: no tick labels that overlap, plain numbers on logarithmic axes, a legend."""
    figure.draw_without_rendering()
    for axes in shown(figure):
        if axes.name == "3d":
            continue
        for axis in (axes.xaxis, axes.yaxis):
            assert not overlapping(tick_labels(axis)), axes.get_title()
            if axis.get_scale() in ("log", "symlog"):
                assert axis.get_label_text().endswith("log scale")
                labels = [text.get_text() for text in tick_labels(axis)]
                assert len(labels) >= 2
                assert all(TICK.fullmatch(label) for label in labels), labels
    titles = [text for axes in shown(figure) for text in (axes.xaxis.label, axes.yaxis.label, axes.title)]
    assert not overlapping([text for text in titles if text.get_text()])
    for made in figure.legends:
        for text, handle in zip(made.get_texts(), made.legend_handles, strict=True):
            assert text.get_text()
            assert handle.get_visible()
            if hasattr(handle, "get_linewidth") and handle.get_linestyle() not in ("None", ""):
                assert handle.get_linewidth() >= 1
            assert (handle.get_alpha() or 1) > 0.2


def height(axes):
    box = axes.get_window_extent()
    return np.array([box.y0, box.y1])
