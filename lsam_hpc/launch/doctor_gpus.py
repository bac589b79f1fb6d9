"""The check of `lsam doctor` on GPUs: which one each rank would train on, and whether it is next to its cores."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from lsam_hpc.launch.doctor_report import Finding, Ranks
from lsam_hpc.util import affinity


@dataclass(frozen=True)
class Choice:
    """The GPU that a rank would train on."""

    used: str  # its name, "" if the rank sees no GPU
    visible: list[str]  # names of those that the rank sees, unlike all others of the node
    index: int = 0  # of `used` in `visible`
    far: bool = False  # its NUMA node has none of the rank's cores
    present: int = 0  # number of GPUs of the node, if torch can use none


def gpus(ranks: Ranks) -> Finding:
    """Check that each rank has a GPU of its own, next to its cores."""
    hosts = ranks.hosts()
    mine = [rank for rank, host in enumerate(hosts) if host == hosts[ranks.comm.rank]]
    seen = ranks.each(_seen)
    if errors := [answer for answer in seen if isinstance(answer, str)]:
        return Finding("gpus", "fail", errors[0])

    def choice() -> Choice:
        cores, names, addresses = seen[ranks.comm.rank]
        if not names:
            return Choice("", [], present=len(affinity.accelerators()))
        indices = affinity.device_indices([seen[rank][0] for rank in mine], [seen[rank][2] for rank in mine])
        index = indices[mine.index(ranks.comm.rank)]
        return Choice(names[index], names, index, affinity.is_far(cores, addresses[index]))

    return diagnose_gpus(hosts, ranks.each(choice))


def _seen() -> tuple[set[int], list[str], list[str]]:
    """Return the cores that this rank is bound to, and the names and addresses of the GPUs that it sees."""
    accelerators = importlib.import_module("lsam_hpc.optim.accelerators")
    kind = accelerators.kind_of("auto")
    return os.sched_getaffinity(0), accelerators.identities(kind), accelerators.addresses(kind)


def diagnose_gpus(hosts: Sequence[str], answers: Sequence[Choice | str]) -> Finding:
    """Return the finding on the GPUs.

    Args:
        hosts: of each rank.
        answers: of each rank, or an error message.
    """
    choices = [answer for answer in answers if not isinstance(answer, str)]
    if len(choices) < len(answers):
        return Finding("gpus", "fail", next(answer for answer in answers if isinstance(answer, str)))
    if not any(choice.visible for choice in choices):
        if most := max(choice.present for choice in choices):
            return Finding("gpus", "warn", f"torch can use none of a node's {most}: install a torch for them")
        return Finding("gpus", "ok", "none")
    if without := [rank for rank, choice in enumerate(choices) if not choice.visible]:
        return Finding("gpus", "fail", f"ranks {without} see none, others do: ask for GPUs on every node")
    used = {f"{host} {choice.used}" for host, choice in zip(hosts, choices, strict=True)}
    idle = {f"{host} {gpu}" for host, choice in zip(hosts, choices, strict=True) for gpu in choice.visible} - used
    text = f"{len(hosts)} ranks on {len(used)} GPUs"
    if max(len(choice.visible) for choice in choices) > 1:
        first = [str(choice.index) for host, choice in zip(hosts, choices, strict=True) if host == hosts[0]]
        text += f", the ranks of {hosts[0]} use {' '.join(first)}"
    if idle:
        text += f", idle: {', '.join(sorted(idle))}"
    if far := [rank for rank, choice in enumerate(choices) if choice.far]:
        text += f", on another NUMA node than the cores of ranks {far}: check the binding"
    shared = len(used) < len(hosts)
    return Finding("gpus", "fail" if idle and shared else "warn" if idle or shared or far else "ok", text)
