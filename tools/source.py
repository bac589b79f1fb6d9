"""What the landscape programs have in common: the run, its model and data, states by name, and where figures go."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lsam_hpc.arguments import Parser
from lsam_hpc.errors import InputError
from lsam_hpc.landscape.figures import FORMATS
from lsam_hpc.landscape.objective import Batch, Objective, fixed_batches
from lsam_hpc.train import data
from lsam_hpc.train.models import MODELS, build
from lsam_hpc.train.own import function
from lsam_hpc.train.selection import OPTIONS
from lsam_hpc.trajectory import Run

SPLITS = ("train", "test")
BATCH = 512  # images in a batch of the built-in data sets


def parser(verb: str, description: str, **more: Any) -> Parser:  # noqa: ANN401
    """Return a parser with the options that all landscape programs have."""
    found = Parser(prog=f"lsam {verb}", description=description, allow_abbrev=False, **more)
    found.add_argument("run", metavar="RUN", help="the run directory, one rank's file, or a merged file")
    found.add_argument("--out", metavar="DIR", help="where figures and numbers go (default: RUN/figures)")
    found.add_argument("--format", choices=FORMATS, default="png", help="of figures (default: png)")
    found.add_argument("--partial", action="store_true", help="leave out ranks and rows that are damaged")
    return found


def add_objective(found: argparse.ArgumentParser, images: int = 1000) -> None:
    """Add the options that say which model and data."""
    group = found.add_argument_group("model and data (default: the run's own)")
    group.add_argument("--model", metavar="MODULE:FUNCTION", help="called without arguments, returns an nn.Module")
    group.add_argument("--data", metavar="MODULE:FUNCTION", help="returns what yields (inputs, targets), not shuffled")
    group.add_argument("--loss", metavar="MODULE:FUNCTION", help="mean loss of (outputs, targets); default: "
                       "cross-entropy")  # fmt: skip
    group.add_argument("--data-dir", metavar="DIR", help="of the run's data set, where it has moved")
    group.add_argument("--split", choices=SPLITS, default="train", help="of the run's data set (default: train)")
    group.add_argument("--images", type=int, default=images, help=f"how many samples, 0: all (default: {images})")
    group.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    group.add_argument("--double", action="store_true", help="compute in float64")


def folder(given: argparse.Namespace, run: Run) -> Path:
    """Return the folder for figures and numbers; it is made."""
    path = Path(given.out) if given.out else (run.path if run.path.is_dir() else run.path.parent) / "figures"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: expected a folder that can be written, found {path}: {error.strerror}") from error
    return path


def objective(given: argparse.Namespace, run: Run) -> Objective:
    """Return f on the model and data that the options name, checked against the run's layout.

    Raises:
        InputError: one cannot be had, does not fit the run, or is not deterministic.
    """
    if given.images < 0:
        raise InputError(f"--images: expected a number >= 0, found {given.images}")
    try:
        device = torch.device(given.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device: expected one that PyTorch can use, found {given.device!r}") from error
    batches, builtin = _data(given, run)
    model = (_model(given, run, builtin)).to(device)
    if given.double:
        model = model.double()
    dtype = torch.float64 if given.double else None
    on_device = [(x.to(device, dtype if x.is_floating_point() else None), y.to(device)) for x, y in batches]
    loss = function("--loss", given.loss) if given.loss else nn.functional.cross_entropy
    found = Objective(model, on_device, loss)
    layout = [(name, tuple(shape)) for name, shape, _ in run.layout]
    if found.layout != layout:
        ours, theirs = dict(found.layout), dict(layout)
        name = next((n for n in {**theirs, **ours} if ours.get(n) != theirs.get(n)), "another order")
        raise InputError(f"model: expected the run's parameters, found a difference in {name}: "
                         f"{theirs.get(name, 'none')} in the run, {ours.get(name, 'none')} in the model")  # fmt: skip
    return found


def _data(given: argparse.Namespace, run: Run) -> tuple[list[Batch], data.Dataset | None]:
    at_most = given.images or None
    if given.data:
        made: Iterable[Batch] = function("--data", given.data)()
        return fixed_batches(made, at_most), None
    name = run.config.get("data")
    if not isinstance(name, str) or (name not in data.DATASETS and ":" not in name):
        raise InputError(
            f"--data: expected MODULE:FUNCTION, found none, and the run does not name a data set: {name!r}"
        )
    options = {option: run.config[option] for option in OPTIONS if option in run.config}
    dataset = data.load(name, given.data_dir or run.config.get("data_dir"), **options)
    x, y = getattr(dataset, f"{given.split}_x"), getattr(dataset, f"{given.split}_y")
    x, y = x[:at_most], y[:at_most]
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True)), dataset


def _model(given: argparse.Namespace, run: Run, dataset: data.Dataset | None) -> nn.Module:
    if given.model:
        model = function("--model", given.model)()
        if not isinstance(model, nn.Module):
            raise InputError(f"--model: expected an nn.Module from {given.model}, found {type(model).__name__}")
        return model
    name = run.config.get("model")
    if dataset is None or (name is not None and name not in MODELS and ":" not in str(name)):
        raise InputError("--model: expected MODULE:FUNCTION, found none, and the run does not name a built-in model")
    _, channels, height, width = dataset.train_x.shape
    return build(name, str(run.config.get("data")), (channels, height, width), dataset.classes)
