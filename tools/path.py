"""`lsam path RUN`: barriers between states, and curves of low loss."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lsam_hpc.tools import source
from lsam_hpc.tools.ranks import Ranks, about, add_ranks, digest, set_threads
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.axes import check_states
from lsam_hpc.landscape.draw_path import draw_matrix, draw_profiles
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.path import Matrix, Profile, curve, find_curve, line, lines
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.landscape.tables import places, write_arrays, write_csv
from lsam_hpc.text import columns
from lsam_hpc.trajectory import Run

MOST_PRINTED = 12  # states up to which the matrix is printed


def main(argv: Sequence[str]) -> int:
    """Evaluate the paths and draw them; return the exit code."""
    ranks = Ranks()
    given, run, objective = ranks.agree(lambda: _begin(argv))
    names = ranks.agree(lambda: _names(given, run))
    states = ranks.agree(lambda: _states(run, names))
    folder = ranks.once(lambda: source.folder(given, run))
    name = given.name or ("path-" + "-".join(_plain(n) for n in names) if given.between else "path-matrix")
    out = ranks.once(lambda: places(folder, name, [f".{given.format}", ".h5", ".csv"], given.overwrite))
    options = {
        **about(given, objective), "run": str(run.path), "split": given.split, "states": names,
        "digest": digest(*states), "points": given.points,
    }  # fmt: skip
    ranks.once(lambda: objective.check(objective.vector(states[0])))
    part = folder / f"{name}.part"
    title = None if given.quiet else "lsam path"
    heading = f"{run.path.resolve().name}, {given.split} data"
    if given.between:
        profiles = _between(given, ranks, objective, states, part, options, title)
        if ranks.first:
            _write_profiles(out, profiles, options)
            draw_profiles(profiles, out[f".{given.format}"], (names[0], names[1]), heading)
            for label, profile in profiles.items():
                print(f"{label}: barrier {profile.barrier:.6g}, loss {profile.loss[0]:.6g} and {profile.loss[-1]:.6g} "
                      f"at the ends, at most {profile.loss.max():.6g}")  # fmt: skip
                _say_nan(profile.loss)
    else:
        found = lines(objective, states, names, given.points, part, options, ranks.comm, title)
        if ranks.first:
            _write_matrix(out, found, options)
            draw_matrix(found, out[f".{given.format}"], heading)
            _print_matrix(found)
            _say_nan(found.loss)
    if ranks.first:
        for folder in (part, part.with_name(f"{name}-curve.part")):
            shutil.rmtree(folder, ignore_errors=True)
        for path in out.values():
            print(path)
    return 0


def _begin(argv: Sequence[str]) -> tuple[argparse.Namespace, Run, Objective]:
    parser: argparse.ArgumentParser = source.parser(
        "path",
        "Evaluate the loss on straight lines: between all ranks and the center, with a matrix of barrier heights, or "
        "between two states, and on a curve of low loss between them. Under mpirun the points are shared out; after a "
        "kill the same command goes on. A barrier is the largest f(t) - ((1 - t) f(0) + t f(1)).",
    )
    parser.add_argument("--between", metavar="STATE,STATE", help=f"two states: {SYNTAX} (default: all ranks and the "
                        "center, each with each)")  # fmt: skip
    parser.add_argument("--points", type=int, default=25, help="of each line, with its ends (default: 25)")
    parser.add_argument("--curve", action="store_true", help="with --between: also find a quadratic Bezier curve of "
                        "low loss (Garipov et al. 2018)")  # fmt: skip
    parser.add_argument("--curve-steps", type=int, default=200, help="gradients to find it (default: 200)")
    parser.add_argument("--curve-lr", type=float, default=0.05, help="learning rate at first (default: 0.05)")
    parser.add_argument("--name", help="of the files (default: path and the states)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    source.add_objective(parser)
    add_ranks(parser)
    given = parser.parse_args(argv)
    if given.curve and not given.between:
        raise InputError("--curve: expected two states in --between beside it, found none")
    if given.points < 3:
        raise InputError(f"--points: expected 3 or more, found {given.points}")
    set_threads(given)
    run = Run(given.run, partial=given.partial)
    return given, run, source.objective(given, run)


def _names(given: argparse.Namespace, run: Run) -> list[str]:
    if given.between:
        names: list[str] = given.between.split(",")
        if len(names) != 2:
            raise InputError(f"--between: expected two states, {SYNTAX}, found {given.between}")
        return names
    if len(run.ranks) < 2:
        raise InputError(f"{run.path}: expected two ranks or more for a matrix, found {len(run.ranks)}: name two "
                         "states, as in --between 0,center or --between 0@0,0")  # fmt: skip
    log = run.log(run.ranks[0])
    center = ["center"] if "snapshot/center" in log.tables and log.rows("snapshot/center") else []
    return [*center, *map(str, run.ranks)]


def _states(run: Run, names: Sequence[str]) -> list[NDArray[np.float32]]:
    found = [state(run, name) for name in names]
    check_states(found, names)
    return found


def _between(
    given: argparse.Namespace,
    ranks: Ranks,
    objective: Objective,
    states: Sequence[NDArray[np.float32]],
    part: Path,
    options: dict[str, Any],
    title: str | None,
) -> dict[str, Profile]:
    first, second = states
    found = {"straight line": line(objective, first, second, given.points, part, options, ranks.comm, title)}
    if given.curve:
        middle = ranks.once(lambda: find_curve(objective, first, second, given.curve_steps, given.curve_lr).cpu())
        beside = part.with_name(part.name.replace(".part", "-curve.part"))
        more = {**options, "steps": given.curve_steps, "lr": given.curve_lr, "middle": digest(middle.numpy())}
        title = title and f"{title} --curve"
        found["Bezier curve"] = curve(objective, first, middle, second, given.points, beside, more, ranks.comm, title)
    return found


def _write_profiles(out: dict[str, Path], profiles: dict[str, Profile], options: dict[str, Any]) -> None:
    short = {label: label.split()[0].lower() for label in profiles}
    table: dict[str, Any] = {"t": profiles["straight line"].t}
    for label, profile in profiles.items():
        table |= {f"{short[label]}_loss": profile.loss, f"{short[label]}_error": profile.error}
    write_csv(out[".csv"], table)
    write_arrays(out[".h5"], {**table, **{f"{short[n]}_barrier": p.barrier for n, p in profiles.items()}}, options)


def _write_matrix(out: dict[str, Path], found: Matrix, options: dict[str, Any]) -> None:
    pairs = list(itertools.combinations(range(len(found.names)), 2))
    heights = found.barriers
    write_csv(out[".csv"], {
        "first": [found.names[i] for i, _ in pairs], "second": [found.names[j] for _, j in pairs],
        "barrier": [heights[i, j] for i, j in pairs], "first_loss": [found.loss[i, i, 0] for i, _ in pairs],
        "second_loss": [found.loss[j, j, 0] for _, j in pairs],
        "largest_loss": [found.loss[i, j].max() for i, j in pairs],
    })  # fmt: skip
    arrays = {"names": list(found.names), "t": found.t, "loss": found.loss, "error": found.error, "barrier": heights}
    write_arrays(out[".h5"], arrays, options)


def _print_matrix(found: Matrix) -> None:
    heights = found.barriers
    if len(found.names) <= MOST_PRINTED:
        rows = [["barrier", *found.names]]
        rows += [[name, *(f"{height:.3g}" for height in row)] for name, row in zip(found.names, heights, strict=True)]
        print(columns(rows))
    i, j = np.unravel_index(int(np.nan_to_num(heights, nan=-1).argmax()), heights.shape)
    print(f"highest barrier: {heights[i, j]:.6g}, between {found.names[i]} and {found.names[j]}")


def _say_nan(loss: NDArray[np.float64]) -> None:
    if lost := int(np.count_nonzero(~np.isfinite(loss))):
        print(f"loss: not finite at {lost} of {loss.size} points")


def _plain(name: str) -> str:
    name = Path(name).stem if name.endswith((".pt", ".pth")) else name
    return "".join(c if c.isalnum() or c in "-@." else "-" for c in name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
