"""Code shared by the landscape programs: options, the run's model and data, and names of output files."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.figures.figures import FORMATS
from lsam_hpc.landscape.objective import Batch, Objective, fixed_batches
from lsam_hpc.train import data
from lsam_hpc.train.models import MODELS, build
from lsam_hpc.train.selection import OPTIONS
from lsam_hpc.train.user_code import import_function
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser

SPLITS = ("train", "test")
BATCH = 512  # images in a batch of the built-in data sets


def parser(verb: str, description: str, **more: Any) -> Parser:  # noqa: ANN401
    """Return a parser with the options of all landscape programs."""
    verb_parser = Parser(prog=f"lsam {verb}", description=description, allow_abbrev=False, **more)
    verb_parser.add_argument("run", metavar="RUN", help="the run directory, one rank's file, or a merged file")
    verb_parser.add_argument("--out", metavar="DIR", help="folder for figures and numbers (default: RUN/figures)")
    verb_parser.add_argument("--format", choices=FORMATS, default="png", help="format of figures (default: png)")
    verb_parser.add_argument("--partial", action="store_true", help="skip damaged ranks and rows")
    return verb_parser


def add_objective(verb_parser: argparse.ArgumentParser, images: int = 1000) -> None:
    """Add the options that choose model and data."""
    group = verb_parser.add_argument_group("model and data (default: the run's own)")
    group.add_argument("--model", metavar="MODULE:FUNCTION", help="function: () -> nn.Module")
    group.add_argument(
        "--data", metavar="MODULE:FUNCTION", help="function: () -> iterable of (inputs, targets) in fixed order"
    )
    group.add_argument(
        "--loss", metavar="MODULE:FUNCTION", help="mean loss of (outputs, targets) (default: cross-entropy)"
    )
    group.add_argument("--data-dir", metavar="DIR", help="directory of the run's data set, if it has moved")
    group.add_argument("--split", choices=SPLITS, default="train", help="split of the run's data set (default: train)")
    group.add_argument("--images", type=int, default=images, help=f"number of samples; 0: all (default: {images})")
    group.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, xpu, ...")
    group.add_argument("--double", action="store_true", help="compute in float64")


def folder(args: argparse.Namespace, run: Run) -> Path:
    """Create the folder for figures and numbers, and return it."""
    path = Path(args.out) if args.out else (run.path if run.path.is_dir() else run.path.parent) / "figures"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: expected a folder that can be written, found {path}: {error.strerror}") from error
    return path


def objective(args: argparse.Namespace, run: Run) -> Objective:
    """Return the loss f of the model and data that the options name, checked against the run's layout.

    Raises:
        InputError: model or data cannot be loaded, do not fit the run, or are not deterministic.
    """
    if args.images < 0:
        raise InputError(f"--images: expected a number >= 0, found {args.images}")
    try:
        device = torch.device(args.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device: expected a device that PyTorch can use, found {args.device!r}") from error
    batches, builtin = _data(args, run)
    model = _model(args, run, builtin).to(device)
    if args.double:
        model = model.double()
    dtype = torch.float64 if args.double else None

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    on_device = [(moved(x), moved(y)) for x, y in batches]
    loss = import_function("--loss", args.loss) if args.loss else nn.functional.cross_entropy
    f = Objective(model, on_device, loss)
    layout = [(name, tuple(shape)) for name, shape, _ in run.layout]
    if f.layout != layout:
        of_model, of_run = dict(f.layout), dict(layout)
        name = next((n for n in {**of_run, **of_model} if of_model.get(n) != of_run.get(n)), "another order")
        raise InputError(
            f"model: expected the run's parameters, found a difference in {name}: "
            f"{of_run.get(name, 'none')} in the run, {of_model.get(name, 'none')} in the model"
        )
    return f


def state_label(name: str) -> str:
    """Return a state's name for use in file names: a checkpoint's without folder and suffix."""
    return Path(name).stem if name.endswith((".pt", ".pth")) else name


def file_name(text: str) -> str:
    """Return a text with every character that is unusual in file names replaced by a hyphen."""
    return "".join(c if c.isalnum() or c in "-@." else "-" for c in text)


def _data(args: argparse.Namespace, run: Run) -> tuple[list[Batch], data.Dataset | None]:
    at_most = args.images or None
    if args.data:
        made: Iterable[Batch] = import_function("--data", args.data)()
        return fixed_batches(made, at_most), None
    name = run.config.get("data")
    if not isinstance(name, str) or (name not in data.DATASETS and ":" not in name):
        known = "names no data set" if name is None else f"names a data set that is not known here: {name!r}"
        raise InputError(f"--data: expected MODULE:FUNCTION, found none, and the run {known}")
    options = {option: run.config[option] for option in OPTIONS if option in run.config}
    dataset = data.load(name, args.data_dir or run.config.get("data_dir"), **options)
    x, y = getattr(dataset, f"{args.split}_x"), getattr(dataset, f"{args.split}_y")
    x, y = x[:at_most], y[:at_most]
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True)), dataset


def _model(args: argparse.Namespace, run: Run, dataset: data.Dataset | None) -> nn.Module:
    if args.model:
        model = import_function("--model", args.model)()
        if not isinstance(model, nn.Module):
            raise InputError(f"--model: expected an nn.Module from {args.model}, found {type(model).__name__}")
        return model
    name = run.config.get("model")
    if dataset is None or (name is not None and name not in MODELS and ":" not in str(name)):
        raise InputError("--model: expected MODULE:FUNCTION, found none, and the run does not name a built-in model")
    _, channels, height, width = dataset.train_x.shape
    return build(name, str(run.config.get("data")), (channels, height, width), dataset.classes)
