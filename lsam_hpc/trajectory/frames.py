"""Tables of all ranks for pandas and xarray, which are imported only here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from lsam_hpc.trajectory.reader import Run


def frame(run: Run, table: str) -> pd.DataFrame:
    """Return a table of all ranks, with the rank as first column."""
    _check(table)
    try:
        import pandas as pd
    except ImportError as error:
        raise InputError("frame: expected the package pandas, found none: pip install 'lsam-hpc[analysis]'") from error
    frames = []
    for rank in run.ranks:
        columns = run.logs[rank].table(table)
        frames.append(pd.DataFrame({"rank": np.full(len(columns["time"]), rank, np.int64), **columns}))
    return pd.concat(frames, ignore_index=True)


def dataset(run: Run, table: str) -> xr.Dataset:
    """Return a table of all ranks with dimensions rank and row, with units; "no value" fills what a rank lacks."""
    _check(table)
    try:
        import xarray as xr
    except ImportError as error:
        raise InputError(
            "dataset: expected the package xarray, found none: pip install 'lsam-hpc[analysis]'"
        ) from error
    logs = {rank: run.logs[rank].table(table) for rank in run.ranks}
    rows = max(len(columns["time"]) for columns in logs.values())
    found = xr.Dataset(coords={"rank": run.ranks, "row": np.arange(rows)})
    for c in schema.TABLES[table]:
        if c.per:
            continue
        together = np.full((len(logs), rows), c.no_value, c.dtype)
        for values, columns in zip(together, logs.values(), strict=True):
            values[: len(columns[c.name])] = columns[c.name]
        found[c.name] = (("rank", "row"), together, {"units": c.unit, "long_name": c.description})
    return found


def _check(table: str) -> None:
    known = [name for name, columns in schema.TABLES.items() if any(c.name == "time" for c in columns)]
    if table not in known:
        raise InputError(f"table: expected one of {', '.join(known)}, found {table!r}")
