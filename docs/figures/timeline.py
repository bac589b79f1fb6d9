"""Draws a part of a trace of `lsam timeline`: python docs/figures/timeline.py TRACE.json.gz OUT.png [SECONDS FROM]"""

import gzip
import json
import sys

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"step": "#56B4E9", "exchange": "#E69F00", "blocked": "#D55E00"}  # Okabe and Ito 2008
ROWS = {"step": -0.3, "exchange": -0.05, "blocked": 0.2}


def main(trace: str, out: str, seconds: str = "0.06", start: str = "2.0") -> None:
    """Draw steps, exchanges and waits of all ranks."""
    with gzip.open(trace) as file:
        events = [event for event in json.load(file)["traceEvents"] if event["ph"] == "X"]
    begin, length = float(start), float(seconds)
    figure, axes = plt.subplots(figsize=(7, 2.8), constrained_layout=True)
    ranks = sorted({event["pid"] for event in events})
    for event in events:
        kind, at = event["name"].split()[0], event["ts"] / 1e6 - begin
        if kind in COLOURS and 0 <= at < length and event["dur"] > 0:
            bar = (1e3 * at, ranks.index(event["pid"]) + ROWS[kind])
            axes.add_patch(plt.Rectangle(bar, event["dur"] / 1e3, 0.22, fc=COLOURS[kind], ec="w", lw=0.4))
    for kind, name in (("step", "step"), ("exchange", "exchange"), ("blocked", "wait for an exchange")):
        axes.plot([], [], "s", color=COLOURS[kind], label=name)
    axes.set(xlim=(0, 1e3 * length), ylim=(len(ranks) - 0.4, -0.7), xlabel="time, ms", yticks=range(len(ranks)))
    axes.set_yticklabels([f"rank {rank}" for rank in ranks])
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.16), fontsize=9)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main(*sys.argv[1:])
