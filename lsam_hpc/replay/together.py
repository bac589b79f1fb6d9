"""Steps that all chains take together: each in a thread, one at a time and in a fixed order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class _EndedError(Exception):
    """Ends the threads of the other chains after an error in one."""


class Meeting:
    """Chains whose gradients are averaged, as by a group of ranks.

    Args:
        chains: number of chains.
        ascent: average the ascent's gradients too; False: each chain ascends along its own (m-SAM).
    """

    def __init__(self, chains: int, *, ascent: bool) -> None:
        self.seats = [Seat(self, number, ascent=ascent) for number in range(chains)]
        self._brought: list[list[Tensor]] = []
        self._turn = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def step(self, steps: Sequence[Callable[[], object]]) -> None:
        """Call one function per chain, each of which takes a step of a chain that averages by its seat."""
        self._turn, self._error = 0, None
        threads = [
            threading.Thread(target=self._run, args=(number, step), daemon=True) for number, step in enumerate(steps)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def average(self, number: int, parameters: list[Tensor]) -> None:
        """Replace the gradients of all chains by their mean once all have called this; each continues in its turn."""
        self._brought.append(parameters)
        if len(self._brought) == len(self.seats):
            for same in zip(*self._brought, strict=True):
                _average(same)
            self._brought = []
        self._pass_turn(number)
        self._wait_for_turn(number)

    def _run(self, number: int, step: Callable[[], object]) -> None:
        try:
            self._wait_for_turn(number)
            step()
        except _EndedError:
            return
        except BaseException as error:  # noqa: BLE001 - `step` raises it in the caller's thread
            with self._changed:
                self._error = error
                self._brought = []
                self._changed.notify_all()
            return
        self._pass_turn(number)

    def _pass_turn(self, number: int) -> None:
        with self._changed:
            self._turn = (number + 1) % len(self.seats)
            self._changed.notify_all()

    def _wait_for_turn(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == number or self._error is not None)
            if self._error is not None:
                raise _EndedError


class Seat:
    """A chain's place in a meeting: the `average` of its optimizer."""

    def __init__(self, meeting: Meeting, number: int, *, ascent: bool) -> None:
        self._meeting, self._number, self.ascent = meeting, number, ascent

    def __call__(self, parameters: list[Tensor]) -> None:
        """Replace the gradients by their mean over the chains."""
        self._meeting.average(self._number, parameters)


def _average(same: Sequence[Tensor]) -> None:
    """Replace the gradients of one parameter of all chains by their mean; a missing one counts as 0."""
    grads = [p.grad for p in same if p.grad is not None]
    if not grads:
        return
    mean = torch.stack(grads).sum(0).div_(len(same))
    for p in same:
        p.grad = mean.clone() if p.grad is None else p.grad.copy_(mean)
