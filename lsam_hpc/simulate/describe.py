"""The machine and the job to simulate, as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from lsam_hpc.errors import InputError
from lsam_hpc.options.communication import CommunicationOptions, GroupAscent, Topology, WireDtype
from lsam_hpc.options.coupling import Coupling, CouplingOptions
from lsam_hpc.options.option import default

Distribution = Literal["constant", "lognormal", "exponential"]
WIRE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Machine:
    """Nodes, memory and network; bandwidths are in bytes per second, times in seconds.

    Args:
        name: name in tables.
        ranks_per_node: usually the GPUs of a node.
        cores: cores of a node, which ranks and their exchange threads share.
        copy: copy bandwidth of one thread.
        memory: copy bandwidth of all threads of a node together.
        nic: network bandwidth of a node, in each direction.
        rank_rate: bandwidth of one rank's reads or adds across nodes on an idle network.
        latency: round trip of one small one-sided operation.
        help: mean wait until a process on another node takes part in an add; 0 where the network hardware adds.
        add_passes: how often an add moves each byte over the network: 1, or 2 and more where the MPI fetches, adds and
            writes back, one message after the other.
        host_link: bandwidth between a device and its host; 0: ranks compute on the host.
        device_copy: copy bandwidth of a device's memory; unused without devices.
        link: bus bandwidth of an allreduce between the ranks of a node; 0: half of `copy`.
        bisection: fraction of all nodes' bandwidth that the network's core carries at once. Default 1.
        read_factor: duration of a read on one node, in copies.
        add_factor: duration of an add on one node, in copies.
        arithmetic: duration of the arithmetic between them, in copies.
        held: time that an exchange holds up the training thread, to stage and to apply, in copies (of the device's
            memory, if there is one).
        note: sources of the numbers.
    """

    name: str
    ranks_per_node: int
    cores: float
    copy: float
    memory: float
    nic: float
    rank_rate: float
    latency: float
    help: float = 0.0
    add_passes: float = 1.0
    host_link: float = 0.0
    device_copy: float = 0.0
    link: float = 0.0
    bisection: float = 1.0
    read_factor: float = 1.1
    add_factor: float = 1.1
    arithmetic: float = 3.0
    held: float = 1.4
    note: str = ""


@dataclass(frozen=True)
class Job:
    """Ranks, model and options; fields named as in `LSAM` have the same meaning.

    Args:
        ranks: R.
        parameters: P, elements of the exchanged vector.
        step: mean seconds of a local step (two passes) of a rank of factor 1, without exchanges.
        work: seconds of a step that need a core of the node; in the rest a device works, or none. Default 0.
        distribution: distribution of step lengths: `"constant"`, `"lognormal"` or `"exponential"`.
        sigma: standard deviation of the logarithm of lognormal lengths; their mean is `step`. Default 0.1.
        factors: rank -> factor by which its steps are longer. Default: none.
        work_factors: rank -> factor by which `work` is longer. Default: as `factors`.
        pause_every: mean seconds between a rank's random pauses; infinite: no pauses.
        pause: mean seconds of a pause; the lengths are exponential.
        period: local steps between exchanges; 0: no exchanges.
        wire_dtype: type of the numbers on the wire.
        coupling: what an exchange reads and adds.
        topology: `"center"`, `"gossip"` or `"leader"`.
        degree: number of peers that a gossip exchange reads.
        max_delay: largest number of exchanges in flight.
        group_size: G ranks that average their gradients and exchange as one; all ranks and period 0: synchronous SAM.
        group_ascent: `"own"`: one allreduce per step; `"averaged"`: two.
        hidden: fraction of a pass that an allreduce overlaps with. Default 0.
        shards: number of ranks that own a part of the center. Default: all.
        fully_shard: each rank of a group holds and exchanges 1/G of the model, as `fully_shard` (FSDP2) shards it.
        together: of `events`: local steps at the start in which all ranks average their gradients and do not exchange.
            Default 0.
        single: steps of all ranks at the start that take one pass, half of `step`. Default 0.
    """

    ranks: int
    parameters: int
    step: float
    work: float = 0.0
    distribution: Distribution = "constant"
    sigma: float = 0.1
    factors: dict[int, float] = field(default_factory=dict)
    work_factors: dict[int, float] | None = None
    pause_every: float = math.inf
    pause: float = 0.0
    period: int = default(CouplingOptions, "period")
    wire_dtype: WireDtype = default(CommunicationOptions, "wire_dtype")
    coupling: Coupling = default(CouplingOptions, "coupling")
    topology: Topology = default(CommunicationOptions, "topology")
    degree: int = default(CommunicationOptions, "degree")
    max_delay: int = default(CouplingOptions, "max_delay")
    group_size: int = default(CommunicationOptions, "group_size")
    group_ascent: GroupAscent = default(CommunicationOptions, "group_ascent")
    hidden: float = 0.0
    shards: int | None = None
    fully_shard: bool = False
    together: int = 0
    single: int = 0

    @property
    def chains(self) -> int:
        """Number of groups of ranks, each of which is one sampler."""
        return self.ranks // self.group_size

    @property
    def part(self) -> int:
        """Number of ranks over which a chain's vectors are spread."""
        return self.group_size if self.fully_shard else 1


def check(job: Job, machine: Machine) -> None:
    """Raise InputError for the first number that is out of its range."""
    for name in ("ranks", "parameters", "max_delay", "group_size", "degree"):
        _expect(name, "a whole number >= 1", value := getattr(job, name), valid=value >= 1)
    for name in ("period", "together", "single"):
        _expect(name, "a whole number >= 0", value := getattr(job, name), valid=value >= 0)
    _expect("step", "seconds > 0", job.step, valid=0 < job.step < math.inf)
    _expect("work", "seconds between 0 and the step's", job.work, valid=0 <= job.work <= job.step)
    _expect("sigma", "a number >= 0", job.sigma, valid=0 <= job.sigma < math.inf)
    _expect("pause", "seconds >= 0", job.pause, valid=0 <= job.pause < math.inf)
    _expect("pause_every", "seconds > 0", job.pause_every, valid=job.pause_every > 0)
    _expect("hidden", "a part of a pass, 0 to 1", job.hidden, valid=0 <= job.hidden <= 1)
    for rank, factor in [*job.factors.items(), *(job.work_factors or {}).items()]:
        _expect("straggler", f"a rank below {job.ranks}", rank, valid=0 <= rank < job.ranks)
        _expect("straggler", "a factor > 0", factor, valid=0 < factor < math.inf)
    if job.ranks % job.group_size:
        raise InputError(f"group_size: expected a divisor of the {job.ranks} ranks, found {job.group_size}")
    for name, known in (
        ("coupling", Coupling),
        ("topology", Topology),
        ("wire_dtype", WireDtype),
        ("group_ascent", GroupAscent),
        ("distribution", Distribution),
    ):
        _expect(
            name, f"one of {', '.join(get_args(known))}", value := getattr(job, name), valid=value in get_args(known)
        )
    if job.coupling != "elastic" and job.max_delay > 1:
        raise InputError(f"max_delay: expected 1 with coupling {job.coupling}, found {job.max_delay}")
    for name, plain in (("wire_dtype", "float32"), ("group_size", 1), ("fully_shard", False)):
        if job.topology != "center" and getattr(job, name) != plain:
            raise InputError(f"{name}: expected {plain} without a shared center, found {getattr(job, name)}")
    if job.shards is not None:
        if job.fully_shard:
            raise InputError(f"shards: expected none with fully_shard, where all ranks own a part, found {job.shards}")
        _expect("shards", f"1 to {job.ranks}", job.shards, valid=1 <= job.shards <= job.ranks)
    for name in ("ranks_per_node", "cores", "copy", "memory", "nic", "rank_rate", "add_passes", "bisection"):
        _expect(f"machine: {name}", "a number > 0", value := getattr(machine, name), valid=0 < value < math.inf)
    for name in (
        "latency",
        "help",
        "host_link",
        "device_copy",
        "link",
        "read_factor",
        "add_factor",
        "arithmetic",
        "held",
    ):
        _expect(f"machine: {name}", "a number >= 0", value := getattr(machine, name), valid=0 <= value < math.inf)
    if machine.host_link and not machine.device_copy:
        raise InputError("machine: device_copy: expected a number > 0 where there is a host_link, found 0")


def _expect(name: str, expected: str, value: object, *, valid: bool) -> None:
    if not valid:
        raise InputError(f"{name}: expected {expected}, found {value!r}")
