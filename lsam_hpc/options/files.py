"""Options from a TOML or YAML file, converted to their types."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.options.option import kind


def read_options(path: Path, hints: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a file gives, by name with underscores.

    Args:
        path: path of the file; .toml: TOML, else YAML.
        hints: type of each known option.

    Raises:
        InputError: the file cannot be read, an option is not known, or its value is of another type.
    """
    return typed(str(path), read_table(path, "--config"), hints)


def typed(source: str, values: dict[Any, Any], hints: dict[str, Any]) -> dict[str, Any]:
    """Return options by name with underscores, converted to their types, without those that are None.

    Args:
        source: where the values come from, for messages.
        values: name -> value.
        hints: type of each known option.

    Raises:
        InputError: an option is not known, or its value is of another type.
    """
    options = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            raise InputError(f"{source}: {unknown_option(str(key), list(hints))}")
        if value is None:  # as in a run's config.json: not given
            continue
        try:
            options[name] = convert(value, kind(hints[name]))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{source}: {key}: expected {kind(hints[name]).__name__}, found {value!r}") from error
    return options


def read_table(path: Path, option: str = "--suite") -> dict[Any, Any]:
    """Return the keys and values of a TOML file (named *.toml) or a YAML file.

    Args:
        path: path of the file.
        option: the command-line option that named it, for messages.

    Raises:
        InputError: the file cannot be read, or is no such table.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{option}: expected a readable file, found {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found: {error.reason}") from error
    table = _load_toml(path, text) if path.suffix == ".toml" else _load_yaml(path, text)
    if not isinstance(table, dict):
        raise InputError(f"{path}: expected options and their values, found {type(table).__name__}")
    return table


def convert(value: object, to: type) -> object:
    """Return a value as the option's type; YAML reads 1e-3 as text; raises TypeError or ValueError."""
    if (to is bool) != isinstance(value, bool) or not isinstance(value, (bool, int, float, str)):
        raise TypeError
    converted = to(value)
    if to is int and converted != float(value):
        raise ValueError
    return converted


def _load_toml(path: Path, text: str) -> object:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: expected TOML, found: {error}") from error


def _load_yaml(path: Path, text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: expected YAML, found: {' '.join(str(error).split())}") from error


def unknown_option(word: str, known: list[str]) -> str:
    """Return the message for a word that is not an option."""
    close = difflib.get_close_matches(word, known, 1)
    return f"{word}: expected a known option{f' such as {close[0]}' if close else ''}, found an unknown one"
