"""An option: a dataclass field with a default, a help text and, for numbers, a range."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lsam_hpc.errors import InputError

_T = TypeVar("_T")


@dataclass(frozen=True)
class Range:
    """The numbers that an option accepts.

    Args:
        least: inclusive lower limit; None (default, as for the next three): no limit.
        above: exclusive lower limit.
        most: inclusive upper limit.
        below: exclusive upper limit.
        whole: accept whole numbers only.
        unit: unit of the number, for messages.
        infinite: accept infinity too.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    whole: bool = False
    unit: str = ""
    infinite: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
            return False
        if (math.isinf(value) and not self.infinite) or (self.whole and value % 1):
            return False
        number = float(value)
        return not (
            (self.least is not None and number < self.least)
            or (self.above is not None and number <= self.above)
            or (self.most is not None and number > self.most)
            or (self.below is not None and number >= self.below)
        )

    def __str__(self) -> str:
        bounded = self.most is not None or self.below is not None or self.infinite
        kind = "whole" if self.whole else "" if bounded else "finite"
        signs = ((">=", self.least), (">", self.above), ("<=", self.most), ("<", self.below))
        bounds = " and ".join(f"{sign} {limit:.10g}" for sign, limit in signs if limit is not None)
        if self.least is not None and self.most is not None:
            bounds = f"from {self.least:g} to {self.most:g}"
        return " ".join(f"a {kind} number {f'of {self.unit}' if self.unit else ''} {bounds}".split())


COUNT = Range(least=0, whole=True)
POSITIVE = Range(above=0)
NOT_NEGATIVE = Range(least=0)
PART = Range(least=0, most=1)


def option(default: Any, help: str, range: Range | None = None, *, positional: bool = False) -> Any:  # noqa: ANN401
    """Return a dataclass field for an option, as dataclasses.field does.

    Args:
        default: default value.
        help: one line for --help and the docs.
        range: range of a number. A schedule's values are checked when it is evaluated.
        positional: the dataclass accepts it as a positional argument too. Default False.
    """
    return field(default=default, metadata={"help": help, "range": range}, kw_only=not positional)


def argument() -> Any:  # noqa: ANN401 - as dataclasses.field
    """Return a dataclass field for a keyword that is an object and no option; its default is None."""
    return field(default=None, kw_only=True)


def fields(options: type) -> Iterator[dataclasses.Field[Any]]:
    """Yield the fields of a class that are options: those with a help text."""
    return (item for item in dataclasses.fields(options) if "help" in item.metadata)


def default(options: type, name: str) -> Any:  # noqa: ANN401 - an option's value
    """Return the default of an option, for other constructors with the same argument."""
    return next(item.default for item in fields(options) if item.name == name)


def help_text(item: dataclasses.Field[Any]) -> str:
    """Return an option's help, with its default."""
    text: str = item.metadata["help"]
    return text if item.default is None else f"{text} (default: {item.default})"


def kind(hint: Any) -> type:  # noqa: ANN401 - a type hint
    """Return the type of an option's values in a command line or a file: the first of a union that is not None."""
    hint = next(part for part in _parts(hint) if part is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return type(typing.get_args(hint)[0])
    assert isinstance(hint, type), hint
    return hint


def choices(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a type hint
    """Return the values of a type's Literals; empty if it has none."""
    literals = (part for part in _parts(hint) if typing.get_origin(part) is typing.Literal)
    return tuple(value for literal in literals for value in typing.get_args(literal))


def _parts(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401 - a type hint
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if union else (hint,)


def check(options: Any, name: Callable[[str], str] = str) -> None:  # noqa: ANN401 - a dataclass of options
    """Check choices and ranges.

    Args:
        options: the dataclass object.
        name: converts a field's name for the message, for example into a flag. Default: unchanged.

    Raises:
        InputError: a value is not among its choices or out of range; for the first such option.
    """
    hints = typing.get_type_hints(type(options))
    for item in fields(type(options)):
        value = getattr(options, item.name)
        known, limits = choices(hints[item.name]), item.metadata["range"]
        if value is None and item.default is None:
            continue
        if isinstance(value, str) and known and value not in known:
            raise InputError(f"{name(item.name)}: expected one of {', '.join(map(str, known))}, found {value!r}")
        if limits is not None and not callable(value) and value not in limits:
            raise InputError(f"{name(item.name)}: expected {limits}, found {value!r}")


def part(options: Any, of: type[_T]) -> _T:  # noqa: ANN401 - a dataclass of options
    """Return the options of one concern from an object of a class that inherits from it."""
    return of(**keywords(options, of))


def keywords(options: Any, of: type) -> dict[str, Any]:  # noqa: ANN401 - a dataclass of options
    """Return the fields of one dataclass, by name, from an object of a class that inherits from it."""
    return {item.name: getattr(options, item.name) for item in dataclasses.fields(of)}
