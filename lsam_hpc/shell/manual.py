"""`lsam help [VERB]`: print a verb's manual page, or the list of verbs."""

from __future__ import annotations

import argparse
import pydoc
import textwrap
from collections.abc import Sequence

from lsam_hpc import cli
from lsam_hpc.shell.words import load
from lsam_hpc.util.arguments import Parser

EXIT_STATUS = {
    0: "done",
    1: "a bug, with a traceback",
    2: "bad usage or input: one line names the thing, what was expected and what was found",
    3: "stopped by a signal after a checkpoint: it can be resumed",
    4: "ranks failed",
}
WIDTH = 100  # characters of a line


def main(argv: Sequence[str]) -> int:
    """Print the page, on a terminal with $PAGER; return the exit code."""
    parser = Parser(prog="lsam help", description="Print the manual page of a verb, or the list of verbs.")
    parser.add_argument("verb", nargs="?", choices=cli.VERBS, metavar="VERB", help="of lsam (default: list all verbs)")
    verb = parser.parse_args(argv).verb
    pydoc.pager(cli.parser().format_help() if verb is None else page(verb))
    return 0


def page(verb: str) -> str:
    """Return the manual page of a verb."""
    parser, text = load(verb), cli.VERBS[verb][1]
    parser.formatter_class = _Formatter
    first, *more = parser.format_usage().removeprefix("usage: ").splitlines()
    usage = [first, *(line[len("usage: ") :] for line in more)]
    parts = [("NAME", f"lsam {verb} - {text}"), ("SYNOPSIS", "\n".join(usage))]
    if parser.description:
        parts.append(("DESCRIPTION", textwrap.fill(parser.description, WIDTH - 4)))
    for group in parser._action_groups:
        formatter = _Formatter(prog=parser.prog)
        formatter.add_arguments(group._group_actions)
        if listed := formatter.format_help().strip("\n"):
            about = textwrap.fill(group.description, WIDTH - 4) + "\n\n" if group.description else ""
            title, bracket, rest = (group.title or "options").partition("(")
            parts.append((title.upper() + bracket + rest, about + textwrap.dedent(listed)))
    if parser.epilog:
        parts.append(("NOTES", textwrap.fill(parser.epilog, WIDTH - 4)))
    parts.append(("EXIT STATUS", "\n".join(f"{code}  {meaning}" for code, meaning in EXIT_STATUS.items())))
    parts.append(("SEE ALSO", "lsam help, lsam completion; docs/reference/options.md for options as keys of files"))
    return "\n\n".join(f"{title}\n{textwrap.indent(body, '    ')}" for title, body in parts) + "\n"


class _Formatter(argparse.HelpFormatter):
    """Each option on a line of its own, and its help below it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=8, width=WIDTH - 4)
