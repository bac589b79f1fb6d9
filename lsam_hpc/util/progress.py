"""Progress of long work, on stderr: a bar with the time left on a terminal, and elsewhere a line every ten seconds."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
DELAY = 1.0  # s before a bar appears: short work shows none
PAUSE = 10.0  # s before each line if stderr is no terminal


class Progress:
    """Shows how much of a known amount of work is done, and the time left.

    Args:
        title: of the bar or the lines. None: show nothing.
        total: amount of work.
        unit: what is counted. Default: nothing is named.
        done: amount that was done before, whose time is not known. Default: 0.
    """

    def __init__(self, title: str | None, total: int, unit: str = "", done: int = 0) -> None:
        self.shown = title is not None
        self._title, self._total, self._unit = title, total, unit
        self._before = self._done = done
        self._began = self._printed = time.monotonic()
        self._bar: Any = None
        if self.shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=title, unit=unit or "it", delay=DELAY)

    def advance(self, count: int = 1) -> None:
        """Count work that was done."""
        self.reach(self._done + count)

    def reach(self, done: int, note: str = "") -> None:
        """Set how much is done in total.

        Args:
            done: amount of work.
            note: shown behind it. Default: nothing.
        """
        self._done = done
        if not self.shown:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.total = max(self._total, done)
            self._bar.update(done - self._bar.n)
        elif (now := time.monotonic()) - self._printed > PAUSE and done > self._before:
            self._printed = now
            left = (now - self._began) / (done - self._before) * max(0, self._total - done)
            self._print(f"{', ' * bool(note)}{note}, about {left:.0f} s left")

    def close(self) -> None:
        """End the bar, or print a last line if there were others."""
        if self._bar is not None:
            self._bar.close()
        elif self.shown and self._printed > self._began:
            self._print(f", {time.monotonic() - self._began:.0f} s")
        self.shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _print(self, rest: str) -> None:
        unit = f" {self._unit}s" if self._unit else ""
        total = max(self._total, self._done)
        print(f"{self._title}: {self._done:,} of {total:,}{unit}{rest}", file=sys.stderr, flush=True)


def counted(items: Sequence[T], title: str | None, unit: str = "") -> Iterator[T]:
    """Yield the items, and show how many are done; see `Progress`."""
    with Progress(title, len(items), unit) as progress:
        for item in items:
            yield item
            progress.advance()


def add_quiet(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option --quiet to a verb."""
    what = "print nothing but warnings, errors and what --json asks for, and show no progress"
    parser.add_argument("--quiet", action="store_true", help=what)
