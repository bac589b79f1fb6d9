"""The chains of a run with their models and mini-batches, in one process, stepped by events."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

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
from lsam_hpc.replay.together import Meeting
from lsam_hpc.train import data
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.builders import (
    augmentation,
    lr_factor,
    make_base,
    make_model,
    peak_lr,
    sampler_options,
    synchronous_steps,
    total_steps,
)
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.evaluation import SUBSET, evaluate

if TYPE_CHECKING:
    from lsam_hpc.simulate.model import Event


class Point(TypedDict):
    """A point of a curve: the center at a moment of training."""

    epochs: float  # passes over the training set of all ranks together
    seconds: float  # since the start
    test_error: float  # in %


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
        curve: the center's error at equal parts of the steps.
    """

    center_train_loss: float
    center_test_error: float
    sample_test_error: float
    steps: list[int]
    exchanges: list[list[Exchange]]
    refused: int
    curve: list[Point]

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
    running = {rank for rank, player in enumerate(players) if not player.ended}
    for event in events if running else ():
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


def steps_together(config: TrainConfig, ranks: int, dataset: data.Dataset) -> int:
    """Return the number of local steps at the start of a run that all ranks take together."""
    if config.synchronous:
        return total_steps(config.together(ranks), dataset)
    return synchronous_steps(config, dataset, ranks)


class Bench:
    """The chains of a run with their models and mini-batches.

    Args:
        config: the training options.
        ranks: number of ranks; a chain each, or with `synchronous` all in one.
        dataset: the config's.
        more: keywords of the chains that override the config's. Default: none.
        make_center: makes the center that the chains share, from its start. Default: `LocalCenter`.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: int,
        dataset: data.Dataset,
        more: Mapping[str, Any] | None = None,
        make_center: Callable[[Tensor], LocalCenter] = LocalCenter,
    ) -> None:
        self._config, self._dataset = config.together(ranks), dataset
        self._together = steps_together(config, ranks, dataset)
        first = make_model(config, dataset)
        base = make_base(config, first)
        shared = [tensor for tensors in shared_tensors(base, first) for tensor in tensors]
        self._flat = FlatVector(shared)
        self.center = make_center(self._flat.gather(shared))
        # The global step counts steps of chains; all ranks are one chain where they are synchronous.
        self._chains = 1 if config.synchronous else ranks
        total = total_steps(self._config, dataset) * ranks // self._chains
        self._counter = OrderedSteps(total)
        self._models = [first, *(copy.deepcopy(first) for _ in range(ranks - 1))]
        self._records: list[list[Exchange]] = [[] for _ in self._models]
        self._curve: list[Point] = []
        self._curve_images = 0
        self._now = 0.0
        pull = 0.9 / ranks if config.pull is None else config.pull
        augment = augmentation(config, dataset)
        self._steps = []
        for rank, model in enumerate(self._models):
            seed = config.seed * ranks + rank
            options = sampler_options(self._config, model, dataset, self._chains)
            chain = Chain(
                make_base(self._config, model),
                self.center,
                self._counter,
                overlap=config.overlap,
                on_exchange=self._records[rank].append,
                **{**options, "pull": pull, "seed": seed, **(more or {})},
            )
            batches = Batches(dataset.train_x, dataset.train_y, config.batch_size, seed, augment)
            self._steps.append(_Step(self._config, chain, model, batches, total_steps(self._config, dataset)))
        self._ranks = ranks

    @property
    def chains(self) -> list[Chain]:
        """The ranks' chains."""
        return [step.chain for step in self._steps]

    def players(self) -> list[Player]:
        """Return the players of all chains, each of which draws its first step."""
        return [Player(step.chain, step) for step in self._steps]

    def take_together(self, events: Iterator[Event]) -> None:
        """Take the steps at the start that all ranks take together, and let all chains continue from their mean."""
        if not self._together:
            return
        meeting = Meeting(self._ranks, ascent=self._config.group_ascent == "averaged")
        for chain, seat in zip(self.chains, meeting.seats, strict=True):
            chain.join(seat)
        for number in range(self._together):
            event = next(events, None)
            if event is None or event.kind != "together":
                raise InputError(f"events: expected {self._together} steps together, found {number}")
            self._counter.together = number * self._chains
            meeting.step([partial(step, number * self._chains) for step in self._steps])
        self._counter.together = None
        y = self._settle()
        for chain in self.chains:
            chain.part(y, self.center.version)

    def _settle(self) -> Tensor:
        """Set the center to the mean of the samples, which differ in BatchNorm statistics only; return it."""
        y = self.center.vector.zero_()
        for chain in self.chains:
            y.add_(self._flat.gather(chain.shared), alpha=1 / self._ranks)
        return y

    def watch(self, events: Iterable[Event], points: int, images: int) -> Iterator[Event]:
        """Yield the events, and record the center's error after each of `points` equal parts of the steps."""
        total, self._curve_images = self._counter.total, images if points else 0
        marks = deque(total * number // points for number in range(1, points))
        for event in events:
            self._now = event.time
            yield event
            if marks and self._counter.drawn >= marks[0]:
                marks.popleft()
                if event.kind == "together":
                    self._settle()
                self._mark()

    def _mark(self) -> None:
        """Add a point to the curve."""
        images = self._curve_images
        _, error = self.evaluate(self._dataset.test_x[:images], self._dataset.test_y[:images])
        taken = sum(chain.local_step for chain in self.chains)
        epochs = taken * self._config.batch_size / len(self._dataset.train_y)
        self._curve.append(Point(epochs=epochs, seconds=self._now, test_error=error))

    def evaluate(self, x: data.Inputs | Tensor, y: data.Labels) -> tuple[float, float]:
        """Return the loss and the error in % of the center, with BatchNorm statistics of training images."""
        model = self._models[0]
        with self.chains[0].center(model, self._dataset.train_x[:SUBSET].split(256)):
            return evaluate(model, x, y)

    def outcome(self) -> Outcome:
        """Return the results."""
        if self._curve_images:
            self._mark()
        test_x, test_y = self._dataset.test_x, self._dataset.test_y
        errors = [evaluate(model, test_x, test_y)[1] for model in self._models]
        return Outcome(
            center_train_loss=self.evaluate(self._dataset.train_x[:SUBSET], self._dataset.train_y[:SUBSET])[0],
            center_test_error=self.evaluate(test_x, test_y)[1],
            sample_test_error=float(np.mean(errors)),
            steps=[chain.local_step for chain in self.chains],
            exchanges=self._records,
            refused=sum(chain.rejected for chain in self.chains),
            curve=self._curve,
        )


class _Step:
    """Takes a step of one chain, as the training loop does."""

    def __init__(self, config: TrainConfig, chain: Chain, model: nn.Module, batches: Batches, total: int) -> None:
        self._config, self.chain, self._model, self._batches, self._total = config, chain, model, batches, total

    def __call__(self, global_step: int) -> None:
        chain = self.chain
        for group in chain.param_groups:
            group["lr"] = peak_lr(self._config) * lr_factor(self._config, global_step, self._total)
        x, y = next(self._batches)

        def closure() -> Tensor:
            chain.zero_grad()
            loss = functional.cross_entropy(self._model(x), y)
            loss.backward()
            return loss

        chain.step(closure)
