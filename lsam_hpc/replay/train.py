"""The training job of `lsam train` with the event order of a simulated run, in one process."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc.errors import InputError
from lsam_hpc.optim import Exchange
from lsam_hpc.optim.batchnorm import shared_tensors
from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.replay.chain import Chain, OrderedSteps, Player
from lsam_hpc.train import data
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.builders import (
    augmentation,
    lr_factor,
    make_base,
    make_dataset,
    make_model,
    peak_lr,
    sampler_options,
    total_steps,
)
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.evaluation import SUBSET, evaluate

if TYPE_CHECKING:
    from lsam_hpc.simulate.model import Event

# The simulated order holds for these values only.
_ONLY = {
    "topology": "center",
    "group_size": 1,
    "synchronous": False,
    "mode": "async",
    "budget": "total",
    "wire_dtype": "float32",
    "stragglers": "none",
    "selection": "none",
    "adversarial": "none",
}


@dataclass(frozen=True)
class Outcome:
    """Results of a replayed run.

    Args:
        center_train_loss: mean cross-entropy of the center on the first training images.
        center_test_error: test error of the center, in %.
        sample_test_error: mean test error of the chains' samples, in %.
        steps: local steps of each chain.
        exchanges: exchanges of each chain, as the optimizer recorded them.
        refused: number of deltas that the chains' filters rejected.
    """

    center_train_loss: float
    center_test_error: float
    sample_test_error: float
    steps: list[int]
    exchanges: list[list[Exchange]]
    refused: int

    @property
    def staleness(self) -> NDArray[np.int64]:
        """Staleness of every exchange: updates by others between its read and its add."""
        return np.array([record.staleness for records in self.exchanges for record in records], np.int64)


def replay(players: Sequence[Player], events: Iterable[Event]) -> None:
    """Step all chains through the events until all have ended.

    Args:
        players: one per rank.
        events: in order of time; may be endless.

    Raises:
        InputError: an event does not follow from the earlier ones, or the events end before the chains do.
    """
    running = set(range(len(players)))
    for event in events:
        if event.rank >= len(players):
            raise InputError(f"events: expected ranks 0 to {len(players) - 1}, found {event.rank}")
        player = players[event.rank]
        player.take(event)
        if player.ended:
            running.discard(event.rank)
            if not running:
                break
    if running:
        total = players[0].chain.counter.total
        taken = sum(player.chain.local_step for player in players)
        raise InputError(
            f"events: expected {total} steps and all exchanges of the chains, found {taken} steps, and {len(running)} "
            "chains that had not ended"
        )
    for player in players:
        player.finish()


def train(config: TrainConfig, ranks: int, events: Iterable[Event], dataset: data.Dataset | None = None) -> Outcome:
    """Train as `lsam train` does on `ranks` ranks, with steps and exchanges in the order of the events.

    Args:
        config: the training options; those of logs, checkpoints and signals are ignored.
        ranks: number of chains.
        events: of a run simulated with the config's period, coupling, max_delay and overlap, long enough for its steps.
        dataset: default: the config's, loaded.

    Raises:
        InputError: an option has a value that cannot be replayed, or the events do not fit.
    """
    for name, only in _ONLY.items():
        if (value := getattr(config, name)) != only:
            raise InputError(f"--{name.replace('_', '-')}: expected {only} in a simulated order, found {value}")
    dataset = dataset or make_dataset(config)
    first = make_model(config, dataset)
    counter = OrderedSteps(total_steps(config, dataset))
    shared = [tensor for tensors in shared_tensors(make_base(config, first), first) for tensor in tensors]
    center = LocalCenter(FlatVector(shared).gather(shared))
    models = [first, *(copy.deepcopy(first) for _ in range(ranks - 1))]
    records: list[list[Exchange]] = [[] for _ in models]
    pull = 0.9 / ranks if config.pull is None else config.pull
    chains = []
    for rank, model in enumerate(models):
        chains.append(
            Chain(
                make_base(config, model),
                center,
                counter,
                overlap=config.overlap,
                on_exchange=records[rank].append,
                **{**sampler_options(config, model, dataset, ranks), "pull": pull, "seed": config.seed * ranks + rank},
            )
        )
    augment = augmentation(config, dataset)
    players = []
    for seed, (chain, model) in enumerate(zip(chains, models, strict=True), config.seed * ranks):
        batches = Batches(dataset.train_x, dataset.train_y, config.batch_size, seed, augment)
        players.append(Player(chain, _Step(config, chain, model, batches)))
    replay(players, events)
    errors = [evaluate(model, dataset.test_x, dataset.test_y)[1] for model in models]
    some_x, some_y = dataset.train_x[:SUBSET], dataset.train_y[:SUBSET]
    with chains[0].center(first, some_x.split(256)):
        loss, _ = evaluate(first, some_x, some_y)
        _, error = evaluate(first, dataset.test_x, dataset.test_y)
    return Outcome(
        center_train_loss=loss,
        center_test_error=error,
        sample_test_error=float(np.mean(errors)),
        steps=[chain.local_step for chain in chains],
        exchanges=records,
        refused=sum(chain.rejected for chain in chains),
    )


class _Step:
    """Takes a step of one chain, as the training loop does."""

    def __init__(self, config: TrainConfig, chain: Chain, model: nn.Module, batches: Batches) -> None:
        self._config, self._chain, self._model, self._batches = config, chain, model, batches

    def __call__(self, global_step: int) -> None:
        chain = self._chain
        for group in chain.param_groups:
            group["lr"] = peak_lr(self._config) * lr_factor(self._config, global_step, chain.counter.total)
        x, y = next(self._batches)

        def closure() -> Tensor:
            chain.zero_grad()
            loss = functional.cross_entropy(self._model(x), y)
            loss.backward()
            return loss

        chain.step(closure)
