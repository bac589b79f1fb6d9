"""Options from a TOML or YAML file, each as its type says."""

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
        path: of the file; .toml: TOML, else YAML.
        hints: the type of each known option.

    Raises:
        InputError: the file cannot be read, an option is not known, or its value is of another type.
    """
    return typed(str(path), read_table(path, "--config"), hints)


def typed(where: str, found: dict[Any, Any], hints: dict[str, Any]) -> dict[str, Any]:
    """Return options by name with underscores, each of its type; those that are None are left out.

    Args:
        where: they were found, for messages.
        found: name -> value.
        hints: the type of each known option.

    Raises:
        InputError: an option is not known, or its value is of another type.
    """
    options = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            raise InputError(f"{where}: {unknown_option(str(key), list(hints))}")
        if value is None:  # as in a run's config.json: not given
            continue
        try:
            options[name] = convert(value, kind(hints[name]))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{where}: {key}: expected {kind(hints[name]).__name__}, found {value!r}") from error
    return options


def read_table(path: Path, option: str = "--suite") -> dict[Any, Any]:
    """Return the keys and values of a TOML file (named *.toml) or a YAML file.

    Args:
        path: of the file.
        option: that named it.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{option}: expected a readable file, found {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found: {error.reason}") from error
    found = _load_toml(path, text) if path.suffix == ".toml" else _load_yaml(path, text)
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected options and their values, found {type(found).__name__}")
    return found


def convert(value: object, to: type) -> object:
    """Return a value as the option's type; text may be a number, as YAML reads 1e-3; raises TypeError or ValueError."""
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
    """Return what to say of a word that is no option."""
    close = difflib.get_close_matches(word, known, 1)
    return f"{word}: expected a known option{f' such as {close[0]}' if close else ''}, found an unknown one"
