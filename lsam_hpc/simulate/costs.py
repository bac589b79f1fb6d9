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
# Passes of FSDP2 move (G - 1) / G of the parameters three times: gathered forward and backward, gradients scattered.
_SHARD_ROUNDS = 3
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
        self.model = 4.0 * job.parameters  # bytes
        self.vector = self.model / job.part  # bytes that a rank exchanges
        self.weights, self._owners, self._near = self._spread()
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

    def group_seconds(self, passes: int = 2) -> float:
        """Return the seconds of a step's communication in a group that do not overlap with its passes.

        Args:
            passes: of the step; a step of one pass averages once. Default 2.

        An allreduce is the faster of a ring and a tree, as NCCL chooses; a tree has the ring's bandwidth and
        logarithmically many hops. FSDP2's all-gathers and reduce-scatter are three halves of a ring.

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
        ring = 2 * (size - 1) / size * self.model / rate + 2 * (size - 1) * hop
        tree = 2 * self.model / rate + 2 * math.ceil(math.log2(size)) * hop
        seconds = _SHARD_ROUNDS / 2 * ring if job.fully_shard else min(ring, tree)
        return self._averages(passes) * max(0.0, seconds - job.hidden * job.step / 2)

    def group_bytes(self, passes: int = 2) -> float:
        """Return the bytes that a rank sends to its group in a step, by rings: gradients, and FSDP2's parameters."""
        size = self.job.group_size
        rounds = _SHARD_ROUNDS if self.job.fully_shard else 2
        return self._averages(passes) * rounds * (size - 1) / size * self.model

    def _averages(self, passes: int) -> int:
        """Return the number of passes whose gradients are averaged over a group; FSDP2 averages those of each pass."""
        return passes if self.job.group_ascent == "averaged" or self.job.fully_shard else 1

    def rank_bytes(self) -> float:
        """Return the bytes of vectors that a rank holds between steps with SGD, or a group's leader; NaN if unknown.

        Parameters, gradients, momentum and SAM's perturbation; the center as last read, the staged samples, and what
        couplings keep besides; the rank's part of the center. Not counted: activations, what FSDP2 gathers for a pass.
        """
        job = self.job
        if not job.period:
            return 4 * self.vector
        if job.topology != "center" or job.wire_dtype != "float32":
            return math.nan
        owners = job.shards or job.ranks // job.part
        return (4 + 1 + job.max_delay + (job.coupling != "elastic") + 1 / owners) * self.vector

    def exchange_bytes(self) -> float:
        """Return the bytes that a rank reads and adds in one exchange, as the log counts them."""
        job = self.job
        if job.topology != "center":
            return 2 * self.vector * (job.degree if job.topology == "gossip" else 1)
        return 2.0 * WIRE_BYTES[job.wire_dtype] * job.parameters / job.part

    def _spread(self) -> tuple[Array, Array, Array]:
        """Return where the owners of the read data are.

        Returns:
            By node: the fraction of all data there, the owners there of what a rank of the node reads (a mean), and the
            fraction of it that they own. With `fully_shard` a rank reads its own shard only, from those that hold it.
        """
        job, per_node = self.job, self.machine.ranks_per_node
        if job.fully_shard:
            ranks = np.arange(job.ranks)
            held = np.zeros((self.nodes, job.group_size))  # copies of each shard
            np.add.at(held, (ranks // per_node, ranks % job.group_size), 1)
            total = held.sum(1)
            owners = (held**2).sum(1) / total  # a rank of the node sees as many as hold its shard
            return total / job.ranks, owners, owners / job.chains
        count = np.zeros(self.nodes)
        if job.topology == "leader":
            count[0] = 1
        else:
            shards = job.ranks if job.topology == "gossip" or job.shards is None else job.shards
            np.add.at(count, (np.arange(shards) * job.ranks // shards) // per_node, 1)
        return count / count.sum(), count, count / count.sum()

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
        if job.group_size > 1 and not job.fully_shard:
            near = min(job.group_size, m.ranks_per_node)
            spans = job.group_size > near
            seconds = self.vector / m.copy + (self.vector / m.rank_rate + m.latency if spans else 0.0)
            self._busy(PASS_ON, seconds, (near - 1) * self.vector / seconds)

    def _remote(self) -> None:
        """Set the costs of what moves to and from the owners."""
        job, m = self.job, self.machine
        if job.topology == "center":
            wire = WIRE_BYTES[job.wire_dtype] * job.parameters / job.part
            half = job.wire_dtype != "float32"
            owners = job.chains if job.fully_shard else self._owners.sum()
            others = owners - self._owners
            away = np.where(others > 0, 1.0, 0.0)
            self._transfer(READ, wire, m.read_factor, 1.0, 2 * m.latency * away)
            # A 16-bit wire fills all owners' inboxes at once. Otherwise all owners add at once, and the slowest one
            # decides; but an MPI that fetches, adds and writes back handles one message after the other.
            reply = m.latency + 2 * m.help  # the helper thread replies at its next poll
            messages = others * math.ceil(wire / owners / MESSAGE)
            each = ADD_ROUNDS * messages if m.add_passes > 1 else 0.0
            waits: Array = (3 * m.latency + m.help if half else (each + ADD_FLUSHES) * reply) * away
            self._transfer(ADD, wire, m.add_factor, 1.0 if half else m.add_passes, waits)
            if half:
                self.far[:, ADD, MEMORY] += FOLD * self.vector / self.seconds[:, ADD]
        else:
            away = np.where(self._near < 1, 1.0, 0.0)
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
        near = size * self._near
        away = size - near
        seconds = near * factor / m.copy + passes * away / min(m.rank_rate, m.nic) + waits
        self.seconds[:, kind] = seconds
        forward, backward = (OUT, IN) if kind == ADD else (IN, OUT)
        extra = passes - 1
        self.own[:, kind, MEMORY] = (near + passes * away) / seconds
        self.own[:, kind, forward] = away / seconds
        self.own[:, kind, backward] = extra * away / seconds
        # The weights of the other nodes sum to 1 less the own one's.
        reached = np.divide(away, 1 - self.weights, out=np.zeros_like(away), where=away > 0)
        reach = reached / seconds
        self.far[:, kind, MEMORY] = passes * reach
        self.far[:, kind, backward] = reach
        self.far[:, kind, forward] = extra * reach
        direction = forward - OUT  # 0: out, 1: in
        self.moved[:, kind, direction], self.moved[:, kind, 1 - direction] = away, extra * away
        self.reached[:, kind, 1 - direction] = reached
        self.reached[:, kind, direction] = extra * self.reached[:, kind, 1 - direction]
