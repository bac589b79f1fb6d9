"""Command-line parsing whose errors are one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lsam_hpc.errors import InputError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError with argparse's message."""
        raise InputError(message.removeprefix("argument "))
