"""`lsam export RUN --to FORMAT`: write a run for pandas, TensorBoard, numpy, or loss-landscape's scripts."""

from __future__ import annotations

import json
import math
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape import Directions, Projection, plane, write_directions, write_projection
from lsam_hpc.landscape.packages import package
from lsam_hpc.trajectory import RankLog, Run, schema
from lsam_hpc.trajectory.log import BLOCK
from lsam_hpc.trajectory.rows import Columns
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.files import atomic_path
from lsam_hpc.util.progress import add_quiet, counted


class Choice(NamedTuple):
    """The part of a run to export."""

    run: Run
    ranks: list[int]
    tables: list[str]  # requested; a table that a rank does not have is skipped
    state: str
    title: str | None  # of the progress

    def logs(self) -> Iterator[RankLog]:
        """Yield the ranks' logs, and show the progress."""
        return map(self.run.log, counted(self.ranks, self.title, "rank"))

    def tables_of(self, log: RankLog) -> list[str]:
        """Return the requested tables that a log has."""
        return [name for name in log.tables if name in self.tables]


def main(argv: Sequence[str]) -> int:
    """Write the files; return the exit code."""
    parser = Parser(prog="lsam export", description="Write a run in a format that other programs read.")
    parser.add_argument("run", help="the run directory, one rank's file, or a merged file")
    parser.add_argument(
        "--to",
        required=True,
        choices=FORMATS,
        help="csv, parquet: a file per table, with the rank as first column; tensorboard: a folder of events per rank; "
        "npz: arrays named rank-0000/step/loss, sketches and snapshots too; li2018: directions and trajectories for "
        "the scripts of tomgoldstein/loss-landscape",
    )
    parser.add_argument("--out", help="the file (npz) or folder to write (default: RUN.csv, RUN.npz, ...)")
    parser.add_argument("--ranks", help="ranks to export, as in 0,2-4 (default: all)")
    parser.add_argument("--tables", help="tables, as in step,exchange,sketch/sample (default: all); not for li2018")
    parser.add_argument("--state", choices=schema.STATES, help="whose snapshots span li2018's plane (default: sample)")
    parser.add_argument("--partial", action="store_true", help="skip damaged ranks and rows, and list them")
    add_quiet(parser)
    args = parser.parse_args(argv)
    for name, formats in (("tables", set(FORMATS) - {"li2018"}), ("state", {"li2018"})):
        if getattr(args, name) is not None and args.to not in formats:
            raise InputError(f"--{name}: expected none with --to {args.to}, found {getattr(args, name)}")
    tables = _tables(args.tables, args.to)
    run = Run(args.run, partial=args.partial)
    ranks = _ranks(args.ranks, run)
    title = None if args.quiet or args.to == "li2018" else f"lsam export --to {args.to}"
    choice = Choice(run, ranks, tables, args.state or "sample", title)
    if args.tables:
        existing = {name for log in map(run.log, ranks) for name in log.tables}
        if missing := [name for name in tables if name not in existing]:
            raise InputError(f"{run.path}: expected the tables {', '.join(tables)}, found no {', '.join(missing)}")
    path = run.path.resolve()
    out = Path(args.out) if args.out else path.with_name(f"{path.name}.{args.to}")
    with atomic_path(out) as part:
        FORMATS[args.to](choice, part)
    for line in run.problems:
        print(line, file=sys.stderr)
    if not args.quiet:
        print(f"{out}: {len(choice.ranks)} ranks")
    return 0


def csv(choice: Choice, out: Path) -> None:
    """Write a file per table, rank by rank; unknown values are empty."""
    package("pandas", "csv")
    out.mkdir()
    for name, frame in _frames(choice):
        file = out / f"{name.replace('/', '-')}.csv"
        frame.to_csv(file, mode="a", index=False, header=not file.exists())


def parquet(choice: Choice, out: Path) -> None:
    """Write a file per table, a row group per rank; unknown values are null. Units are in the fields' metadata."""
    package("pandas", "parquet")
    pa, writing = package("pyarrow", "parquet"), package("pyarrow.parquet", "parquet")
    out.mkdir()
    writers: dict[str, Any] = {}
    try:
        for name, frame in _frames(choice):
            units = {c.name: {"unit": c.unit, "description": c.description} for c in schema.TABLES[name]}
            table = pa.Table.from_pandas(frame, preserve_index=False)
            fields = [field.with_metadata(units.get(field.name)) for field in table.schema]
            table = table.cast(pa.schema(fields, table.schema.metadata))
            if name not in writers:
                writers[name] = writing.ParquetWriter(out / f"{name.replace('/', '-')}.parquet", table.schema)
            writers[name].write_table(table)
    finally:
        for writer in writers.values():
            writer.close()


def tensorboard(choice: Choice, out: Path) -> None:
    """Write a folder of events per rank: scalars over the global step, with the time at which they were logged."""
    package("tensorboard", "tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    out.mkdir()
    for log in choice.logs():
        start = float(log.attributes["start_time"])
        steps = log.table("step")
        writer = SummaryWriter(str(out / f"rank-{log.rank:04d}"))
        try:
            writer.add_text("config", str(log.attributes["config"]), 0, start)
            for name in choice.tables_of(log):
                table = log.table(name)
                if not len(table[schema.TABLES[name][0].name]):
                    continue
                at = _global_steps(steps, table)
                times = start + table.get("time", np.append(0.0, steps["time"])[-1:])
                for c in schema.TABLES[name]:
                    if c.name in ("iteration", "total_iteration", "time"):
                        continue
                    for step, value, time in zip(at, _or_none(c, table[c.name], log), times, strict=True):
                        if value is not None:
                            writer.add_scalar(f"{name}/{c.name}", value, int(step), float(time))
        finally:
            writer.close()


def npz(choice: Choice, out: Path) -> None:
    """Write every array under its name, and attributes and layout as text, so that no array needs pickle."""
    with zipfile.ZipFile(out, "w") as archive:

        def put(name: str, values: Any) -> None:  # noqa: ANN401
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)

        put("ranks", np.array(choice.ranks, np.int64))
        for log in choice.logs():
            rank = f"rank-{log.rank:04d}"
            put(f"{rank}/attributes", np.array(json.dumps(log.attributes)))
            put(f"{rank}/layout/name", np.array([name for name, _, _ in log.layout], np.str_))
            put(f"{rank}/layout/shape", np.array([",".join(map(str, shape)) for _, shape, _ in log.layout], np.str_))
            put(f"{rank}/layout/offset", np.array([at for _, _, at in log.layout], np.int64))
            for name in choice.tables_of(log):
                table = log.table(name)
                if "/" in name:
                    rows = log.whole(name)
                    table = {column: values[rows] for column, values in table.items()}
                    with archive.open(f"{rank}/{name}/values.npy", "w", force_zip64=True) as file:
                        _write_states(file, log, name, rows)
                for column, values in table.items():
                    put(f"{rank}/{name}/{column}", values)


def li2018(choice: Choice, out: Path) -> None:
    """Write the plane of the snapshots' principal components, and each rank's trajectory on it."""
    out.mkdir()  # before the plane is computed
    principal = plane(choice.run, choice.state, choice.ranks)
    x, y = principal.directions
    layout = choice.run.log(next(iter(principal.rows))).layout
    write_directions(out / "directions.h5", layout, Directions(x, y, principal.origin, principal.explained))
    for rank, rows in principal.rows.items():
        iteration = choice.run.log(rank).table(f"snapshot/{choice.state}")["iteration"][rows]
        along_x, along_y = principal.coordinates[rank].T
        more = {"iteration": iteration, "distance": principal.distances[rank]}
        write_projection(out / f"rank-{rank:04d}_proj.h5", Projection(along_x, along_y, more))


FORMATS: dict[str, Callable[[Choice, Path], None]] = {
    "csv": csv,
    "parquet": parquet,
    "tensorboard": tensorboard,
    "npz": npz,
    "li2018": li2018,
}


def _tables(text: str | None, to: str) -> list[str]:
    known = [name for name in schema.TABLES if to != "tensorboard" or "/" not in name]
    tables = known if text is None else text.split(",")
    if wrong := [name for name in tables if name not in known]:
        raise InputError(f"--tables: expected some of {', '.join(known)}, found {wrong[0]!r}")
    return tables


def _ranks(text: str | None, run: Run) -> list[int]:
    if text is None:
        return run.ranks
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if match is None:
            raise InputError(f"--ranks: expected ranks as in 0,2-4, found {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        known = [rank for rank in run.ranks if first <= rank <= last]
        if not known or len(known) != last - first + 1:
            raise InputError(f"--ranks: expected ranks that {run.path} has, found {part}")
        chosen.update(known)
    return sorted(chosen)


def _frames(choice: Choice) -> Iterator[tuple[str, Any]]:
    """Yield each table of each rank as a pandas DataFrame with unknown values missing, without states."""
    import pandas as pd

    for log in choice.logs():
        for name in choice.tables_of(log):
            table = log.table(name)
            count = len(table[schema.TABLES[name][0].name])
            frame = pd.DataFrame({"rank": np.full(count, log.rank, np.int64), **table})
            for c in schema.TABLES[name]:
                if c.dtype == "i8" and (c.optional or c.since > log.version):
                    frame[c.name] = frame[c.name].astype("Int64").mask(frame[c.name] == c.no_value)
            yield name, frame


def _or_none(column: schema.Column, values: NDArray[Any], log: RankLog) -> list[float | None]:
    """Return a column's numbers, None where a value is unknown."""
    if not (column.optional or column.since > log.version or column in schema.RESULT):
        return [float(value) for value in values]
    unknown = np.isnan(values) if column.dtype[0] == "f" else values == column.no_value
    return [None if missing else float(value) for value, missing in zip(values, unknown, strict=True)]


def _global_steps(steps: Columns, table: Columns) -> NDArray[np.int64]:
    """Return the number of steps that all ranks had taken at each row of a rank's table."""
    if "total_iteration" in table:
        logged: NDArray[np.int64] = table["total_iteration"]
        return logged
    total: NDArray[np.int64] = np.concatenate([[0], steps["total_iteration"]])
    # `dropped` has no step, so it is placed by time; the result has neither, and goes to the end.
    by = "iteration" if "iteration" in table else "time"
    return total[np.searchsorted(steps[by], table[by], side="right") if by in table else [-1]]


def _write_states(file: IO[bytes], log: RankLog, name: str, rows: list[int]) -> None:
    """Write the vector column of a table as an array, in blocks of rows to bound memory."""
    tail = tuple(log.head.sizes[part] for part in schema.TABLES[name][-1].per)
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), *tail)}
    np.lib.format.write_array_header_1_0(file, header)
    at_a_time = max(1, BLOCK // math.prod(tail))
    for at in range(0, len(rows), at_a_time):
        part = rows[at : at + at_a_time]
        _, values = log.values(name, slice(part[0], part[-1] + 1))
        file.write(values.astype("<f4", copy=False).tobytes())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
