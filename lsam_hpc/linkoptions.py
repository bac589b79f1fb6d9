"""How ranks meet, as options: without MPI, so that they can be checked before a job starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from lsam_hpc.errors import InputError
from lsam_hpc.optim.guard import Guard
from lsam_hpc.rma.graphs import GRAPHS, Graph

if TYPE_CHECKING:
    import torch

Topology = Literal["center", "gossip", "leader"]
TOPOLOGIES: tuple[Topology, ...] = ("center", "gossip", "leader")
GroupAscent = Literal["own", "averaged"]
GROUP_ASCENTS: tuple[GroupAscent, ...] = ("own", "averaged")
Wire = Literal["float32", "bfloat16", "float16"]
WIRES: tuple[Wire, ...] = ("float32", "bfloat16", "float16")
Publish = Literal["none", "sample", "perturbed"]
PUBLISH: tuple[Publish, ...] = ("none", "sample", "perturbed")


class LinkOptions(TypedDict, total=False):
    """The keywords of LSAM that say how ranks meet."""

    overlap: bool
    max_delay: int
    max_jump: float
    wire_dtype: Wire
    topology: Topology
    graph: Graph
    degree: int
    publish: Publish
    group_size: int
    group_ascent: GroupAscent
    group_reduce: Callable[[torch.Tensor], None] | None
    group_ranks: Sequence[int] | None
    group_average: Callable[[list[torch.Tensor]], None] | None
    silent_after: float


DEFAULTS: LinkOptions = {
    "overlap": True,
    "max_delay": 1,
    "max_jump": 10.0,
    "wire_dtype": "float32",
    "topology": "center",
    "graph": "random",
    "degree": 1,
    "publish": "none",
    "group_size": 1,
    "group_ascent": "own",
    "group_reduce": None,
    "group_ranks": None,
    "group_average": None,
    "silent_after": 30.0,
}
CHOICES: dict[str, tuple[str, ...]] = {
    "wire_dtype": WIRES, "topology": TOPOLOGIES, "graph": GRAPHS, "publish": PUBLISH, "group_ascent": GROUP_ASCENTS,
}  # fmt: skip


def check_links(options: LinkOptions, lockstep: bool, ranks: int) -> None:
    """Raise InputError for the first option that is out of its range, or that another one excludes."""
    given: dict[str, Any] = {**DEFAULTS, **options}
    for name, known in CHOICES.items():
        if given[name] not in known:
            raise InputError(f"{name}: expected one of {', '.join(known)}, found {given[name]!r}")
    for name in ("degree", "group_size"):
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}: expected a whole number of ranks >= 1, found {value!r}")
    if given["group_ranks"] is None and ranks % given["group_size"]:
        raise InputError(f"group_size: expected a divisor of the {ranks} ranks, found {given['group_size']}")
    if not given["silent_after"] > 0:
        raise InputError(f"silent_after: expected a number of seconds > 0, found {given['silent_after']!r}")
    Guard(given["max_jump"])
    for name, plain in (("wire_dtype", "float32"), ("group_size", 1)):
        if given["topology"] != "center" and given[name] != plain:
            raise InputError(f"{name}: expected {plain} without a shared center, found {given[name]}")
    for name, plain in (("wire_dtype", "float32"), ("group_size", 1), ("topology", "center")):
        if lockstep and given[name] != plain:
            raise InputError(f"{name}: expected {plain} in lockstep, found {given[name]}")
