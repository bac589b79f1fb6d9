"""Options as flags of a command line."""

from __future__ import annotations

import argparse
import inspect
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.options.option import choices, fields, help_text, kind


def flag(name: str) -> str:
    """Return the flag of an option."""
    return "--" + name.replace("_", "-")


def add_flags(parser: argparse.ArgumentParser, options: type) -> None:
    """Add a flag for each option of a dataclass, in one group per concern; a flag that is not given sets no value."""
    hints = typing.get_type_hints(options)
    groups: dict[type, Any] = {}
    for item in fields(options):
        owner = next(cls for cls in options.__mro__ if item.name in inspect.get_annotations(cls))
        if owner not in groups:
            title, _, rest = (owner.__doc__ or "options").partition("\n")
            groups[owner] = parser.add_argument_group(title.rstrip(".").lower(), rest.strip() or None)
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": help_text(item).replace("%", "%%")}
        if hints[item.name] is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            known = choices(hints[item.name])
            settings |= {"type": kind(hints[item.name]), "metavar": "{" + ",".join(known) + "}" if known else None}
        groups[owner].add_argument(flag(item.name), **settings)


@contextmanager
def flags_in_messages() -> Iterator[None]:
    """Replace the option's name at the beginning of an InputError's message by its flag."""
    try:
        yield
    except InputError as error:
        name, rest = str(error).split(":", 1)
        raise InputError(f"{flag(name)}:{rest}", everywhere=error.everywhere) from error
