"""`lsam surface RUN`: evaluate the loss and what SAM and LSAM make of it on a line or plane around a state."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.kinds import Kind
from lsam_hpc.landscape.figures.draw_surface import draw_surface
from lsam_hpc.landscape.formats import loss_landscape as li2018
from lsam_hpc.landscape.geometry import surface as landscape
from lsam_hpc.landscape.geometry.axes import Axes
from lsam_hpc.landscape.geometry.directions import NORMALISATIONS, SMALL
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.report.tables import note, places, write_csv
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.tools import source
from lsam_hpc.tools.as_json import with_json
from lsam_hpc.tools.case_facts import Prepared
from lsam_hpc.tools.ranks import Ranks, add_ranks, digest, objective_options, set_threads
from lsam_hpc.tools.several import Runs, Verb, each_run
from lsam_hpc.tools.surface_axes import POINTS, grid, state_axes, towards
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser

DIRECTIONS = ("random", "pca", "eigenvector")
FEW = 4.0  # effective samples below which the smoothed loss is reported as an upper bound


@with_json
def main(argv: Sequence[str]) -> int:
    """Evaluate the surface and draw it, or those of several runs; return the exit code."""
    return each_run(argv, Verb(_parser(), _one, _prepare, _name, lambda _: (".h5",), _compare))


def _one(options_of_run: argparse.Namespace) -> int:
    ranks = Ranks()
    args, run, objective, settings = ranks.raise_on_all(lambda: _begin(options_of_run))
    folder = ranks.on_first(lambda: source.folder(args, run))
    name = _name(args)
    out = ranks.on_first(lambda: places(folder, name, _suffixes(args), overwrite=args.overwrite))
    part = folder / f"{name}.part"
    options = {**objective_options(args, objective), **_options(args, run, settings)}
    axes, cover = ranks.on_first(lambda: state_axes(args, run, objective))
    x, y = ranks.raise_on_all(lambda: grid(args, axes, cover))
    options |= {"axes": digest(axes.origin, axes.directions), "x": list(x), "y": None if y is None else list(y)}
    ranks.on_first(lambda: objective.check(objective.vector(axes.origin)))
    title = None if args.quiet else "lsam surface"
    shared: dict[str, Any] = {"settings": settings, "folder": part, "options": options, "comm": ranks.comm}
    surface = landscape.scan(objective, axes.origin, axes.directions, x, y, title=title, **shared)
    if ranks.is_first:
        heading = _title(args, run, objective, settings)
        _write(args, run, out, axes, surface, title=heading, options=options)
        shutil.rmtree(part)
        _report(out, surface, settings)
    return 0


def _begin(args: argparse.Namespace) -> tuple[argparse.Namespace, Run, Objective, landscape.Settings]:
    source.parse(_parser(), args)
    set_threads(args)
    run = Run(args.run, partial=args.partial)
    return args, run, source.objective(args, run), _settings(args, run)


def _parser() -> Parser:
    parser = source.parser(
        "surface",
        "Evaluate the landscape around a state on a line or a plane: the loss f and the error, the SAM loss, f with a "
        "gradient penalty, and the smoothed loss F that LSAM descends. Under mpirun the ranks share the points; after "
        "a kill the same command resumes.",
        several=True,
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
    source.add_objective(parser, both=True)
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
        "prefix": args.split,  # of the names of the arrays, of other data too
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
    title: str,
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
    marks = {name: list(map(float, place)) for name, place in axes.marks.items()}
    figure = {"kind": "surface", "title": title, "labels": list(axes.labels), "marks": marks}
    note(out[".h5"], {**options, "figure": figure})
    draw_surface(surface, out[f".{args.format}"], axes.labels, axes.marks, title)


def _title(args: argparse.Namespace, run: Run, objective: Objective, settings: landscape.Settings) -> str:
    words = [source.heading(args, run, objective, f"around {args.at}")]
    if set(settings.kinds) & landscape.WITH_RHO:
        words.append(f"rho {settings.rho:.3g}")
    if "smoothed" in settings.kinds:
        words.append(f"T {settings.temperature:.3g}, lambda {settings.stiffness:.3g}")
    return ", ".join(words)


def _prepare(args: argparse.Namespace) -> Prepared:
    args, run, objective, settings = _begin(args)
    if args.with_both and args.directions == "eigenvector":
        raise InputError("--split both: expected --directions random or pca, found eigenvector: splits have their own")
    quick = {} if args.directions != "eigenvector" else {"directions": "random"}
    grid(args, *state_axes(argparse.Namespace(**{**vars(args), **quick}), run, objective))
    others = [state(run, name) for name in (args.to or "").split(",") if name]
    own = {name: getattr(settings, name) for name in ("rho", "temperature", "stiffness")}
    if "smoothed" not in settings.kinds:
        own = {"rho": settings.rho} if set(settings.kinds) & landscape.WITH_RHO else {}
    return Prepared(run, objective, [state(run, args.at), *others], own)


def _compare(runs: Runs) -> Kind:
    args = runs.args
    kind, flat = args.directions or "random", args.line
    marks: list[dict[str, list[float]]] = [{args.at: [0.0] * (1 if flat else 2)} for _ in runs.cases]
    unit = {"none": "distance", "model": "in norms of the model"}
    how = args.normalise or ("filter" if kind == "random" else "none")
    names = {"random": "random direction", "pca": "principal component", "eigenvector": "eigenvector"}
    labels = [f"{names[kind]} {i} ({unit.get(how, f'in norms of each {how}')})" for i in (1, 2)]
    if args.to:
        opened = [Run(options.run, partial=options.partial) for options in runs.each]
        axes = [towards(args, run, state(run, args.at)) for run in opened]
        marks = [{name: at.tolist() for name, at in of_run.marks.items()} for of_run in axes]
        labels = [label.partition(" (distance ")[0] for label in axes[0].labels]
    return Kind("surfaces", {"title": f"Around {args.at}, {runs.about}", "labels": labels, "marks": marks})


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
