"""Griffe's extension for constructors that take the options of a dataclass: their sources hide them."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe
import mpi4py

mpi4py.rc.initialize = False  # the modules are only looked at

KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: griffe.ParameterKind.positional_only,
    inspect.Parameter.POSITIONAL_OR_KEYWORD: griffe.ParameterKind.positional_or_keyword,
    inspect.Parameter.VAR_POSITIONAL: griffe.ParameterKind.var_positional,
    inspect.Parameter.KEYWORD_ONLY: griffe.ParameterKind.keyword_only,
    inspect.Parameter.VAR_KEYWORD: griffe.ParameterKind.var_keyword,
}


class Signatures(griffe.Extension):
    """Takes docstring and signature from the class itself where its docstring in the source says {options}."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:  # noqa: ANN401 (Griffe's interface)
        """Fill in one class."""
        if cls.docstring is None or "{options}" not in cls.docstring.value:
            return
        actual = getattr(importlib.import_module(cls.module.path), cls.name)
        cls.docstring.value = inspect.cleandoc(actual.__doc__)
        parameters = inspect.signature(actual.__init__).parameters.values()
        cls.members["__init__"].parameters = griffe.Parameters(*map(_parameter, parameters))


def _parameter(parameter: inspect.Parameter) -> griffe.Parameter:
    empty, hint = inspect.Parameter.empty, parameter.annotation
    return griffe.Parameter(
        parameter.name,
        annotation=None if hint is empty else hint if isinstance(hint, str) else inspect.formatannotation(hint),
        kind=KINDS[parameter.kind],
        default=None if parameter.default is empty else repr(parameter.default),
    )
