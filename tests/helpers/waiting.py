"""Waits for a condition with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], bool],
    what: str = "the condition",
    seconds: float = 30.0,
    *,
    pause: float = 0.002,
    details: Callable[[], str] = lambda: "",
) -> None:
    """Wait until a condition holds; raise AssertionError after the deadline.

    Args:
        condition: is called again and again.
        what: name of the condition in the message. Default "the condition".
        seconds: the deadline, s from now. Default 30.
        pause: time between two calls, s. Default 0.002.
        details: returns more text for the message. Default: none.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s\n{details()}"
        time.sleep(pause)
