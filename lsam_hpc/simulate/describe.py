"""What is simulated: a machine and a job, as numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from lsam_hpc.errors import InputError

Coupling = Literal["elastic", "kernel", "restart"]
Topology = Literal["center", "gossip", "leader"]
Wire = Literal["float32", "bfloat16", "float16"]
Ascent = Literal["own", "averaged"]
Distribution = Literal["constant", "lognormal", "exponential"]
WIRE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Machine:
    """Nodes, memory and network; bandwidths are in bytes per second, times in seconds.

    Args:
        name: for tables.
        ranks_per_node: usually the GPUs of a node.
        cores: of a node, that ranks and their exchange threads share.
        copy: bytes that one thread copies.
        memory: bytes that all threads of a node copy together.
        nic: bytes that a node sends, and as many that it receives at the same time.
        rank_rate: bytes that one rank reads or adds across nodes, however idle the network is.
        latency: of one small one-sided operation, there and back.
        help: mean wait until a process on another node takes part in an add; 0 where the network's hardware adds.
        add_passes: how often an add moves each byte over the network: 1, or 2 and more where the MPI fetches, adds and
            puts back, one message after the other.
        host_link: bytes between a device and its host; 0: ranks compute on the host.
        device_copy: bytes that a device copies in its own memory; unused without devices.
        link: bytes of an allreduce between the ranks of a node (its bus bandwidth).
        bisection: part of all nodes' nics that can cross the network at once. Default 1.
        read_factor: seconds of a read on one node, as a multiple of a copy.
        add_factor: the same of an add.
        arithmetic: the same of what an exchange computes between them.
        held: what an exchange takes of the training thread, staging and applying, as a multiple of a copy (of the
            device's memory, if there is one).
        note: where the numbers are from.
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
    """Ranks, model and options; what is named as in `LSAM` means the same.

    Args:
        ranks: R.
        parameters: P, elements of the exchanged vector.
        step: mean seconds of a local step (two passes) of a rank of factor 1, without exchanges.
        work: of these, seconds that need a core of the node; the rest is a device's, or idle. Default 0.
        distribution: of a step's length: `"constant"`, `"lognormal"` or `"exponential"`.
        sigma: of the lognormal's logarithm; its mean stays `step`. Default 0.1.
        factors: rank -> how many times longer its steps are. Default: none.
        work_factors: rank -> how many times more work they are. Default: as `factors`.
        pause_every: mean seconds between a rank's random pauses; infinite: none.
        pause: mean seconds of such a pause, exponential.
        period: local steps between exchanges; 0: no exchanges.
        wire_dtype: bytes on the wire.
        coupling: what an exchange reads and adds.
        topology: a center, gossip or a leader.
        degree: of gossip: peers read at an exchange.
        max_delay: exchanges in flight at most.
        group_size: G ranks that average their gradients and exchange as one; all ranks and period 0: synchronous SAM.
        group_ascent: `"own"`: one allreduce per step; `"averaged"`: two.
        hidden: part of a pass behind which an allreduce hides. Default 0.
        shards: ranks that own a part of the center. Default: all.
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
    period: int = 4
    wire_dtype: Wire = "float32"
    coupling: Coupling = "elastic"
    topology: Topology = "center"
    degree: int = 1
    max_delay: int = 1
    group_size: int = 1
    group_ascent: Ascent = "own"
    hidden: float = 0.0
    shards: int | None = None

    @property
    def chains(self) -> int:
        """Groups of ranks that are one sampler each."""
        return self.ranks // self.group_size


def check(job: Job, machine: Machine) -> None:
    """Raise InputError for the first number that is out of its range."""
    for name in ("ranks", "parameters", "max_delay", "group_size", "degree"):
        _expect(name, "a whole number >= 1", getattr(job, name), getattr(job, name) >= 1)
    _expect("period", "a whole number >= 0", job.period, job.period >= 0)
    _expect("step", "seconds > 0", job.step, 0 < job.step < math.inf)
    _expect("work", "seconds between 0 and the step's", job.work, 0 <= job.work <= job.step)
    _expect("sigma", "a number >= 0", job.sigma, 0 <= job.sigma < math.inf)
    _expect("pause", "seconds >= 0", job.pause, 0 <= job.pause < math.inf)
    _expect("pause_every", "seconds > 0", job.pause_every, job.pause_every > 0)
    _expect("hidden", "a part of a pass, 0 to 1", job.hidden, 0 <= job.hidden <= 1)
    for rank, factor in [*job.factors.items(), *(job.work_factors or {}).items()]:
        _expect("straggler", f"a rank below {job.ranks}", rank, 0 <= rank < job.ranks)
        _expect("straggler", "a factor > 0", factor, 0 < factor < math.inf)
    if job.ranks % job.group_size:
        raise InputError(f"group_size: expected a divisor of the {job.ranks} ranks, found {job.group_size}")
    for name, known in (("coupling", Coupling), ("topology", Topology), ("wire_dtype", Wire),
                        ("group_ascent", Ascent), ("distribution", Distribution)):  # fmt: skip
        _expect(name, f"one of {', '.join(get_args(known))}", getattr(job, name), getattr(job, name) in get_args(known))
    if job.coupling != "elastic" and job.max_delay > 1:
        raise InputError(f"max_delay: expected 1 with coupling {job.coupling}, found {job.max_delay}")
    for name, plain in (("wire_dtype", "float32"), ("group_size", 1)):
        if job.topology != "center" and getattr(job, name) != plain:
            raise InputError(f"{name}: expected {plain} without a shared center, found {getattr(job, name)}")
    if job.shards is not None:
        _expect("shards", f"1 to {job.ranks}", job.shards, 1 <= job.shards <= job.ranks)
    for name in ("ranks_per_node", "cores", "copy", "memory", "nic", "rank_rate", "add_passes", "bisection"):
        _expect(f"machine: {name}", "a number > 0", getattr(machine, name), 0 < getattr(machine, name) < math.inf)
    for name in ("latency", "help", "host_link", "device_copy", "link", "read_factor", "add_factor", "arithmetic",
                 "held"):  # fmt: skip
        _expect(f"machine: {name}", "a number >= 0", getattr(machine, name), 0 <= getattr(machine, name) < math.inf)
    if machine.host_link and not machine.device_copy:
        raise InputError("machine: device_copy: expected a number > 0 where there is a host_link, found 0")


def _expect(name: str, expected: str, found: object, right: bool) -> None:
    if not right:
        raise InputError(f"{name}: expected {expected}, found {found!r}")
