"""Sentences that say what a run's figures show, from the numbers that are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lsam_hpc.landscape.chains.diagnosis import RHAT
from lsam_hpc.landscape.chains.statistics import Chains
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry.surface import LOSS
from lsam_hpc.landscape.geometry.tracks import Tracks, center_tracks

# Terms of the page, in the order in which the reader meets them.
DEFINITIONS = {
    "chain, sample": "Each rank trains its own copy of the model. The sequence of its states is its chain; a state of "
    "it is a sample.",
    "center": "The shared state that the ranks' exchanges move; it is the solution that LSAM returns.",
    "exchange": "A rank reads the center, and adds a part of its distance from it to the center.",
    "R-hat": "Rank-normalised split R-hat (Vehtari et al. 2021). Each chain is cut into halves; R-hat compares the "
    "spread of all halves together with that within each one. 1: the chains draw from one distribution. Above 1.01: "
    "they disagree, or still move.",
    "ESS": "Effective sample size: the number of independent draws that estimate as precisely as the correlated ones. "
    "Bulk ESS is that for the middle of the distribution, tail ESS that for its 5 % and 95 % quantiles. At least 100 "
    "of each per chain are needed.",
    "autocorrelation time": "The number of a chain's steps per independent draw.",
    "staleness": "The number of updates by other ranks that the center gets between an exchange's read and its add. 0: "
    "the update is computed from the center that it changes.",
    "component": "A principal component: one of the directions, at right angles to each other, along which the ranks' "
    "states vary most.",
}


def of_chains(chains: Chains) -> str:
    """Return the caption of the figure of the chains, see `draw_chains`."""
    first = chains.quantities[0]
    same = "the same range" if first.mixing.rhat <= RHAT else "different ranges"
    parts = [
        f"Draws of the chains after the first {100 * chains.start:.0f} % of their rows, and the ranks' exchanges and "
        f"speeds. By R-hat, {first.mixing.rhat:.3g}, the halves of the chains cover {same} of the {first.name}."
    ]
    if chains.spread is not None:
        parts.append(f"The samples are {chains.spread.measured:.3g} from the center (root mean square).")
    if count := int(chains.staleness.sum()):
        parts.append(
            f"In {100 * chains.staleness[0] / count:.0f} % of the {count:,} exchanges no other rank updated the center "
            f"between read and add; the largest staleness is {len(chains.staleness) - 1}."
        )
    if len(chains.waits):
        parts.append(
            f"An exchange blocked training for {1e3 * np.median(chains.waits):.2g} ms (median), "
            f"{1e3 * chains.waits.max():.2g} ms at most."
        )
    rates = [rank.rate for rank in chains.ranks if not np.isnan(rank.rate)]
    if len(rates) > 1:
        parts.append(f"The ranks make {min(rates):.3g} to {max(rates):.3g} steps per second.")
    return " ".join(parts)


def of_tracks(tracks: Tracks, background: Surface | None) -> str:
    """Return the caption of the figure of the tracks, see `draw_tracks`."""
    ranks = list(tracks.ranks.values())
    off = np.concatenate([track.off for track in ranks])
    count = f"{len(ranks)} ranks" if len(ranks) > 1 else "one rank"
    parts = [
        f"Samples of {count} and the center, on the plane in which the samples vary most"
        if tracks.explained is not None
        else f"Samples of {count} and the center, on a plane"
    ]
    if tracks.explained is not None:
        parts[0] += f": it holds {100 * float(tracks.explained.sum()):.3g} % of their variance"
    parts[0] += "."
    parts.append(moves(tracks))
    parts.append(
        f"States are {np.median(off):.2g} off the plane (median), {off.max():.2g} at most: that movement is not "
        "seen on it."
    )
    if background is not None:
        loss = background.values[LOSS]
        if np.isfinite(loss).any():
            parts.append(
                f"The contours are the loss on the plane, from {np.nanmin(loss):.2g} to {np.nanmax(loss):.2g}, not at "
                "the samples."
            )
    return " ".join(parts)


def moves(tracks: Tracks) -> str:
    """Return how far the samples move on the plane, and how close to each other and to the center they end."""
    ranks = list(tracks.ranks.values())
    moved = [float(np.linalg.norm(track.sample[-1] - track.sample[0])) for track in ranks]
    text = f"The samples end {_range(moved)} from where they began"
    if len(ranks) > 1:
        ends = np.array([track.sample[-1] for track in ranks])
        spread = max(float(np.linalg.norm(a - b)) for a in ends for b in ends)
        text += f", within {spread:.2g} of each other"
    if len(centers := center_tracks(tracks)) == 1:
        gaps = [float(np.linalg.norm(track.sample[-1] - centers[0].at[-1])) for track in ranks]
        text += f" and within {max(gaps):.2g} of the center"
    return f"{text}."


def of_space(tracks: Tracks, background: Surface, words: str, *, where: str) -> str:
    """Return the text above the surface: what it shows, and from where its numbers are.

    Args:
        tracks: on the surface.
        background: the loss.
        words: model and data of the loss.
        where: file of the stored surface; empty: it was computed now.
    """
    assert background.y is not None
    grid = f"{len(background.x)} x {len(background.y)}"
    origin = f"read from {where}, not computed again" if where else "computed for this page"
    return (
        f"The loss at {grid} points of the same plane ({words}; {origin}). Coloured lines are the ranks' samples, the "
        "broad grey line below them is the center, and all lie on the surface: a white point is a rank's first state, "
        "a square its last. A sample's own loss differs where the sample is off the plane. Turn the surface with the "
        "mouse, a finger, or the buttons."
    )


def losses_of(notes: Mapping[str, Any]) -> str:
    """Return which loss of which data was computed, from `ranks.objective_options`."""
    loss, data = notes.get("loss", "cross-entropy"), data_of(notes)
    return f"{loss} of {data}" if data else str(loss)


def data_of(notes: Mapping[str, Any]) -> str:
    """Return which data were used, from `ranks.objective_options`; empty if they are not named."""
    samples = notes.get("samples")
    words = [f"{samples:,} samples"] if isinstance(samples, int) else []
    if "split" in notes:
        words.append(f"the {notes['split']} data" if notes["split"] else "other data")
    return " of ".join(words)


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
