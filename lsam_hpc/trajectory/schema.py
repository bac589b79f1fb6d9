"""Defines every group, column, type, unit and attribute of a log; no other module repeats them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

VERSION = 3
READABLE = (1, 2, 3)  # versions that the reader knows
FORMAT = "lsam-hpc trajectory"
MERGED = "lsam-hpc trajectories"  # format of a file with the logs of all ranks
INDEX = "lsam-hpc trajectory index"  # format of a file of virtual datasets over the ranks' files

CHUNK_ROWS = 1024
SKETCH_BYTES = 2**18  # of a chunk of sketches
SNAPSHOT_ELEMENTS = 2**20  # of a chunk of a snapshot


@dataclass(frozen=True)
class Column:
    """One dataset of a table: a row per step, exchange or state."""

    name: str
    dtype: str
    unit: str
    description: str
    optional: bool = False  # may be missing, and is dropped first when the disk is too slow
    since: int = 1  # schema version that added it; in older files it is "no value"
    per: tuple[str, ...] = ()  # further dimensions, by name: `groups`, `buckets`, `parameters`

    @property
    def no_value(self) -> float:
        """The number that stands for a missing value, and fills rows that were never written."""
        return math.nan if self.dtype[0] == "f" else {"i": -1, "u": 0}[self.dtype[0]]


STEP = (
    Column("iteration", "i8", "steps", "local steps of this rank before this one"),
    Column("total_iteration", "i8", "steps", "steps of all ranks before this one (the global step)"),
    Column("time", "f8", "s", "when the step ended, since the run's start"),
    Column("loss", "f4", "1", "mini-batch loss at the sample"),
    Column("grad_norm", "f4", "1", "norm of the mini-batch gradient at the sample", optional=True),
    Column("perturbation_norm", "f4", "1", "norm of the ascent e(x)", optional=True),
    Column(
        "center_distance",
        "f4",
        "1",
        "distance of the sample from the center at the last exchange; NaN before it",
        optional=True,
    ),
    Column("lr", "f4", "1", "learning rate of the first parameter group", optional=True),
    Column("rho", "f4", "1", "ascent radius of the first parameter group", optional=True),
)
EXCHANGE = (
    Column("iteration", "i8", "steps", "local steps of this rank before the sample was staged"),
    Column("time", "f8", "s", "when the exchange began, since the run's start"),
    Column("seconds", "f4", "s", "how long the exchange took", optional=True),
    Column("version_read", "i8", "updates", "version of the center that the delta was taken against"),
    Column("version_added", "i8", "updates", "version of the center when the delta was added"),
    Column("staleness", "i8", "updates", "updates by other ranks in between"),
    Column("bytes", "i8", "B", "bytes read and added", optional=True),
    Column(
        "center_distance",
        "f4",
        "1",
        "distance of the sample from the center that the delta was taken against",
        optional=True,
    ),
    Column("delta_norm", "f4", "1", "norm of the delta", optional=True),
    Column("accepted", "u1", "1", "1: added; 0: rejected by the delta filter"),
    Column(
        "delay", "i8", "steps", "local steps between staging the sample and applying the result", optional=True, since=2
    ),
    Column("blocked", "f4", "s", "how long the training thread was held up", optional=True, since=2),
)
CURVATURE = (
    Column("iteration", "i8", "steps", "local steps of this rank before the measurement", since=2),
    Column("total_iteration", "i8", "steps", "steps of all ranks up to this rank's last one", since=2),
    Column("time", "f8", "s", "when the measurement ended, since the run's start", since=2),
    Column(
        "eigenvalue",
        "f8",
        "1",
        "largest eigenvalue of the loss's Hessian at the sample, on the first training images; an estimate from below",
        since=2,
    ),
    Column(
        "residual", "f8", "1", "|H v - eigenvalue v|, |v| = 1: some eigenvalue is at most this far from it", since=2
    ),
    Column("products", "i8", "1", "products with the Hessian", since=2),
    Column("seconds", "f8", "s", "how long training waited", since=2),
)
_STATE = (
    Column("iteration", "i8", "steps", "local steps of this rank before the state was taken", since=2),
    Column("time", "f8", "s", "when it was taken, since the run's start", since=2),
    Column("version", "i8", "updates", "version of the center then read; -1: not known", optional=True, since=2),
)
SKETCH = (
    *_STATE,
    Column(
        "values",
        "f4",
        "1",
        "CountSketch of each layer group; their sum is the whole's",
        since=2,
        per=("groups", "buckets"),
    ),
)
SNAPSHOT = (
    *_STATE,
    Column(
        "values",
        "f4",
        "1",
        "the flat vector; 'bfloat16' is kept as u2, its upper half of a float32",
        since=2,
        per=("parameters",),
    ),
)
DROPPED = (
    Column("time", "f8", "s", "when it was noticed, since the run's start", since=2),
    Column("rows", "i8", "1", "rows lost so far, of all tables", since=2),
    Column("values", "i8", "1", "optional values left out so far", since=2),
    Column("states", "i8", "1", "sketches and snapshots left out so far", since=2),
)
RESULT = (
    Column("steps", "f8", "steps", "taken by the rank"),
    Column("exchanges", "f8", "1", "made by the rank"),
    Column("refused", "f8", "1", "exchanges that the delta filter rejected"),
    Column("staleness_mean", "f8", "updates", "mean over the exchanges"),
    Column("staleness_max", "f8", "updates", "largest"),
    Column("seconds", "f8", "s", "training time"),
    Column(
        "sample_train_loss", "f8", "1", "mean loss of the rank's sample over the first 5,000 training images or windows"
    ),
    Column("sample_test_error", "f8", "%", "of the rank's sample; of text: next bytes that are not the likeliest"),
    Column("center_train_loss", "f8", "1", "mean loss of the center over the first 5,000 training images or windows"),
    Column("center_test_error", "f8", "%", "of the center"),
    Column("sample_test_perplexity", "f8", "1", "of text: exp of the sample's mean loss per byte; else NaN", since=3),
    Column("center_test_perplexity", "f8", "1", "of text: exp of the center's mean loss per byte; else NaN", since=3),
)
# Written last in every table: see `stored`.
VALUES_CRC = Column("values_crc", "u4", "1", "CRC-32 of the row's `values` as stored, little-endian", since=2)
CRC = Column(
    "crc",
    "u4",
    "1",
    "CRC-32 of the row's other columns but `values`, in this order, little-endian: tells a row from fill values",
    since=2,
)

OPTIONAL = ("curvature",)  # tables that only some logs have, besides those of sketches and snapshots
STATES = ("sample", "center", "perturbation")
TABLES: dict[str, tuple[Column, ...]] = {
    "step": STEP,
    "exchange": EXCHANGE,
    "curvature": CURVATURE,
    **{f"sketch/{state}": SKETCH for state in STATES},
    **{f"snapshot/{state}": SNAPSHOT for state in STATES},
    "dropped": DROPPED,
    "result": RESULT,
}


@dataclass(frozen=True)
class Attribute:
    """A root attribute of a rank's file."""

    kind: type
    description: str
    since: int = 1
    written: bool = False  # set by the writer itself, not passed to it


ATTRIBUTES: dict[str, Attribute] = {
    "format": Attribute(str, f"'{FORMAT}'", written=True),
    "schema_version": Attribute(int, "version of this table; readers refuse what they do not know", written=True),
    "creator": Attribute(str, "programs that wrote the file, with versions", since=2, written=True),
    "code_version": Attribute(str, "version of lsam-hpc that wrote the file"),
    "git_commit": Attribute(str, "commit of the working directory's repository, '' outside one"),
    "git_dirty": Attribute(int, "1: the repository had uncommitted changes; 0: none; -1: not known"),
    "created": Attribute(str, "when the run started, UTC, ISO 8601"),
    "start_time": Attribute(float, "the same in seconds since 1970"),
    "config": Attribute(str, "the run's options, JSON"),
    "rank": Attribute(int, "this rank", written=True),
    "ranks": Attribute(int, "number of ranks"),
    "seed": Attribute(int, "of the run"),
    "host": Attribute(str, "where the rank ran"),
    "mpi_library": Attribute(str, "vendor and version"),
    "launcher": Attribute(str, "what started the rank: mpirun, srun, ... or none"),
    "job_id": Attribute(str, "of the batch system, '' outside one"),
    "torch_version": Attribute(str, "version of PyTorch"),
    "device": Attribute(str, "where the rank trained"),
    "head_crc": Attribute(
        int, "CRC-32 of these attributes, the layout and the sketch's description", since=2, written=True
    ),
}

# Columns of /layout, a row per parameter: name -> description.
LAYOUT = {
    "name": "of the parameter",
    "shape": 'as text, "64,3,3,3"; "" for one number',
    "offset": "where the parameter begins in a flat vector, elements",
}
# Columns of /sketch/groups, a row per layer group, and attributes of /sketch.
GROUPS = {"name": "first and last layer", "start": "first element", "stop": "element after the last"}
SKETCH_ATTRIBUTES = {"size": "elements of the flat vector", "buckets": "numbers per group", "seed": "of the map"}


def rank_file(rank: int) -> str:
    """Return the name of a rank's file in the run directory."""
    return f"rank-{rank:04d}.h5"


def shard_file(chain: int, shard: int) -> str:
    """Return the name of the file with the snapshots of a rank that holds a shard of a chain."""
    return f"rank-{chain:04d}-shard-{shard:04d}.h5"


def stored(columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """Return the columns of a table followed by its check sums."""
    return (*columns, VALUES_CRC, CRC) if any(c.per for c in columns) else (*columns, CRC)


def chunk(column: Column, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the chunk shape of a column, rows first.

    Args:
        column: of a table.
        sizes: `groups`, `buckets` and `parameters` of the file.
    """
    if not column.per:
        return (CHUNK_ROWS,)
    if column.per == ("parameters",):
        return (1, max(1, min(sizes["parameters"], SNAPSHOT_ELEMENTS)))
    row = [sizes[name] for name in column.per]
    return (max(1, SKETCH_BYTES // (4 * math.prod(row))), *row)


def markdown() -> str:
    """Return the schema as the tables of docs/reference/logs.md."""
    lines = []
    for table, columns in TABLES.items():
        kind, _, state = table.partition("/")
        if state in STATES[1:]:
            continue
        title = f"{kind}/{{{','.join(STATES)}}}" if state else kind
        lines += [f"### /{title}", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
        lines += [f"| `{c.name}` | {_type(c)} | {c.unit} | {c.description} |" for c in stored(columns)]
        lines.append("")
    lines += ["### Root attributes", "", "| attribute | type | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {a.kind.__name__}{_since(a.since)} | {a.description} |" for name, a in ATTRIBUTES.items()]
    for title, names in (
        ("/layout, a row per parameter", LAYOUT),
        ("/sketch/groups, a row per layer group", GROUPS),
        ("/sketch, attributes", SKETCH_ATTRIBUTES),
    ):
        lines += ["", f"### {title}", "", "| name | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {text} |" for name, text in names.items()]
    return "\n".join(lines) + "\n"


def _type(column: Column) -> str:
    shape = f"[{' x '.join(column.per)}]" if column.per else ""
    return f"{column.dtype}{shape}{', optional' if column.optional else ''}{_since(column.since)}"


def _since(version: int) -> str:
    return f", since {version}" if version > 1 else ""
