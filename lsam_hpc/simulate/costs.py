"""Durations and resource use of each part of an exchange."""

from __future__ import annotations

import math

import numpy as np

from lsam_hpc.simulate.describe import WIRE_BYTES, Job, Machine
from lsam_hpc.simulate.fluid import Array

WORK, HOLD, LINK, PASS_ON, READ, COMPUTE, ADD = range(7)  # kinds of work
KINDS = 7
CORES, MEMORY, OUT, IN = range(4)  # a node's resources
RESOURCES = 4
# Time to round to and from a 16-bit wire, in copies of the float32 vector (lsam bench exchange).
DECODE, ENCODE, FOLD = 0.75, 2.8, 2.5
# Replies that an add waits for: for the data, the shards' versions and the total; and 4 per message where the MPI
# locks, fetches, writes back and unlocks. Measured by tests/simulate/answers.py.
ADD_FLUSHES, ADD_ROUNDS = 3, 4
MESSAGE = 1 << 20  # bytes of the longest message, as in rma.Center


class Costs:
    """Seconds, bytes and resource use of each kind of work of a job on a machine.

    Args:
        job: the job; its ranks fill the nodes in order.
        machine: the machine, with as many nodes as the job needs.
    """

    def __init__(self, job: Job, machine: Machine) -> None:
        self.job, self.machine = job, machine
        self.nodes = -(-job.ranks // machine.ranks_per_node)
        self.vector = 4.0 * job.parameters
        self.weights, self._owners = self._spread()
        shape = (self.nodes, KINDS)
        self.seconds = np.zeros(shape)  # on an idle machine
        self.own, self.far = np.zeros((*shape, RESOURCES)), np.zeros((*shape, RESOURCES))
        self.moved = np.zeros((*shape, 2))  # bytes through the own node's card, out and in
        self.reached = np.zeros((*shape, 2))  # bytes through other nodes' cards, if their weights sum to 1
        self.own[:, :, CORES] = 1.0
        self.seconds[:, WORK] = 1.0
        self._local()
        self._remote()
        m = machine
        self.capacity = np.array([m.cores, m.memory, m.nic, m.nic])
        across = m.bisection * m.nic * self.nodes
        self.core = np.array([np.inf, np.inf, across, across])

    def node(self, rank: int) -> int:
        """Return the node of a rank."""
        return rank // self.machine.ranks_per_node

    def allreduce(self, passes: int = 2) -> float:
        """Return the seconds of a step's gradient allreduces that do not overlap with the backward passes.

        Args:
            passes: of the step; a step of one pass averages once. Default 2.

        The faster of a ring and a tree, as NCCL chooses; a tree has the ring's bandwidth and logarithmically many hops.

        Source: Thakur et al. 2005, "Optimization of Collective Communication Operations in MPICH"; trees: Sanders et
        al. 2009, "Two-tree algorithms for full bandwidth broadcast, reduction and scan".
        """
        job, m = self.job, self.machine
        size = job.group_size
        if size == 1:
            return 0.0
        inside = m.link or m.copy / 2
        spans = size > m.ranks_per_node or m.ranks_per_node % size != 0
        rate = min(inside, m.nic * min(1.0, m.bisection * 2)) if spans else inside
        hop = m.latency if spans else m.latency / 2
        ring = 2 * (size - 1) / size * self.vector / rate + 2 * (size - 1) * hop
        tree = 2 * self.vector / rate + 2 * math.ceil(math.log2(size)) * hop
        averages = passes if job.group_ascent == "averaged" else 1
        return averages * max(0.0, min(ring, tree) - job.hidden * job.step / 2)

    def exchange_bytes(self) -> float:
        """Return the bytes that one exchange reads and adds, as the log counts them."""
        job = self.job
        if job.topology != "center":
            return 2 * self.vector * (job.degree if job.topology == "gossip" else 1)
        return 2.0 * WIRE_BYTES[job.wire_dtype] * job.parameters

    def _spread(self) -> tuple[Array, Array]:
        """Return the fraction of the read data on each node, and the number of its owners there."""
        job = self.job
        count = np.zeros(self.nodes)
        if job.topology == "leader":
            count[0] = 1
        else:
            shards = job.ranks if job.topology == "gossip" or job.shards is None else job.shards
            np.add.at(count, (np.arange(shards) * job.ranks // shards) // self.machine.ranks_per_node, 1)
        return count / count.sum(), count

    def _local(self) -> None:
        """Set the costs within a node: staging and applying, the device's link, a group's copies, arithmetic."""
        job, m = self.job, self.machine
        copies = m.arithmetic
        if job.topology == "center" and job.wire_dtype != "float32":
            copies += DECODE + ENCODE
        self._busy(COMPUTE, copies * self.vector / m.copy, m.copy)
        if m.host_link:
            # The device's memory is not shared.
            self.seconds[:, HOLD] = m.held / 2 * self.vector / m.device_copy
            self._busy(LINK, self.vector / m.host_link, m.host_link)
        else:
            self._busy(HOLD, m.held / 2 * self.vector / m.copy, m.copy)
        if job.group_size > 1:
            near = min(job.group_size, m.ranks_per_node)
            spans = job.group_size > near
            seconds = self.vector / m.copy + (self.vector / m.rank_rate + m.latency if spans else 0.0)
            self._busy(PASS_ON, seconds, (near - 1) * self.vector / seconds)

    def _remote(self) -> None:
        """Set the costs of what moves to and from the owners."""
        job, m = self.job, self.machine
        if job.topology == "center":
            wire = WIRE_BYTES[job.wire_dtype] * job.parameters
            half = job.wire_dtype != "float32"
            others = self._owners.sum() - self._owners
            away = np.where(others > 0, 1.0, 0.0)
            self._transfer(READ, wire, m.read_factor, 1.0, 2 * m.latency * away)
            # A 16-bit wire fills all owners' inboxes at once. Otherwise all owners add at once, and the slowest one
            # decides; but an MPI that fetches, adds and writes back handles one message after the other.
            reply = m.latency + 2 * m.help  # the helper thread replies at its next poll
            messages = others * math.ceil(wire / self._owners.sum() / MESSAGE)
            each = ADD_ROUNDS * messages if m.add_passes > 1 else 0.0
            waits: Array = (3 * m.latency + m.help if half else (each + ADD_FLUSHES) * reply) * away
            self._transfer(ADD, wire, m.add_factor, 1.0 if half else m.add_passes, waits)
            if half:
                self.far[:, ADD, MEMORY] += FOLD * self.vector / self.seconds[:, ADD]
        else:
            away = np.where(self.weights < 1, 1.0, 0.0)
            self._transfer(READ, self.exchange_bytes() / 2, m.read_factor, 1.0, 2 * m.latency * away)
            self._busy(ADD, self.vector / m.copy, m.copy)  # a chain publishes its state in its own memory

    def _busy(self, kind: int, seconds: float, memory: float) -> None:
        self.seconds[:, kind] = seconds
        self.own[:, kind, MEMORY] = memory

    def _transfer(self, kind: int, size: float, factor: float, passes: float, waits: Array) -> None:
        """Set the cost of a read or an add of `size` bytes; an add of more than one pass also reads.

        Args:
            kind: READ or ADD.
            size: bytes, summed over the owners.
            factor: copies that the part on the own node takes.
            passes: number of times that each byte crosses the network.
            waits: seconds of waiting, by node.
        """
        m = self.machine
        near = size * self.weights
        away = size - near
        seconds = near * factor / m.copy + passes * away / min(m.rank_rate, m.nic) + waits
        self.seconds[:, kind] = seconds
        forward, backward = (OUT, IN) if kind == ADD else (IN, OUT)
        extra = passes - 1
        self.own[:, kind, MEMORY] = (near + passes * away) / seconds
        self.own[:, kind, forward] = away / seconds
        self.own[:, kind, backward] = extra * away / seconds
        reach = np.where(away > 0, size / seconds, 0.0)
        self.far[:, kind, MEMORY] = passes * reach
        self.far[:, kind, backward] = reach
        self.far[:, kind, forward] = extra * reach
        direction = forward - OUT  # 0: out, 1: in
        self.moved[:, kind, direction], self.moved[:, kind, 1 - direction] = away, extra * away
        self.reached[:, kind, 1 - direction] = np.where(away > 0, size, 0.0)
        self.reached[:, kind, direction] = extra * self.reached[:, kind, 1 - direction]
