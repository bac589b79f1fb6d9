"""Numbers as a JSON document, for programs that read what a verb prints."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping
from typing import Any

HELP = "print the numbers as JSON, in full precision, and nothing else on stdout"


def add_json(parser: argparse.ArgumentParser, what: str = HELP) -> None:
    """Add the option --json to a verb."""
    parser.add_argument("--json", action="store_true", help=what)


def document(value: object) -> str:
    """Return a value as JSON; arrays become lists, and numbers that JSON does not have (NaN, infinity) null."""
    return json.dumps(_plain(value), indent=1, allow_nan=False)


def _plain(value: Any) -> Any:  # noqa: ANN401 (any value)
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):  # an array, or a number of numpy
        return _plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
