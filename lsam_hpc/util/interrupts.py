"""Ctrl-C as an event that a loop waits for, in place of an exception anywhere in the program."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts() -> Iterator[socket.socket]:
    """Turn the first Ctrl-C into a byte to receive; a second one raises KeyboardInterrupt.

    Python prints and drops an exception raised in a destructor, so the first Ctrl-C must not rely on one.
    """
    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.settimeout(0)
        before = signal.getsignal(signal.SIGINT)
        wakeup = signal.set_wakeup_fd(sender.fileno())
        signal.signal(signal.SIGINT, lambda number, frame: signal.signal(signal.SIGINT, before))
        try:
            yield receiver
        finally:
            signal.set_wakeup_fd(wakeup)  # first: the next line may raise, and then the sockets close
            signal.signal(signal.SIGINT, before)


def sleep(seconds: float | None, receiver: socket.socket) -> bool:
    """Sleep, None: for ever; return True, at once, on Ctrl-C.

    Args:
        seconds: how long, s.
        receiver: of `interrupts`.
    """
    return bool(select.select([receiver], [], [], seconds)[0])
