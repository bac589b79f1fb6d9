"""The check of `lsam doctor` on a job's chains: where their ranks are, and what a rank holds and sends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lsam_hpc.launch.doctor_node import available
from lsam_hpc.launch.doctor_report import Finding, Ranks
from lsam_hpc.simulate.costs import Costs
from lsam_hpc.simulate.describe import Job
from lsam_hpc.simulate.machines import load
from lsam_hpc.util import affinity


@dataclass(frozen=True)
class Plan:
    """The job, as the options of `lsam train` describe it.

    Args:
        parameters: elements of the model, P.
        group_size: ranks of a chain, G.
        sharded: each of them holds 1 / G of the model.
    """

    parameters: int
    group_size: int
    sharded: bool


def chains(ranks: Ranks, plan: Plan) -> Finding:
    """Check where the ranks of a chain are, and, if they train on CPUs, that the memory suffices."""
    hosts, free = ranks.hosts(), ranks.each(available)
    on_cpus = not any(ranks.each(affinity.accelerators))
    room = min(each / hosts.count(host) for each, host in zip(free, hosts, strict=True)) if on_cpus else math.inf
    return diagnose_chains(hosts, room, plan)


def diagnose_chains(hosts: Sequence[str], room: float, plan: Plan) -> Finding:
    """Return the finding on the chains.

    Args:
        hosts: of each rank.
        room: memory that each rank can have for its vectors, bytes; infinite: not known.
        plan: the job.
    """
    count, size = len(hosts), plan.group_size
    if size < 1 or count % size:
        return Finding("chains", "fail", f"expected a divisor of the {count} ranks as --group-size, found {size}")
    job = Job(count, plan.parameters, step=1.0, group_size=size, fully_shard=plan.sharded)
    costs = Costs(job, load("two-cores"))  # bytes are the same on all machines
    held, sent, moved = costs.rank_bytes(), costs.group_bytes(), costs.exchange_bytes()
    text = f"{_several(count // size, 'chain')} of {_several(size, 'rank')}; with SGD a rank holds {_bytes(held)} of "
    text += f"vectors, sends {_bytes(sent)} to its chain in a step and moves {_bytes(moved)} in an exchange"
    problems = []
    if held > room:
        problems.append(f"the vectors need more than the {_bytes(room)} that a rank can have")
    if size > 1 and (spanning := affinity.spanning_chains(hosts, size)):
        problems.append(f"{_several(spanning, 'chain')} on several nodes, each of which has room for whole chains")
    return Finding("chains", "warn" if problems else "ok", "; ".join([text, *problems]))


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _bytes(number: float) -> str:
    """Return a number of bytes in MB, or GB if there are many."""
    return f"{number / 1e6:.1f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
