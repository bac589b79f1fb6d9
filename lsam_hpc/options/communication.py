"""Options of the communication: how ranks exchange states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsam_hpc.errors import InputError
from lsam_hpc.options.option import Range, check, option
from lsam_hpc.rma.graphs import Graph

Topology = Literal["center", "gossip", "leader"]
GroupAscent = Literal["own", "averaged"]
WireDtype = Literal["float32", "bfloat16", "float16"]
Publish = Literal["none", "sample", "perturbed"]
Mode = Literal["async", "lockstep"]
RANKS = Range(least=1, whole=True, unit="ranks")


@dataclass(frozen=True)
class CommunicationOptions:
    """The communication between ranks."""

    mode: Mode = option("async", "lockstep: exchanges in rank order between barriers, reproducible to the bit")
    overlap: bool = option(True, "exchange in a separate thread while the chain computes")
    wire_dtype: WireDtype = option("float32", "type of exchanged numbers; half precision halves the bytes")
    topology: Topology = option(
        "center",
        "center: one shared center; gossip: each rank keeps an estimate of it; leader: chains are pulled towards the "
        "rank with the lowest smoothed loss (LSGD)",
    )
    graph: Graph = option("random", "which ranks a rank reads (topology gossip)")
    degree: int = option(1, "number of ranks that a rank reads at an exchange (topology gossip)", RANKS)
    publish: Publish = option("none", "state of a chain that other ranks can read; gossip and leader: at least sample")
    group_size: int = option(1, "neighbouring ranks that form one chain and average their gradients", RANKS)
    group_ascent: GroupAscent = option(
        "own", "gradient of the ascent in a group. own: of each rank (m-SAM); averaged: the group's mean"
    )
    heartbeat_timeout: float = option(
        30.0,
        "seconds without a heartbeat after which a rank counts as failed",
        Range(above=0, unit="seconds", infinite=True),
    )


def check_communication(options: CommunicationOptions, ranks: int, *, neighbours: bool = True) -> None:
    """Raise InputError for the first option that is out of range or excluded by another.

    Args:
        options: the options to check.
        ranks: number of ranks of the job.
        neighbours: groups are neighbouring ranks, so that `group_size` must divide `ranks`. Default True.
    """
    check(options)
    if neighbours and ranks % options.group_size:
        raise InputError(f"group_size: expected a divisor of the {ranks} ranks, found {options.group_size}")
    for name, required in (("wire_dtype", "float32"), ("group_size", 1)):
        if options.topology != "center" and (value := getattr(options, name)) != required:
            raise InputError(f"{name}: expected {required} without a shared center, found {value}")
    for name, required in (("wire_dtype", "float32"), ("group_size", 1), ("topology", "center")):
        if options.mode == "lockstep" and (value := getattr(options, name)) != required:
            raise InputError(f"{name}: expected {required} in lockstep, found {value}")


def check_start(name: str, start: float, topology: str, ascent: str) -> None:
    """Raise InputError if a synchronous start is excluded by another option.

    Args:
        name: of the option of the start.
        start: its value; 0: no synchronous start.
        topology: of the communication.
        ascent: name of the ascent.
    """
    if not start:
        return
    if topology != "center":
        raise InputError(f"{name}: expected 0 with the topology {topology}, found {start:g}")
    if ascent == "sampa":  # its ranks would look ahead to other points
        raise InputError(f"{name}: expected 0 with the ascent sampa, found {start:g}")
