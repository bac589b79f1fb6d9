"""Opens a run while it is going on, and after it ended or was killed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema
from lsam_hpc.trajectory.frames import dataset, frame
from lsam_hpc.trajectory.log import RankLog
from lsam_hpc.trajectory.openfile import DAMAGE, opened
from lsam_hpc.trajectory.rows import Columns
from lsam_hpc.trajectory.safe import attribute
from lsam_hpc.trajectory.shards import open_log
from lsam_hpc.trajectory.sketch import CountSketch

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

MOST_RANKS = 10**6


class Run:
    """A run: its directory, one rank's file, or a file of all ranks made by `lsam merge`.

    Args:
        path: of one of them.
        partial: leave out ranks that are missing or cannot be read, and rows that are damaged, and describe them in
            `problems`. Default: raise InputError.

    Raises:
        InputError: there is no such run, a rank's file is missing, or a file is damaged.
    """

    def __init__(self, path: str | Path, *, partial: bool = False) -> None:
        self.path = Path(path)
        self.logs: dict[int, RankLog] = {}
        self._problems: list[str] = []
        self._partial = partial
        if not self.path.exists():
            raise InputError(f"{path}: expected a run directory, found nothing")
        if self.path.is_dir():
            self._open_directory(self.path)
        else:
            self._open_file()

    @property
    def ranks(self) -> list[int]:
        """The ranks that can be read, in order."""
        return sorted(self.logs)

    @property
    def problems(self) -> list[str]:
        """Missing and damaged parts seen so far, one line each."""
        return [*self._problems, *(text for rank in self.ranks for text in self.logs[rank].problems)]

    @property
    def layout(self) -> list[tuple[str, tuple[int, ...], int]]:
        """(name, shape, offset) of each parameter in the flat vectors."""
        return self._first.layout

    @property
    def size(self) -> int:
        """Number of elements of the flat vectors."""
        return self._first.size

    @property
    def sketcher(self) -> CountSketch | None:
        """The map that made the sketches, to sketch other vectors with; None if there are no sketches."""
        return self._first.sketcher

    def log(self, rank: int) -> RankLog:
        """Return a rank's log."""
        if rank not in self.logs:
            raise InputError(f"{self.path}: expected a rank of {_shortened(self.ranks)}, found {rank}")
        return self.logs[rank]

    def steps(self, rank: int) -> Columns:
        """Return a rank's steps, an array per column of `schema.STEP`; NaN and -1 are missing values."""
        return self.log(rank).table("step")

    def exchanges(self, rank: int) -> Columns:
        """Return a rank's exchanges, an array per column of `schema.EXCHANGE`; NaN and -1 are missing values."""
        return self.log(rank).table("exchange")

    def result(self, rank: int) -> dict[str, float] | None:
        """Return a rank's result (`schema.RESULT`, NaN for missing values), or None if the rank did not finish."""
        return self.log(rank).result

    def sketch(self, rank: int, state: str = "sample", group: str | None = None) -> Columns:
        """Return a rank's sketches of a state.

        Args:
            rank: of the chain.
            state: of `schema.STATES`. Default: sample.
            group: name of a layer group of `sketcher.groups`; None (default): of the whole vector.

        Returns:
            `iteration`, `time` and `version`, shape (rows,), and `values`, shape (rows, buckets). Inner products and
            distances of rows, of any ranks, are those of the states to about 1 / sqrt(buckets).

        Raises:
            InputError: the log has no such sketches, or they are damaged.
        """
        table, values = self.log(rank).values(f"sketch/{state}")
        sketcher = self.log(rank).sketcher
        names = [g.name for g in sketcher.groups] if sketcher else []
        if group is not None and group not in names:
            raise InputError(f"{self.path}: expected a layer group of {', '.join(names)}, found {group!r}")
        return {**table, "values": values.sum(1) if group is None else values[:, names.index(group)]}

    def snapshots(self, rank: int, state: str = "sample") -> Columns:
        """Return `iteration`, `time` and `version` of a rank's snapshots of a state, shape (rows,) each.

        Raises:
            InputError: the log has no such snapshots, or they are damaged.
        """
        return self.log(rank).table(f"snapshot/{state}")

    def snapshot(self, rank: int, index: int, state: str = "sample") -> NDArray[np.float32]:
        """Return one snapshot, shape (P,).

        Args:
            rank: of the chain.
            index: number of the row of `snapshots`; negative numbers count from the end.
            state: of `schema.STATES`. Default: sample.

        Raises:
            InputError: the log has no such snapshot, or it is damaged.
        """
        count = len(self.snapshots(rank, state)["iteration"])
        at = index + count if index < 0 else index
        _, values = self.log(rank).values(f"snapshot/{state}", slice(at, at + 1))
        if at < 0 or len(values) == 0:
            raise InputError(f"{self.path}: expected one of {count} snapshots of rank {rank}, found index {index}")
        row: NDArray[np.float32] = values[0]
        return row

    @property
    def _in_order(self) -> dict[int, RankLog]:
        return {rank: self.logs[rank] for rank in self.ranks}

    def frame(self, table: str = "step") -> pd.DataFrame:
        """Return a table of all ranks as a pandas DataFrame, with the rank as first column."""
        return frame(self._in_order, table)

    def dataset(self, table: str = "step") -> xr.Dataset:
        """Return a table of all ranks as an xarray Dataset over rank and row; NaN and -1 fill ranks with fewer rows."""
        return dataset(self._in_order, table)

    def close(self) -> None:
        """Do nothing: files are open only while they are read."""

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, ranks {self.ranks})"

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _first(self) -> RankLog:
        return self.logs[self.ranks[0]]

    def _open_directory(self, directory: Path) -> None:
        config = directory / "config.json"
        if not config.is_file():
            raise InputError(f"{directory}: expected a run directory with config.json, found none")
        try:
            self.config = _config(config.read_text(), str(config))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{config}: expected JSON, found: {error}") from error
        files = {}
        for file in directory.iterdir():
            if match := re.fullmatch(r"rank-(\d{4,9})\.h5", file.name):
                files[int(match[1])] = file
        if not files:
            raise InputError(f"{directory}: expected files rank-NNNN.h5, found none")
        for rank in sorted(files):
            self._open_rank(rank, files[rank])
        self._check_ranks()

    def _open_file(self) -> None:
        try:
            with opened(self.path) as (file, _):
                kind = attribute(file, "format")
                names = [name for name in file if re.fullmatch(r"rank-\d{4,9}", name)]
        except InputError:
            raise
        except DAMAGE as error:
            raise InputError(f"{self.path}: expected a readable HDF5 file, found: {_first_line(error)}") from error
        if kind == schema.INDEX:
            # Its datasets are virtual and may name any file: the rank files beside it are read instead.
            self._open_directory(self.path.parent)
        elif kind == schema.MERGED:
            for name in sorted(names):
                self._open_rank(int(name[5:]), self.path, name)
            self._check_ranks()
        else:
            log = open_log(self.path, partial=self._partial)
            self.logs[log.rank] = log
        if kind != schema.INDEX:
            self.config = _config(str(self._first.attributes["config"]), f"{self.path}: config")

    def _open_rank(self, rank: int, file: Path, part: str = "") -> None:
        try:
            log = RankLog(file, part, partial=self._partial) if part else open_log(file, partial=self._partial)
            if log.rank != rank:
                raise InputError(f"{file}: {part}: expected the log of rank {rank}, found that of rank {log.rank}")
            self.logs[rank] = log
        except InputError as error:
            self._problem(str(error))

    def _check_ranks(self) -> None:
        if not self.logs:
            raise InputError(f"{self.path}: expected a rank that can be read, found none: {self._problems[:1]}")
        ranks = int(self._first.attributes["ranks"])
        if not 0 < ranks <= MOST_RANKS:
            raise InputError(f"{self.path}: expected 1 to {MOST_RANKS} ranks, found {ranks}")
        if missing := [rank for rank in range(ranks) if rank not in self.logs]:
            self._problem(f"{self.path}: expected the logs of {ranks} ranks, found none for rank {_shortened(missing)}")

    def _problem(self, text: str) -> None:
        if not self._partial:
            raise InputError(text)
        self._problems.append(text)


def _config(text: str, where: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected JSON, found: {error}") from error
    if not isinstance(options, dict):
        raise InputError(f"{where}: expected options and their values, found {type(options).__name__}")
    return options


def _shortened(numbers: list[int], most: int = 8) -> str:
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(map(str, numbers[:most])) + more


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
