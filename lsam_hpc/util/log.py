"""Messages of the package, on stderr unless the program configures the logger `lsam_hpc` itself."""

from __future__ import annotations

import logging
import sys


class _Stderr(logging.Handler):
    """Writes to the present sys.stderr, which tests and scripts may replace."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        print(self.format(record), file=sys.stderr, flush=True)


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module.

    Args:
        name: the module's `__name__`.
    """
    package = logging.getLogger("lsam_hpc")
    if not package.handlers:
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("lsam-hpc: %(message)s"))
        package.addHandler(handler)
        package.setLevel(logging.INFO)
        package.propagate = False
    return logging.getLogger(name)
