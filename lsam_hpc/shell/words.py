"""The words that a verb accepts, from its parser."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lsam_hpc.cli import VERBS
from lsam_hpc.util.arguments import Parser, parser_of


@dataclass(frozen=True)
class Option:
    """An option of a verb."""

    flags: Sequence[str]  # --name, -n, ...
    help: str
    takes: bool  # a value
    choices: Sequence[str]  # of the value; empty: any


@dataclass(frozen=True)
class Verb:
    """A verb of the command line."""

    name: str
    help: str
    options: Sequence[Option]
    choices: Sequence[str]  # of its first word that is no option; empty: files


def load(verb: str) -> Parser:
    """Return a verb's parser; its module is imported, and nothing else is run."""
    return parser_of(importlib.import_module(VERBS[verb][0]).main)


def verbs() -> list[Verb]:
    """Return all verbs."""
    return [verb_of(name, text, load(name)) for name, (_, text) in VERBS.items()]


def verb_of(name: str, text: str, parser: argparse.ArgumentParser) -> Verb:
    """Return a verb with the words of its parser."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    formatter = parser._get_formatter()
    options = [
        Option(action.option_strings, formatter._expand_help(action), action.nargs != 0, choices(action))
        for action in shown
        if action.option_strings
    ]
    first = next((action for action in shown if not action.option_strings), None)
    return Verb(name, text, options, choices(first) if first is not None else [])


def choices(action: argparse.Action) -> list[str]:
    """Return the values of an option or word, also if only its metavar, {a,b}, names them."""
    if action.choices is not None:
        return [str(value) for value in action.choices]
    named = re.fullmatch(r"\{(.+)\}", action.metavar if isinstance(action.metavar, str) else "")
    return named[1].split(",") if named else []
