"""Devices next to the cores that a rank is bound to, as /sys tells, and chains on nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

SYS = Path("/sys")
# Of data-center GPUs, which drive no display: 3D controller, other display controller, processing accelerator.
_CLASSES = ("0x0302", "0x0380", "0x1200")


def device_indices(cores: Sequence[Collection[int]], visible: Sequence[Sequence[str]], sys: Path = SYS) -> list[int]:
    """Return the index of each rank's device among those that it sees, for all ranks of a node.

    A rank takes the device with most of its cores next to it, and no device gets two ranks before each has one. Ranks
    with equal claims take devices in order. If no rank is nearer to one device than to another, rank i of the node
    takes device i modulo their number.

    Args:
        cores: of each rank, which it is bound to.
        visible: of each rank, the PCI addresses of the devices that it sees, "" if unknown.
        sys: where the system's tree is mounted.
    """
    near = {address: near_cores(address, sys) for address in set().union(*visible)}
    shares = [
        [len(near[address].intersection(own)) / max(1, len(own)) for address in seen]
        for own, seen in zip(cores, visible, strict=True)
    ]
    indices = [rank % max(1, len(seen)) for rank, seen in enumerate(visible)]
    if all(len(set(row)) <= 1 for row in shares):
        return indices
    claims = sorted(
        (-share, min(cores[rank], default=0), rank, index)
        for rank, row in enumerate(shares)
        for index, share in enumerate(row)
    )
    taken: Counter[str] = Counter()
    left, most = {rank for rank, seen in enumerate(visible) if seen}, 0
    while left:
        most += 1
        for _, _, rank, index in claims:
            if rank in left and taken[visible[rank][index]] < most:
                indices[rank] = index
                taken[visible[rank][index]] += 1
                left.remove(rank)
    return indices


def is_far(cores: Collection[int], address: str, sys: Path = SYS) -> bool:
    """Return whether none of a rank's cores is next to a device; False if that is unknown."""
    near = near_cores(address, sys)
    return bool(near) and near.isdisjoint(cores)


def near_cores(address: str, sys: Path = SYS) -> frozenset[int]:
    """Return the cores of the NUMA node that a PCI address belongs to; empty if unknown."""
    try:
        text = (sys / "bus/pci/devices" / address / "local_cpulist").read_text() if address else ""
    except OSError:
        return frozenset()
    numbers: set[int] = set()
    for word in text.strip().split(","):  # 0-15,64-79
        first, _, last = word.partition("-")
        if first.isdecimal():
            numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def accelerators(sys: Path = SYS) -> list[str]:
    """Return the PCI addresses of this node's data-center GPUs, whether torch can use them or not."""
    addresses = []
    for folder in sorted((sys / "bus/pci/devices").glob("*")):
        try:
            kind = (folder / "class").read_text()
        except OSError:
            continue
        if kind.startswith(_CLASSES):
            addresses.append(folder.name)
    return addresses


def spanning_chains(hosts: Sequence[str], parts: int) -> int:
    """Return the number of chains that span nodes; 0 if no order of the ranks keeps every chain inside a node.

    Args:
        hosts: name of each rank's node.
        parts: neighbouring ranks of a chain, a divisor of the number of ranks.
    """
    if any(ranks % parts for ranks in Counter(hosts).values()):
        return 0
    return sum(len(set(hosts[first : first + parts])) > 1 for first in range(0, len(hosts), parts))
