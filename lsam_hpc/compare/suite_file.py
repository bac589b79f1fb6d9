"""Reads a suite from a YAML or TOML file."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsam_hpc.compare.suite import LOCAL_STEPS, NAME, RESERVED, Cell, Options, Simulation, Suite, Tuning
from lsam_hpc.errors import InputError
from lsam_hpc.options.files import convert, read_table, typed, unknown_option
from lsam_hpc.options.recipes import RECIPES
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.stragglers import Stragglers


def read_suite(path: Path, data_dir: str | None = None) -> Suite:
    """Return the suite that a file describes.

    Args:
        path: the file.
        data_dir: directory with the data set's files; replaces the suite's `data_dir`.

    Raises:
        InputError: the file cannot be read, or has an invalid value.
    """
    table = read_table(path)
    fields = {field.name for field in dataclasses.fields(Suite)}
    for key in table:
        if key not in fields:
            raise InputError(f"{path}: {unknown_option(str(key), sorted(fields))}")

    def names(key: str, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
        value = table.get(key, default)
        if not isinstance(value, dict) or not value or not all(NAME.fullmatch(str(name)) for name in value):
            raise InputError(f"{path}: {key}: expected names of letters, digits and -+._ with options, found {value!r}")
        return {str(name): value or {} for name, value in value.items()}

    def many(key: str, default: list[Any], to: type) -> tuple[Any, ...]:
        value = table.get(key, default)
        try:
            listed = tuple(convert(part, to) for part in value)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {key}: expected a list of {to.__name__}, found {value!r}") from error
        if not listed or len(set(listed)) < len(listed):
            raise InputError(f"{path}: {key}: expected a list of different {to.__name__}, found {value!r}")
        return listed

    def whole(key: str, default: int, least: int) -> int:
        value = table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{path}: {key}: expected a whole number >= {least}, found {value!r}")
        return value

    budgets = {name: _budget(path, name, options) for name, options in names("budgets").items()}
    methods, grids = {}, {}
    for name, value in names("methods").items():
        options = dict(value) if isinstance(value, dict) else {"": value}
        grids[name] = _grid(path, name, options.pop("tune", None))
        methods[name] = _options(path, f"methods: {name}", options)
    train = _options(path, "train", table.get("train", {}))
    suite = Suite(
        train=train if data_dir is None else {**train, "data_dir": data_dir},
        methods=methods,
        budgets=budgets,
        ranks=many("ranks", [4], int),
        stragglers=many("stragglers", ["none"], str),
        seeds=many("seeds", [0, 1, 2], int),
        reference=str(table.get("reference", next(iter(methods)))),
        images=None if table.get("images") is None else whole("images", 0, 1),
        points=whole("points", 10, 1),
        curve_images=whole("curve_images", 2000, 1),
        sharpness_images=whole("sharpness_images", 512, 0),
        equal_seconds=bool(table.get("equal_seconds", False)),
        tune=None,
        simulate=_simulation(path, table.get("simulate")),
    )
    if suite.reference not in methods:
        raise InputError(f"{path}: reference: expected one of {', '.join(methods)}, found {suite.reference!r}")
    for ranks in suite.ranks:
        if ranks < 1 or (suite.images or ranks) % ranks:
            raise InputError(f"{path}: images: expected a multiple of the ranks, found {suite.images} for {ranks}")
    tuned = {name: grid for name, grid in grids.items() if grid}
    if table.get("tune") is None:
        if tuned:
            raise InputError(f"{path}: tune: expected a table, as {next(iter(tuned))} is to be tuned, found none")
    else:
        suite = dataclasses.replace(suite, tune=_tuning(path, table["tune"], tuned, suite))
    for cell in [*suite.trials(), *suite.cells({})]:
        _checked(path, cell)
    return suite


def _simulation(path: Path, table: object) -> Simulation | None:
    if table is None:
        return None
    if not isinstance(table, dict) or not {"machine", "step", "parameters"} <= set(table):
        raise InputError(f"{path}: simulate: expected machine, step and parameters, found {table!r}")
    return Simulation(**typed(f"{path}: simulate", table, typing.get_type_hints(Simulation)))


def _tuning(path: Path, table: object, grids: dict[str, tuple[Options, ...]], suite: Suite) -> Tuning:
    known = {"validation", "seeds"} if suite.simulate else {"validation", "budget", "ranks", "seeds"}
    if not isinstance(table, dict) or not set(table) <= known or not isinstance(table.get("validation"), int):
        raise InputError(f"{path}: tune: expected {', '.join(sorted(known))}, found {table!r}")
    lengths = {name: len(grid) for name, grid in grids.items()}
    if len(grids) < len(suite.methods) or len(set(lengths.values())) != 1:
        raise InputError(f"{path}: tune: expected as many settings for each method, found {lengths or 'none'}")
    budget, ranks = str(table.get("budget", next(iter(suite.budgets)))), table.get("ranks", suite.ranks[0])
    if budget not in suite.budgets or not isinstance(ranks, int) or ranks < 1:
        raise InputError(f"{path}: tune: expected a budget of the suite and a number of ranks, found {budget}, {ranks}")
    seeds = table.get("seeds", [1000])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) for seed in seeds):
        raise InputError(f"{path}: tune: seeds: expected a list of numbers, found {seeds!r}")
    if set(seeds) & set(suite.seeds):
        raise InputError(f"{path}: tune: seeds: expected seeds that no run has, found {seeds}")
    return Tuning(table["validation"], budget, ranks, tuple(seeds), grids)


def _grid(path: Path, method: str, grid: object) -> tuple[Options, ...]:
    """Return all combinations of values, as of `{lr: [0.1, 0.2], rho: [0, 0.1]}`."""
    if grid is None:
        return ()
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise InputError(f"{path}: methods: {method}: tune: expected lists of values by option, found {grid!r}")
    names = list(grid)
    settings = [dict(zip(names, values, strict=True)) for values in itertools.product(*grid.values())]
    return tuple(_options(path, f"methods: {method}: tune", setting) for setting in settings)


def _budget(path: Path, name: str, options: object) -> dict[str, Any]:
    """Return the options of a budget, which may also say how many steps each rank takes."""
    if not isinstance(options, dict) or LOCAL_STEPS not in options:
        return _options(path, f"budgets: {name}", options)
    rest = dict(options)
    each = rest.pop(LOCAL_STEPS)
    if isinstance(each, bool) or not isinstance(each, int) or each < 1:
        raise InputError(f"{path}: budgets: {name}: {LOCAL_STEPS}: expected a whole number >= 1, found {each!r}")
    return {**_options(path, f"budgets: {name}", rest), LOCAL_STEPS: each}


def _options(path: Path, where: str, options: object) -> dict[str, Any]:
    """Return options of `lsam train`, those of a recipe among them, converted to their types."""
    if not isinstance(options, dict):
        raise InputError(f"{path}: {where}: expected options of lsam train and their values, found {options!r}")
    hints = typing.get_type_hints(TrainConfig)
    recipe = options.get("recipe")
    if recipe is not None and recipe not in RECIPES:
        raise InputError(f"{path}: {where}: recipe: expected one of {', '.join(RECIPES)}, found {recipe!r}")
    options = RECIPES.get(str(recipe), {}) | {name: value for name, value in options.items() if name != "recipe"}
    return typed(f"{path}: {where}", options, {name: hint for name, hint in hints.items() if name not in RESERVED})


def _checked(path: Path, cell: Cell) -> None:
    if "epochs" in cell.options and "steps" in cell.options:
        raise InputError(f"{path}: {cell.name}: expected epochs or steps, found both")
    try:
        config = TrainConfig(**cell.options, seed=cell.seed, stragglers=cell.stragglers)
        config.check()
        config.together(cell.ranks).check_communication(cell.ranks)
        Stragglers(cell.stragglers, 0, cell.ranks, cell.seed)
    except InputError as error:
        raise InputError(f"{path}: {cell.name}: {error}") from error
