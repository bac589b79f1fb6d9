"""Command-line parsing whose errors are one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import IO, ClassVar, NoReturn

from lsam_hpc.errors import InputError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError instead of printing the usage and exiting."""

    _asked: ClassVar[list[Parser] | None] = None

    def error(self, message: str) -> NoReturn:
        """Raise InputError with argparse's message."""
        raise InputError(message.removeprefix("argument "))

    def print_help(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        """Print the help; while `parser_of` asks for the parser, keep it instead."""
        if Parser._asked is None:
            super().print_help(file)
        else:
            Parser._asked.append(self)


def parser_of(main: Callable[[Sequence[str]], int]) -> Parser:
    """Return the parser of a program: the one that answers --help.

    Args:
        main: runs the program with the words of a command line.
    """
    asked: list[Parser] = []
    Parser._asked = asked
    try:
        main(["--help"])
    except SystemExit:
        pass
    finally:
        Parser._asked = None
    return asked[0]
