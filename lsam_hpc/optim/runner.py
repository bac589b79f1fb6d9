"""Who does an exchange: the training thread itself, or another."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

T = TypeVar("T")


class Runner(Protocol):
    """Runs a chain's exchanges, one after the other."""

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Have a job done, after those submitted before, and return its future."""

    def wait(self, future: Future[T]) -> bool:
        """Wait for a job; return False if it must be given up: then the chain goes on alone."""


class Inline:
    """Does each job at once, in the thread that submits it."""

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Do the job and return its future; what it raises is raised here."""
        future: Future[T] = Future()
        future.set_result(job())
        return future

    def wait(self, future: Future[T]) -> bool:
        """Return True: it is done."""
        return future.done()
