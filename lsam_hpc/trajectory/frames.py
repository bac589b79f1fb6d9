"""Tables of all ranks as pandas or xarray objects; both packages are imported only here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from lsam_hpc.trajectory.log import RankLog


def frame(ranks: Mapping[int, RankLog], table: str) -> pd.DataFrame:
    """Return a table of all ranks, with the rank as first column."""
    _check(table)
    try:
        import pandas as pd
    except ImportError as error:
        raise InputError("frame: expected the package pandas, found none: pip install 'lsam-hpc[analysis]'") from error
    frames = []
    for rank, log in ranks.items():
        columns = log.table(table)
        frames.append(pd.DataFrame({"rank": np.full(len(columns["time"]), rank, np.int64), **columns}))
    return pd.concat(frames, ignore_index=True)


def dataset(ranks: Mapping[int, RankLog], table: str) -> xr.Dataset:
    """Return a table of all ranks with dimensions rank and row, and units; "no value" fills ranks with fewer rows."""
    _check(table)
    try:
        import xarray as xr
    except ImportError as error:
        raise InputError(
            "dataset: expected the package xarray, found none: pip install 'lsam-hpc[analysis]'"
        ) from error
    logs = {rank: log.table(table) for rank, log in ranks.items()}
    rows = max(len(columns["time"]) for columns in logs.values())
    data = xr.Dataset(coords={"rank": [*logs], "row": np.arange(rows)})
    for c in schema.TABLES[table]:
        if c.per:
            continue
        all_ranks = np.full((len(logs), rows), c.no_value, c.dtype)
        for values, columns in zip(all_ranks, logs.values(), strict=True):
            values[: len(columns[c.name])] = columns[c.name]
        data[c.name] = (("rank", "row"), all_ranks, {"units": c.unit, "long_name": c.description})
    return data


def _check(table: str) -> None:
    known = [name for name, columns in schema.TABLES.items() if any(c.name == "time" for c in columns)]
    if table not in known:
        raise InputError(f"table: expected one of {', '.join(known)}, found {table!r}")
