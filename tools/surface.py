"""`lsam surface RUN`: loss, SAM loss and smoothed loss on a line or plane around a state."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lsam_hpc.tools import source
from lsam_hpc.tools.ranks import Ranks, about, add_ranks, digest, set_threads
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape import li2018
from lsam_hpc.landscape import surface as landscape
from lsam_hpc.landscape.axes import Axes, directed, line, random_axes, ranges, through
from lsam_hpc.landscape.directions import NORMALISATIONS, SMALL
from lsam_hpc.landscape.draw_surface import draw_surface
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.projection import plane
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.landscape.tables import note, places, write_csv
from lsam_hpc.landscape.tracks import principal
from lsam_hpc.trajectory import Run

DIRECTIONS = ("random", "pca", "eigenvector")
POINTS = 25
FEW = 4.0  # samples that carry the weight, below which the smoothed loss is said to be an upper bound


def main(argv: Sequence[str]) -> int:
    """Evaluate the surface and draw it; return the exit code."""
    ranks = Ranks()
    given, run, objective, settings = ranks.agree(lambda: _begin(argv))
    folder = ranks.once(lambda: source.folder(given, run))
    name = _name(given)
    out = ranks.once(lambda: places(folder, name, _suffixes(given), given.overwrite))
    part = folder / f"{name}.part"
    options = {**about(given, objective), **_options(given, run, settings)}
    axes, cover = ranks.once(lambda: _axes(given, run, objective))
    x, y = ranks.agree(lambda: _grid(given, axes, cover))
    options |= {"axes": digest(axes.origin, axes.directions), "x": list(x), "y": None if y is None else list(y)}
    ranks.once(lambda: objective.check(objective.vector(axes.origin)))
    title = None if given.quiet else "lsam surface"
    found = landscape.scan(objective, axes.origin, axes.directions, x, y, settings, part, options, ranks.comm, title)
    if ranks.first:
        _write(given, run, out, axes, found, settings, options)
        shutil.rmtree(part)
        _report(out, found, settings)
    return 0


def _begin(argv: Sequence[str]) -> tuple[argparse.Namespace, Run, Objective, landscape.Settings]:
    given = _parser().parse_args(argv)
    set_threads(given)
    run = Run(given.run, partial=given.partial)
    return given, run, source.objective(given, run), _settings(given, run)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = source.parser(
        "surface",
        "Evaluate the landscape around a state on a line or a plane: the loss f and the error, the SAM loss, and the "
        "smoothed loss F that LSAM descends. Under mpirun the points are shared out; after a kill the same command "
        "goes on.",
    )
    parser.add_argument("--at", default="center", metavar="STATE", help=f"{SYNTAX} (default: center)")
    group = parser.add_argument_group("where")
    group.add_argument("--directions", choices=DIRECTIONS, help="random (default): normal numbers; pca: principal "
                       "components of the snapshots; eigenvector: of the Hessian's largest eigenvalues")  # fmt: skip
    group.add_argument("--to", metavar="STATE[,STATE]", help="a line to another state, or the plane through two more")
    group.add_argument("--line", action="store_true", help="one dimension")
    group.add_argument("--x", metavar="FROM:TO:POINTS", help=f"coordinates, as in --x=-1:1:51 (default: {POINTS} "
                       "points from -1 to 1, or around the states)")  # fmt: skip
    group.add_argument("--y", metavar="FROM:TO:POINTS", help="the same for the second direction (default: as --x)")
    group.add_argument("--normalise", choices=NORMALISATIONS, help="directions to the state's filters, layers or all "
                       "of it (default: filter for random directions, none for others)")  # fmt: skip
    group.add_argument("--small", choices=SMALL, default="ignore", help="biases and normalization parameters: ignore "
                       "(default) does not move them, keep moves them in proportion")  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="of directions and samples (default: 0)")
    group = parser.add_argument_group("what")
    group.add_argument("--kinds", default="loss", metavar="KIND,...", help="some of loss (with the error), sam: "
                       "f(x + rho g / |g|), smoothed: F (default: loss)")  # fmt: skip
    group.add_argument("--rho", type=float, help="ascent radius (default: the run's)")
    group.add_argument("--temperature", type=float, help="T of F (default: the run's, or so that F averages as far "
                       "from a state as the chains were from the center)")  # fmt: skip
    group.add_argument("--stiffness", type=float, help="lambda of F (default: the run's)")
    group.add_argument("--samples", type=int, default=16, help="of F at each point (default: 16)")
    parser.add_argument("--name", help="of the files (default: surface and what is drawn)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    source.add_objective(parser)
    add_ranks(parser)
    return parser


def _settings(given: argparse.Namespace, run: Run) -> landscape.Settings:
    kinds = tuple(given.kinds.split(","))
    rho = _first(given.rho, run.config.get("rho"), 0.05)
    stiffness = _first(given.stiffness, run.config.get("stiffness"), 0.1)
    temperature = _first(given.temperature, run.config.get("temperature"), 0.0)
    if "smoothed" in kinds and given.temperature is None and not temperature > 0:
        temperature = stiffness * _distance(run) ** 2 / run.size
    return landscape.Settings(kinds, rho, temperature, stiffness, given.samples, given.seed)


def _first(*values: Any) -> float:  # noqa: ANN401
    return float(next(value for value in values if isinstance(value, (int, float))))


def _distance(run: Run) -> float:
    """Return the median distance of the chains from the center."""
    found = np.concatenate([run.exchanges(rank)["center_distance"] for rank in run.ranks])
    found = found[np.isfinite(found) & (found > 0)]
    if not len(found):
        raise InputError("--temperature: expected a number > 0 for the smoothed loss, found none in the run, nor any "
                         "exchange to tell how wide its chains were")  # fmt: skip
    return float(np.median(found))


def _axes(given: argparse.Namespace, run: Run, objective: Objective) -> tuple[Axes, NDArray[np.float64] | None]:
    """Return the line or plane, and coordinates that the grid should cover."""
    origin = state(run, given.at)
    if given.to:
        axes = _towards(given, run, origin)
        return axes, np.stack(list(axes.marks.values()))
    axes, cover = _around(given, run, objective, origin)
    return replace(axes, marks={given.at: np.zeros(len(axes.directions))}), cover


def _around(
    given: argparse.Namespace, run: Run, objective: Objective, origin: NDArray[np.float32]
) -> tuple[Axes, NDArray[np.float64] | None]:
    layout = [(name, shape) for name, shape, _ in run.layout]
    count = 1 if given.line else 2
    kind = given.directions or "random"
    how = given.normalise or ("filter" if kind == "random" else "none")
    if kind == "random":
        return random_axes(origin, layout, count, given.seed, how, given.small), None
    if kind == "pca":
        found = plane(run)
        if how != "none":
            return directed(origin, found.directions[:count], layout, how, given.small, "principal component"), None
        labels = principal(found.explained)[:count]
        axes = Axes(origin, found.directions[:count], labels, explained=found.explained)
        at, _ = axes.coordinates(found.origin[None])
        return axes, np.concatenate([own[:, :count] for own in found.coordinates.values()]) + at
    from lsam_hpc.landscape.spectrum import eigenpairs

    eigenvalues, vectors = eigenpairs(objective, objective.vector(origin), count, seed=given.seed)
    axes = directed(origin, vectors, layout, how, given.small, "eigenvector")
    labels = tuple(f"{label}, eigenvalue {w:.3g}" for label, w in zip(axes.labels, eigenvalues, strict=True))
    return replace(axes, labels=labels), None


def _towards(given: argparse.Namespace, run: Run, origin: NDArray[np.float32]) -> Axes:
    if given.directions or given.normalise:
        raise InputError("--to: expected neither --directions nor --normalise beside it, found one")
    names = given.to.split(",")
    if len(names) > 2 or (given.line and len(names) > 1):
        raise InputError(f"--to: expected one state for a line or two for a plane, found {given.to}")
    others = [state(run, name) for name in names]
    if len(others) == 1:
        return line(origin, others[0], (given.at, names[0]))
    return through([origin, *others], [given.at, *names])


def _grid(
    given: argparse.Namespace, axes: Axes, cover: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    flat = len(axes.directions) == 1
    if flat and given.y:
        raise InputError("--y: expected none for a line, found one")
    default = [np.linspace(-1, 1, POINTS)] * 2 if cover is None else ranges(cover, POINTS)
    x = _coordinates("--x", given.x) if given.x else default[0]
    if flat:
        return x, None
    return x, _coordinates("--y", given.y) if given.y else (x if given.x else default[1])


def _coordinates(option: str, text: str) -> NDArray[np.float64]:
    try:
        start, stop, count = text.split(":")
        found = np.linspace(float(start), float(stop), int(count))
    except ValueError as error:
        raise InputError(f"{option}: expected FROM:TO:POINTS as in {option}=-1:1:51, found {text!r}") from error
    if len(found) < 2 or not np.isfinite(found).all() or found[0] >= found[-1]:
        raise InputError(f"{option}: expected two points or more from a smaller to a larger number, found {text!r}")
    return found


def _name(given: argparse.Namespace) -> str:
    if given.name:
        return str(given.name)
    where = f"to-{given.to}" if given.to else given.directions or "random"
    at = Path(given.at).stem if given.at.endswith((".pt", ".pth")) else given.at
    words = ["surface", at, where, *(["line"] if given.line else [])]
    return "".join(c if c.isalnum() or c in "-@." else "-" for c in "-".join(words))


def _suffixes(given: argparse.Namespace) -> list[str]:
    return [f".{given.format}", ".h5", ".csv", "-directions.h5"]


def _options(given: argparse.Namespace, run: Run, settings: landscape.Settings) -> dict[str, Any]:
    found: dict[str, Any] = {
        "run": str(run.path), "at": given.at, "split": given.split, "kinds": list(settings.kinds), "seed": given.seed,
        "directions": given.to or given.directions or "random", "normalise": given.normalise, "small": given.small,
    }  # fmt: skip
    if set(settings.kinds) & {"sam", "smoothed"}:
        found["rho"] = settings.rho
    if "smoothed" in settings.kinds:
        found |= {"temperature": settings.temperature, "stiffness": settings.stiffness, "draws": settings.samples}
    return found


def _write(
    given: argparse.Namespace,
    run: Run,
    out: dict[str, Path],
    axes: Axes,
    found: li2018.Surface,
    settings: landscape.Settings,
    options: dict[str, Any],
) -> None:
    for path in out.values():
        path.unlink(missing_ok=True)
    columns = {"x": np.tile(found.x, 1 if found.y is None else len(found.y))}
    if found.y is not None:
        columns["y"] = np.repeat(found.y, len(found.x))
    write_csv(out[".csv"], {**columns, **{name: values.reshape(-1) for name, values in found.values.items()}})
    x, y = axes.directions[0], None if found.y is None else axes.directions[1]
    as_float = [None if v is None else np.asarray(v, np.float32) for v in (x, y, axes.origin)]
    write = li2018.Directions(as_float[0], as_float[1], as_float[2], axes.explained)  # type: ignore[arg-type]
    li2018.write_directions(out["-directions.h5"], run.layout, write)
    named = {f"{given.split}_{name}": values for name, values in found.values.items() if name != landscape.ERROR}
    if landscape.ERROR in found.values:
        named[f"{given.split}_acc"] = 100 - found.values[landscape.ERROR]
    theirs = li2018.Surface(found.x, found.y, named, out["-directions.h5"].name)
    li2018.write_surface(out[".h5"], theirs)
    note(out[".h5"], options)
    draw_surface(found, out[f".{given.format}"], axes.labels, axes.marks, _title(given, run, settings))


def _title(given: argparse.Namespace, run: Run, settings: landscape.Settings) -> str:
    words = [f"{run.path.resolve().name}, around {given.at}, {given.split} data"]
    if set(settings.kinds) & {"sam", "smoothed"}:
        words.append(f"rho {settings.rho:.3g}")
    if "smoothed" in settings.kinds:
        words.append(f"T {settings.temperature:.3g}, lambda {settings.stiffness:.3g}")
    return ", ".join(words)


def _report(out: dict[str, Path], found: li2018.Surface, settings: landscape.Settings) -> None:
    for name in (landscape.LOSS, landscape.SAM, landscape.SMOOTHED):
        if name in found.values:
            values = found.values[name]
            known = values[np.isfinite(values)]
            text = f"from {known.min():.6g} to {known.max():.6g}" if len(known) else "nowhere finite"
            if len(known) < values.size:
                text += f"; not finite at {values.size - len(known)} of {values.size} points, which are left empty"
            print(f"{name}: {text}")
    if landscape.SMOOTHED in found.values:
        carried = found.values[landscape.EFFECTIVE]
        median = float(np.nanmedian(carried)) if np.isfinite(carried).any() else float("nan")
        print(f"smoothed: F(y) = -T log E[exp(-f_SAM(x)/T)], x ~ N(y, T/lambda I), T = {settings.temperature:.4g}, "
              f"lambda = {settings.stiffness:.4g}, by Monte Carlo; {median:.1f} of {settings.samples} samples carry "
              "the weight (median)")  # fmt: skip
        if not median >= FEW:
            print("smoothed: too few samples carry the weight: read it as an upper bound of F, and take a larger "
                  "--stiffness, --temperature or --samples")  # fmt: skip
    for path in out.values():
        print(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
