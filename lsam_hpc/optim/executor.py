"""Executors run exchanges, in the training thread or in another one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

T = TypeVar("T")


class Executor(Protocol):
    """Runs the exchanges of one chain in the order of submission."""

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run a job after the jobs submitted before it, and return its future."""

    def wait(self, future: Future[T]) -> bool:
        """Wait for a job; return False if it will not complete: the chain then continues without exchanges."""


class InlineExecutor:
    """Runs each job immediately, in the thread that submits it."""

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run the job and return its completed future; exceptions of the job propagate to the caller."""
        future: Future[T] = Future()
        future.set_result(job())
        return future

    def wait(self, future: Future[T]) -> bool:
        """Return True: the job is complete."""
        return future.done()
