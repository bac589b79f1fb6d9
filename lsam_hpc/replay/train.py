"""The training job of `lsam train` with the event order of a simulated run, in one process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lsam_hpc.errors import InputError
from lsam_hpc.replay.bench import Bench, Outcome, replay
from lsam_hpc.train import data
from lsam_hpc.train.builders import make_dataset
from lsam_hpc.train.config import TrainConfig

if TYPE_CHECKING:
    from lsam_hpc.simulate.model import Event

# The simulated order holds for these values only.
_ONLY = {
    "topology": "center",
    "group_size": 1,
    "shard": "none",
    "mode": "async",
    "budget": "total",
    "wire_dtype": "float32",
    "stragglers": "none",
    "selection": "none",
    "adversarial": "none",
    "precision": "float32",
    "initial_state": None,
}
# Ascents whose passes are not one or two.
_OTHER_COSTS = ("asyncsam", "gam")


def check(config: TrainConfig) -> None:
    """Raise InputError for the first option whose value cannot be replayed."""
    for name, only in _ONLY.items():
        if (value := getattr(config, name)) != only:
            raise InputError(f"--{name.replace('_', '-')}: expected {only} in a simulated order, found {value}")
    if config.ascent in _OTHER_COSTS:
        raise InputError(f"--ascent: expected one of one or two passes in a simulated order, found {config.ascent}")


def train(
    config: TrainConfig,
    ranks: int,
    events: Iterable[Event],
    dataset: data.Dataset | None = None,
    *,
    points: int = 0,
    curve_images: int = 2000,
) -> Outcome:
    """Train as `lsam train` does on `ranks` ranks, with steps and exchanges in the order of the events.

    Args:
        config: the training options; those of logs, checkpoints and signals are ignored.
        ranks: number of ranks; a chain each, or with `synchronous` all in one.
        events: of a run simulated with the config's period, coupling, max_delay and overlap, and with `together` steps
            at its start (see `steps_together`); long enough for its steps.
        dataset: default: the config's, loaded.
        points: number of points of the curve. Default 0.
        curve_images: test images for a point. Default 2000.

    Raises:
        InputError: an option has a value that cannot be replayed, or the events do not fit.
    """
    check(config)
    dataset = dataset or make_dataset(config)
    bench = Bench(config, ranks, dataset)
    watched = bench.watch(events, points, curve_images)
    bench.take_together(watched)
    replay(bench.players(), watched)
    return bench.outcome()
