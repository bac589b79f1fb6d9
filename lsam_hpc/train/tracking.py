"""Passes the numbers of rank 0 to trackers of experiments while it trains, in a thread: they never delay a step."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lsam_hpc.errors import InputError
from lsam_hpc.train.trackers import TRACKERS, Tracker, Values
from lsam_hpc.util.extras import install_command
from lsam_hpc.util.log import get_logger

if TYPE_CHECKING:
    from lsam_hpc.optim.lsam import LocalLSAM

INTERVAL = 1.0  # s between two points
WAITING = 600  # points that may wait for slow trackers; further ones are dropped
PATIENCE = 30.0  # s for which the end of a job waits for its trackers
_LOG = get_logger(__name__)


def trackers(option: str) -> list[str]:
    """Return the trackers that `--track` names.

    Raises:
        InputError: a name is unknown, or its package is missing.
    """
    names = [] if option == "none" else [name.strip() for name in option.split(",")]
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--track: expected none, or some of {', '.join(TRACKERS)}, found {name!r}")
        if name != "csv" and find_spec(name) is None:
            raise InputError(f"--track {name}: expected the package {name} ({install_command(name)}), found none")
    return names


class Tracking:
    """Passes points to trackers: at most one per second, the mean loss since the last one and the chain's state.

    A tracker that raises is left out from then on, with a warning. A context: it closes the trackers.

    Args:
        names: of `TRACKERS`.
        run_dir: the run directory.
        options: the job's options.
    """

    def __init__(self, names: Sequence[str], run_dir: Path, options: Mapping[str, Any]) -> None:
        self._names, self._run_dir, self._options = names, run_dir, options
        self._points: queue.Queue[tuple[int, Values] | None] = queue.Queue(WAITING)
        self._sum, self._count, self._last = 0.0, 0, time.monotonic()
        self._results: Values = {}
        self._dropped = 0
        self._thread = threading.Thread(target=self._work, name="lsam-trackers", daemon=True) if names else None
        if self._thread is not None:
            self._thread.start()

    def step(self, opt: LocalLSAM, global_step: int, loss: float) -> None:
        """Count a step, and queue a point if the last one is a second old."""
        if self._thread is None:
            return
        self._sum += loss
        self._count += 1
        seconds = time.monotonic() - self._last
        if seconds < INTERVAL:
            return
        values = {
            "loss": self._sum / self._count,
            "lr": float(opt.param_groups[0]["lr"]),
            "rho": float(opt.param_groups[0]["rho"]),
            "steps_per_second": self._count / seconds,
            "center_distance": opt.center_distance,
            "staleness_mean": opt.stats()["staleness_mean"],
        }
        self._sum, self._count, self._last = 0.0, 0, time.monotonic()
        try:
            self._points.put_nowait((global_step, {n: v for n, v in values.items() if math.isfinite(v)}))
        except queue.Full:
            self._dropped += 1

    def end(self, results: Values) -> None:
        """Set the results that the trackers write when they are closed."""
        self._results = {name: float(value) for name, value in results.items() if math.isfinite(value)}

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        with suppress(queue.Full):  # the thread is blocked: the warning below says so
            self._points.put(None, timeout=PATIENCE)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            _LOG.warning("--track %s: not finished after %.0f s, and left behind", ",".join(self._names), PATIENCE)
        if self._dropped:
            _LOG.warning("--track %s: %d points were dropped: too slow", ",".join(self._names), self._dropped)

    def _work(self) -> None:
        trackers: dict[str, Tracker] = {}

        def attempt(name: str, act: Callable[[], Tracker | None]) -> None:
            try:
                if (made := act()) is not None:
                    trackers[name] = made
            except Exception as error:  # noqa: BLE001  # trackers may raise anything; training goes on without them
                trackers.pop(name, None)
                lines = str(error).splitlines() or [type(error).__name__]
                _LOG.warning("--track %s: not written any more: %s", name, lines[0])

        for name in self._names:
            attempt(name, partial(TRACKERS[name], self._run_dir, self._options))
        while (point := self._points.get()) is not None:
            for name, tracker in list(trackers.items()):
                attempt(name, partial(tracker.log, *point))
        for name, tracker in list(trackers.items()):
            attempt(name, partial(tracker.close, self._results))
