"""The check of `lsam doctor` on a job's chains: where their ranks are, and what a rank holds and sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lsam_hpc.launch.doctor_node import available
from lsam_hpc.launch.doctor_report import Finding, Ranks
from lsam_hpc.simulate.costs import Costs
from lsam_hpc.simulate.describe import Job
from lsam_hpc.simulate.machines import load
from lsam_hpc.util.affinity import spanning_chains


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
    """Check that the ranks of a chain are on one node, and that the memory suffices."""
    hosts = ranks.hosts()
    free = ranks.each(available)
    return diagnose_chains(hosts, [each / hosts.count(host) for each, host in zip(free, hosts, strict=True)], plan)


def diagnose_chains(hosts: Sequence[str], free: Sequence[float], plan: Plan) -> Finding:
    """Return the finding on the chains.

    Args:
        hosts: of each rank.
        free: memory that each rank can have, bytes.
        plan: the job.
    """
    count, size = len(hosts), plan.group_size
    if size < 1 or count % size:
        return Finding("chains", "fail", f"expected a divisor of the {count} ranks as --group-size, found {size}")
    job = Job(count, plan.parameters, step=1.0, group_size=size, fully_shard=plan.sharded)
    costs = Costs(job, load("two-cores"))  # bytes are the same on all machines
    held, sent, moved, least = costs.rank_bytes(), costs.group_bytes(), costs.exchange_bytes(), min(free)
    text = f"{count // size} of {size} ranks; of vectors a rank holds {_bytes(held)}, "
    text += f"sends {_bytes(sent)} to its chain in a step and moves {_bytes(moved)} in an exchange"
    if held > least:
        return Finding("chains", "warn", f"{text}: more than the memory of a rank, {_bytes(least)}")
    if size > 1 and (spanning := spanning_chains(hosts, size)):
        return Finding("chains", "warn", f"{text}: {spanning} span nodes, each of which has room for whole chains")
    return Finding("chains", "ok", text)


def _bytes(number: float) -> str:
    """Return a number of bytes in MB, or GB if there are many."""
    return f"{number / 1e6:.1f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
