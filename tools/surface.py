"""`lsam surface RUN`: evaluate the loss and what SAM and LSAM make of it on a line or plane around a state."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.figures.draw_surface import draw_surface
from lsam_hpc.landscape.formats import loss_landscape as li2018
from lsam_hpc.landscape.geometry import surface as landscape
from lsam_hpc.landscape.geometry.axes import Axes, directed, line, random_axes, ranges, through
from lsam_hpc.landscape.geometry.directions import NORMALISATIONS, SMALL
from lsam_hpc.landscape.geometry.projection import plane
from lsam_hpc.landscape.geometry.tracks import principal
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.packages import require
from lsam_hpc.landscape.report.tables import note, places, write_csv
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.tools import source
from lsam_hpc.tools.ranks import Ranks, add_ranks, digest, objective_options, set_threads
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser

DIRECTIONS = ("random", "pca", "eigenvector")
POINTS = 25
FEW = 4.0  # effective samples below which the smoothed loss is reported as an upper bound


def main(argv: Sequence[str]) -> int:
    """Evaluate the surface and draw it; return the exit code."""
    ranks = Ranks()
    args, run, objective, settings = ranks.raise_on_all(lambda: _begin(argv))
    folder = ranks.on_first(lambda: source.folder(args, run))
    name = _name(args)
    out = ranks.on_first(lambda: places(folder, name, _suffixes(args), overwrite=args.overwrite))
    part = folder / f"{name}.part"
    options = {**objective_options(args, objective), **_options(args, run, settings)}
    axes, cover = ranks.on_first(lambda: _axes(args, run, objective))
    x, y = ranks.raise_on_all(lambda: _grid(args, axes, cover))
    options |= {"axes": digest(axes.origin, axes.directions), "x": list(x), "y": None if y is None else list(y)}
    ranks.on_first(lambda: objective.check(objective.vector(axes.origin)))
    title = None if args.quiet else "lsam surface"
    shared: dict[str, Any] = {"settings": settings, "folder": part, "options": options, "comm": ranks.comm}
    surface = landscape.scan(objective, axes.origin, axes.directions, x, y, title=title, **shared)
    if ranks.is_first:
        _write(args, run, out, axes, surface, settings=settings, options=options)
        shutil.rmtree(part)
        _report(out, surface, settings)
    return 0


def _begin(argv: Sequence[str]) -> tuple[argparse.Namespace, Run, Objective, landscape.Settings]:
    args = source.parse(_parser(), argv)
    require(*(["scipy"] if args.directions == "eigenvector" else []), *([] if args.quiet else ["tqdm"]))
    set_threads(args)
    run = Run(args.run, partial=args.partial)
    return args, run, source.objective(args, run), _settings(args, run)


def _parser() -> Parser:
    parser = source.parser(
        "surface",
        "Evaluate the landscape around a state on a line or a plane: the loss f and the error, the SAM loss, f with a "
        "gradient penalty, and the smoothed loss F that LSAM descends. Under mpirun the ranks share the points; after "
        "a kill the same command resumes.",
    )
    parser.add_argument("--at", default="center", metavar="STATE", help=f"{SYNTAX} (default: center)")
    group = parser.add_argument_group("where")
    group.add_argument(
        "--directions",
        choices=DIRECTIONS,
        help="random (default): normally distributed; pca: principal components of the snapshots; eigenvector: "
        "eigenvectors of the Hessian's largest eigenvalues",
    )
    group.add_argument("--to", metavar="STATE[,STATE]", help="a line to another state, or the plane through two more")
    group.add_argument("--line", action="store_true", help="evaluate on a line instead of a plane")
    group.add_argument(
        "--x",
        metavar="FROM:TO:POINTS",
        help=f"coordinates, as in --x=-1:1:51 (default: {POINTS} points from -1 to 1, or around the states)",
    )
    group.add_argument("--y", metavar="FROM:TO:POINTS", help="the same for the second direction (default: as --x)")
    group.add_argument(
        "--normalise",
        choices=NORMALISATIONS,
        help="scale directions to the norm of the state's filters, of its layers or of all of it (default: filter for "
        "random directions, else none)",
    )
    group.add_argument(
        "--small",
        choices=SMALL,
        default="ignore",
        help="biases and normalization parameters: ignore (default) keeps them fixed, keep moves them in proportion",
    )
    group.add_argument("--seed", type=int, default=0, help="seed of directions and samples (default: 0)")
    group = parser.add_argument_group("what")
    group.add_argument(
        "--kinds",
        default="loss",
        metavar="KIND,...",
        help="some of loss (with the error), sam: f(x + rho g / |g|), regularised: f + rho |g|, smoothed: F (default: "
        "loss)",
    )
    group.add_argument("--rho", type=float, help="ascent radius (default: the run's)")
    group.add_argument(
        "--temperature",
        type=float,
        help="T of F (default: the run's, else the T at which F averages over the chains' median distance from the "
        "center)",
    )
    group.add_argument("--stiffness", type=float, help="lambda of F (default: the run's)")
    group.add_argument("--samples", type=int, default=16, help="Monte Carlo samples of F at each point (default: 16)")
    parser.add_argument("--name", help="base name of the files (default: surface, state and directions)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    source.add_objective(parser)
    add_ranks(parser)
    return parser


def _settings(args: argparse.Namespace, run: Run) -> landscape.Settings:
    kinds = tuple(args.kinds.split(","))
    rho = _first(args.rho, run.config.get("rho"), 0.05)
    stiffness = _first(args.stiffness, run.config.get("stiffness"), 0.1)
    temperature = _first(args.temperature, run.config.get("temperature"), 0.0)
    if "smoothed" in kinds and args.temperature is None and not temperature > 0:
        temperature = stiffness * _distance(run) ** 2 / run.size
    return landscape.Settings(kinds, rho, temperature, stiffness, args.samples, args.seed)


def _first(*values: Any) -> float:  # noqa: ANN401
    return float(next(value for value in values if isinstance(value, (int, float))))


def _distance(run: Run) -> float:
    """Return the median distance of the chains from the center."""
    distances = np.concatenate([run.exchanges(rank)["center_distance"] for rank in run.ranks])
    distances = distances[np.isfinite(distances) & (distances > 0)]
    if not len(distances):
        raise InputError(
            "--temperature: expected a number > 0 for the smoothed loss, found none in the run, and no exchange to "
            "estimate it from"
        )
    return float(np.median(distances))


def _axes(args: argparse.Namespace, run: Run, objective: Objective) -> tuple[Axes, NDArray[np.float64] | None]:
    """Return the line or plane, and the coordinates that the grid must cover; None: [-1, 1]."""
    origin = state(run, args.at)
    if args.to:
        axes = _towards(args, run, origin)
        return axes, np.stack(list(axes.marks.values()))
    axes, cover = _around(args, run, objective, origin)
    return replace(axes, marks={args.at: np.zeros(len(axes.directions))}), cover


def _around(
    args: argparse.Namespace, run: Run, objective: Objective, origin: NDArray[np.float32]
) -> tuple[Axes, NDArray[np.float64] | None]:
    layout = [(name, shape) for name, shape, _ in run.layout]
    count = 1 if args.line else 2
    kind = args.directions or "random"
    how = args.normalise or ("filter" if kind == "random" else "none")
    if kind == "random":
        return random_axes(origin, layout, count, args.seed, how=how, small=args.small), None
    if kind == "pca":
        fitted = plane(run)
        if how != "none":
            along = fitted.directions[:count]
            return directed(origin, along, layout, how=how, small=args.small, name="principal component"), None
        labels = principal(fitted.explained)[:count]
        axes = Axes(origin, fitted.directions[:count], labels, explained=fitted.explained)
        at, _ = axes.coordinates(fitted.origin[None])
        return axes, np.concatenate([track[:, :count] for track in fitted.coordinates.values()]) + at
    from lsam_hpc.landscape.curvature.spectrum import eigenpairs

    eigenvalues, vectors = eigenpairs(objective, objective.vector(origin), count, seed=args.seed)
    axes = directed(origin, vectors, layout, how=how, small=args.small, name="eigenvector")
    labels = tuple(f"{label}, eigenvalue {w:.3g}" for label, w in zip(axes.labels, eigenvalues, strict=True))
    return replace(axes, labels=labels), None


def _towards(args: argparse.Namespace, run: Run, origin: NDArray[np.float32]) -> Axes:
    if args.directions or args.normalise:
        raise InputError("--to excludes --directions and --normalise")
    names = args.to.split(",")
    if len(names) > 2 or (args.line and len(names) > 1):
        raise InputError(f"--to: expected one state for a line or two for a plane, found {args.to}")
    others = [state(run, name) for name in names]
    if len(others) == 1:
        return line(origin, others[0], (args.at, names[0]))
    return through([origin, *others], [args.at, *names])


def _grid(
    args: argparse.Namespace, axes: Axes, cover: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    flat = len(axes.directions) == 1
    if flat and args.y:
        raise InputError("--y: a line has no second axis")
    default = [np.linspace(-1, 1, POINTS)] * 2 if cover is None else ranges(cover, POINTS)
    x = _coordinates("--x", args.x) if args.x else default[0]
    if flat:
        return x, None
    return x, _coordinates("--y", args.y) if args.y else (x if args.x else default[1])


def _coordinates(option: str, text: str) -> NDArray[np.float64]:
    try:
        start, stop, count = text.split(":")
        coordinates = np.linspace(float(start), float(stop), int(count))
    except ValueError as error:
        raise InputError(f"{option}: expected FROM:TO:POINTS as in {option}=-1:1:51, found {text!r}") from error
    if len(coordinates) < 2 or not np.isfinite(coordinates).all() or coordinates[0] >= coordinates[-1]:
        raise InputError(f"{option}: expected two points or more from a smaller to a larger number, found {text!r}")
    return coordinates


def _name(args: argparse.Namespace) -> str:
    if args.name:
        return str(args.name)
    where = f"to-{args.to}" if args.to else args.directions or "random"
    words = ["surface", source.state_label(args.at), where, *(["line"] if args.line else [])]
    return source.file_name("-".join(words))


def _suffixes(args: argparse.Namespace) -> list[str]:
    return [f".{args.format}", ".h5", ".csv", "-directions.h5"]


def _options(args: argparse.Namespace, run: Run, settings: landscape.Settings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "run": str(run.path),
        "at": args.at,
        "split": args.split,
        "kinds": list(settings.kinds),
        "seed": args.seed,
        "directions": args.to or args.directions or "random",
        "normalise": args.normalise,
        "small": args.small,
    }
    if set(settings.kinds) & landscape.WITH_RHO:
        options["rho"] = settings.rho
    if "smoothed" in settings.kinds:
        options |= {"temperature": settings.temperature, "stiffness": settings.stiffness, "draws": settings.samples}
    return options


def _write(
    args: argparse.Namespace,
    run: Run,
    out: dict[str, Path],
    axes: Axes,
    surface: li2018.Surface,
    *,
    settings: landscape.Settings,
    options: dict[str, Any],
) -> None:
    for path in out.values():
        path.unlink(missing_ok=True)
    columns = {"x": np.tile(surface.x, 1 if surface.y is None else len(surface.y))}
    if surface.y is not None:
        columns["y"] = np.repeat(surface.y, len(surface.x))
    write_csv(out[".csv"], {**columns, **{name: values.reshape(-1) for name, values in surface.values.items()}})
    x, y = axes.directions[0], None if surface.y is None else axes.directions[1]
    as_float = [None if v is None else np.asarray(v, np.float32) for v in (x, y, axes.origin)]
    directions = li2018.Directions(as_float[0], as_float[1], as_float[2], axes.explained)  # type: ignore[arg-type]
    li2018.write_directions(out["-directions.h5"], run.layout, directions)
    named = {f"{args.split}_{name}": values for name, values in surface.values.items() if name != landscape.ERROR}
    if landscape.ERROR in surface.values:
        named[f"{args.split}_acc"] = 100 - surface.values[landscape.ERROR]
    with_accuracy = li2018.Surface(surface.x, surface.y, named, out["-directions.h5"].name)
    li2018.write_surface(out[".h5"], with_accuracy)
    note(out[".h5"], options)
    draw_surface(surface, out[f".{args.format}"], axes.labels, axes.marks, _title(args, run, settings))


def _title(args: argparse.Namespace, run: Run, settings: landscape.Settings) -> str:
    words = [f"{run.path.resolve().name}, around {args.at}, {args.split} data"]
    if set(settings.kinds) & landscape.WITH_RHO:
        words.append(f"rho {settings.rho:.3g}")
    if "smoothed" in settings.kinds:
        words.append(f"T {settings.temperature:.3g}, lambda {settings.stiffness:.3g}")
    return ", ".join(words)


def _report(out: dict[str, Path], surface: li2018.Surface, settings: landscape.Settings) -> None:
    for name in landscape.LOSSES:
        if name in surface.values:
            values = surface.values[name]
            known = values[np.isfinite(values)]
            text = f"from {known.min():.6g} to {known.max():.6g}" if len(known) else "nowhere finite"
            if len(known) < values.size:
                text += f"; not finite at {values.size - len(known)} of {values.size} points, which are left empty"
            print(f"{name}: {text}")
    if landscape.SMOOTHED in surface.values:
        carried = surface.values[landscape.EFFECTIVE]
        median = float(np.nanmedian(carried)) if np.isfinite(carried).any() else float("nan")
        print(
            f"smoothed: F(y) = -T log E[exp(-f_SAM(x)/T)], x ~ N(y, T/lambda I), T = {settings.temperature:.4g}, "
            f"lambda = {settings.stiffness:.4g}, by Monte Carlo; median effective samples: {median:.1f} of "
            f"{settings.samples}"
        )
        if not median >= FEW:
            print(
                "smoothed: too few effective samples: this is an upper bound of F; use a larger --stiffness, "
                "--temperature or --samples"
            )
    for path in out.values():
        print(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
