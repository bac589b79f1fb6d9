"""Code shared by the landscape programs: options, the run's model and data, and names of output files.

Torch is imported by what needs model or data, so that logs can be diagnosed and reported without torch.
"""

from __future__ import annotations

import argparse
import inspect
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.figures.figures import FORMATS
from lsam_hpc.landscape.packages import require
from lsam_hpc.train.user_code import call_function, import_function
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.document import add_json
from lsam_hpc.util.progress import add_quiet

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lsam_hpc.landscape.objective import Batch, Objective
    from lsam_hpc.train.data import Dataset

SPLITS = ("train", "test")
BOTH = "both"  # value of --split
FIGURES = ("matplotlib", "matplotlib.figure")  # the second one imports what matplotlib needs
FOLDER = "figures"  # of figures and numbers in RUN


def parser(verb: str, description: str, *, several: bool = False, tables: bool = True, **more: Any) -> Parser:  # noqa: ANN401
    """Return a parser with the options of all landscape programs, also --quiet.

    Args:
        verb: its name.
        description: of the program.
        several: allow several runs. Default False.
        tables: add --json, see `as_json.with_json`. Default True.
        more: arguments of the parser.
    """
    verb_parser = Parser(prog=f"lsam {verb}", description=description, allow_abbrev=False, **more)
    of_run, where = "the run directory, one rank's file, or a merged file", "RUN/figures"
    if several:
        of_run += "; several are compared in one figure and table"
        where += "; of a comparison: ./figures, and RUN/figures for each run's own files"
    verb_parser.add_argument("run", metavar="RUN", nargs="+" if several else None, help=of_run)
    verb_parser.add_argument("--out", metavar="DIR", help=f"folder for figures and numbers (default: {where})")
    verb_parser.add_argument("--format", choices=FORMATS, default="png", help="format of figures (default: png)")
    verb_parser.add_argument("--partial", action="store_true", help="skip damaged ranks and rows")
    if tables:
        add_json(verb_parser)
    add_quiet(verb_parser)
    return verb_parser


def add_objective(
    verb_parser: argparse.ArgumentParser,
    images: int = 1000,
    split: str = "train",
    *,
    loss: bool = True,
    both: bool = False,
) -> None:
    """Add the options that choose model and data.

    Args:
        verb_parser: gets the options.
        images: default number of samples; 0: all.
        split: default split.
        loss: whether the program evaluates a loss that can be chosen.
        both: whether it shows both splits side by side.
    """
    group = verb_parser.add_argument_group("model and data (default: the run's own)")
    group.add_argument("--model", metavar="NAME", help="as in lsam train: a built-in model, or your MODULE:FUNCTION")
    group.add_argument("--data", metavar="NAME", help="as in lsam train: a data set, or your MODULE:FUNCTION")
    any_model = "any other model, by a function: () -> nn.Module"
    group.add_argument("--make-model", metavar="MODULE:FUNCTION", help=any_model)
    any_data = "any other data, by a function: () -> iterable of (inputs, targets) in fixed order"
    group.add_argument("--make-batches", metavar="MODULE:FUNCTION", help=any_data)
    if loss:
        group.add_argument(
            "--loss", metavar="MODULE:FUNCTION", help="mean loss of (outputs, targets) (default: cross-entropy)"
        )
    group.add_argument("--data-dir", metavar="DIR", help="directory of the run's data set, if it has moved")
    which = f"split of the run's data set{'; both: side by side' if both else ''} (default: {split})"
    group.add_argument("--split", choices=(*SPLITS, BOTH) if both else SPLITS, default=split, help=which)
    group.add_argument("--images", type=int, default=images, help=f"number of samples; 0: all (default: {images})")
    group.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, xpu, ...")
    group.add_argument("--double", action="store_true", help="compute in float64")


def parse(
    verb_parser: Parser, argv: Sequence[str] | argparse.Namespace, *packages: str, figures: str = FOLDER
) -> argparse.Namespace:
    """Parse the options; check what the program needs at its end, before it computes anything.

    Args:
        verb_parser: of `parser`.
        argv: the words of the command line, or options that are parsed already.
        packages: optional packages that the program imports, besides matplotlib.
        figures: folder in RUN that the program writes to without `--out`.

    Raises:
        InputError: the options are wrong, a package is missing, or the folder cannot be written.
    """
    args = argv if isinstance(argv, argparse.Namespace) else verb_parser.parse_args(argv)
    require(*FIGURES, *packages)
    run = Path(args.run)
    if run.exists():  # otherwise `Run` says what is wrong
        check_writable(Path(args.out) if args.out else home(run) / figures)
    return args


def check_writable(path: Path) -> None:
    """Raise InputError if no file can be made in a folder, or in the first parent of it that exists."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"{path}: expected a folder that can be written, found: {error.strerror}: name another in --out"
        ) from error


def folder(args: argparse.Namespace, run: Run) -> Path:
    """Create the folder for figures and numbers, and return it."""
    return make_folder(Path(args.out) if args.out else figures_folder(run.path))


def home(path: Path) -> Path:
    """Return the directory that a run's files are in: the run directory, or that of one file of all ranks."""
    return path if path.is_dir() else path.parent


def figures_folder(path: Path) -> Path:
    """Return the folder of a run's figures without `--out`."""
    return home(path) / FOLDER


def make_folder(path: Path) -> Path:
    """Create a folder for figures and numbers unless it exists, and return it."""
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
    import torch
    from torch.nn.functional import cross_entropy

    from lsam_hpc.landscape.objective import Objective

    for make, name in (("make_model", "model"), ("make_batches", "data")):
        if getattr(args, make) and getattr(args, name):
            raise InputError(f"--{make.replace('_', '-')} excludes --{name}")
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
    loss = import_function("--loss", args.loss) if args.loss else cross_entropy
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


def heading(args: argparse.Namespace, run: Run, f: Objective, *words: str) -> str:
    """Return a figure's title: the run, what is drawn, and the data and the number of images that it is computed on."""
    used = "other data" if args.make_batches else f"{args.split} data"
    of_text = f.batches[0][1].ndim > 1
    count = f"{f.samples:,} {'samples' if args.make_batches else 'windows of text' if of_text else 'images'}"
    return ", ".join([run.path.resolve().name, *words, used, count])


def state_label(name: str) -> str:
    """Return a state's name for use in file names: a checkpoint's without folder and suffix."""
    return Path(name).stem if name.endswith((".pt", ".pth")) else name


def file_name(text: str) -> str:
    """Return a text with every character that is unusual in file names replaced by a hyphen."""
    return "".join(c if c.isalnum() or c in "-@." else "-" for c in text)


def _data(args: argparse.Namespace, run: Run) -> tuple[list[Batch], Dataset | None]:
    """Return the batches, and the data set that they are from; None for those of `--make-batches`."""
    from lsam_hpc.landscape.objective import fixed_batches
    from lsam_hpc.train import data
    from lsam_hpc.train.dataset import batch_size

    at_most = args.images or None
    if args.make_batches:
        made: Iterable[Batch] = call_function("--make-batches", args.make_batches)
        return fixed_batches(made, at_most), None
    name = run.config.get("data") if args.data is None else args.data
    if args.data is not None:
        what = "a function of the directory of the files"
        _check_function("--data", args.data, data.DATASETS, (None,), what=what, other="--make-batches")
    elif not isinstance(name, str) or (name not in data.DATASETS and ":" not in name):
        raise InputError(f"--data: expected a data set of lsam train, or one in --make-batches, found {_of_run(name)}")
    options = {option: run.config[option] for option in data.OPTIONS if option in run.config}
    dataset = data.load(str(name), args.data_dir or run.config.get("data_dir"), **options)
    x, y = getattr(dataset, f"{args.split}_x"), getattr(dataset, f"{args.split}_y")
    x, y = x[:at_most], y[:at_most]
    size = batch_size(y)
    return list(zip(x.split(size), y.split(size), strict=True)), dataset


def _model(args: argparse.Namespace, run: Run, dataset: Dataset | None) -> nn.Module:
    from torch import nn

    from lsam_hpc.train.models import MODELS, TEXT_MODELS, build

    if args.make_model:
        model = call_function("--make-model", args.make_model)
        if not isinstance(model, nn.Module):
            found = type(model).__name__
            raise InputError(f"--make-model: expected an nn.Module from {args.make_model}, found {found}")
        return model
    if dataset is None:
        raise InputError(
            "--make-model: expected MODULE:FUNCTION with --make-batches, which does not tell the number of classes, "
            "found none"
        )
    shape = tuple(dataset.train_x.shape[1:])
    known = (*MODELS, *TEXT_MODELS)
    name = run.config.get("model") if args.model is None else args.model
    if args.model is not None:
        what = "a function of shape and classes"
        _check_function("--model", args.model, known, (shape, dataset.classes), what=what, other="--make-model")
    elif name is not None and name not in known and ":" not in str(name):
        raise InputError(f"--model: expected a model of lsam train, or one in --make-model, found {_of_run(name)}")
    return build(name, args.data or str(run.config.get("data")), shape, dataset.classes)


def _of_run(name: object) -> str:
    return "none, and none in the run's options" if name is None else f"{name!r} in the run's options"


def _check_function(
    option: str, spec: str, known: Iterable[str], arguments: tuple[Any, ...], *, what: str, other: str
) -> None:
    """Check the value of an option of `lsam train`: a known name, or a function of its arguments.

    A function without arguments is named in another option.
    """
    if spec in known:
        return
    if ":" not in spec:
        raise InputError(f"{option}: expected one of {', '.join(known)} or MODULE:FUNCTION, found {spec!r}")
    try:
        signature = inspect.signature(import_function(option, spec))
    except (TypeError, ValueError):  # a function in C does not tell its arguments
        return
    if not _accepts(signature, *arguments) and _accepts(signature):
        raise InputError(
            f"{option}: expected {what}, as in lsam train, found {spec} without arguments: name it in {other}"
        )


def _accepts(signature: inspect.Signature, *arguments: object) -> bool:
    """Return whether a function can be called with these arguments."""
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True
