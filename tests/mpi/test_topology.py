"""Gossip and leader: chains that are coupled through published states."""

import numpy as np
import pytest
import torch

from lsam_hpc import LSAM, InputError
from lsam_hpc.distributed.topology import GossipCenter, LeaderCenter
from lsam_hpc.rma import PeerTable, barrier
from tests.helpers.problems import Bowl, batches, closure_of, network

A, LR = 0.5, 0.25


def bowl(rank, size=3):
    return Bowl(np.linspace(-1, 1, size), A, float(rank), torch.float64)


@pytest.mark.mpi(np=[2, 4])
def test_gossip_with_all_peers_matches_the_recursion(comm):
    # Synchronous: at an exchange every rank reads the states that the others published at the exchange before.
    pull = 0.1
    model = bowl(comm.rank)
    sgd = torch.optim.SGD(model.parameters(), lr=LR)
    start = model.value
    xs = [start.copy() for _ in range(comm.size)]
    ys = [start.copy() for _ in range(comm.size)]
    published = [start.copy() for _ in range(comm.size)]
    gossip = {"topology": "gossip", "graph": "ring", "degree": comm.size - 1}
    with LSAM(sgd, rho=0.0, pull=pull, period=1, overlap=False, comm=comm, **gossip) as opt:
        for _ in range(12):
            barrier(comm)
            # All ranks read before any publishes, so the expected values use the states of the exchange before.
            xs = [x - LR * A * (x - rank) for rank, x in enumerate(xs)]
            published_next = []
            for rank in range(comm.size):
                others = [(rank + hop) % comm.size for hop in _ring(comm.size)]
                for other in others:
                    ys[rank] = ys[rank] + pull * (published[other] - ys[rank])
                delta = pull * (xs[rank] - ys[rank])
                published_next.append(xs[rank])
                ys[rank], xs[rank] = ys[rank] + delta, xs[rank] - delta
            _step_in_two_halves(comm, opt, model)
            published = published_next
            np.testing.assert_allclose(model.value, xs[comm.rank], rtol=0, atol=1e-12)
            with opt.center(model):
                np.testing.assert_allclose(model.value, ys[comm.rank], rtol=0, atol=1e-12)


def _ring(size):
    hops = []
    for step in range(1, size):
        hops += [step, -step]
    return hops[: size - 1]


def _step_in_two_halves(comm, opt, model):
    """Take a step in which no rank publishes before all have read."""
    publish = opt.communication.center.publish

    def publish_late(state):
        copy = state.clone()
        barrier(comm)
        publish(copy)

    opt.communication.center.publish = publish_late
    opt.step(model.closure(opt))
    opt.communication.center.publish = publish


@pytest.mark.mpi(np=[2, 4])
def test_gossip_rejects_bad_states_of_peers(comm):
    with PeerTable(comm, 4, "float64") as peers:
        peers.states.publish(np.ones(4))
        barrier(comm)
        start = torch.ones(4, dtype=torch.float64)
        center = GossipCenter(peers, list, start, "ring", comm.size - 1, max_delta_ratio=10.0, seed=0)
        center.begin_exchange(torch.ones(4), 0.1)
        barrier(comm)
        if comm.rank == 0:
            peers.states.publish(np.array([np.nan, 0, 0, 0]))
        if comm.rank == 1:
            peers.states.publish(np.full(4, 1e30))
        barrier(comm)
        center.begin_exchange(torch.ones(4), 0.1)
        out = torch.empty(4, dtype=torch.float64)
        center.read(out)
        np.testing.assert_array_equal(out, np.ones(4))
        barrier(comm)


@pytest.mark.mpi(np=[2, 4])
def test_all_are_pulled_to_the_leader_and_the_leader_is_not_pulled(comm):
    with PeerTable(comm, 2, "float64") as peers:
        unresponsive = set()
        center = LeaderCenter(peers, lambda: unresponsive)
        peers.states.publish(np.full(2, float(comm.rank)))
        leader = comm.size - 1
        peers.update(1, 1, 0.5 if comm.rank == leader else 1.0 + comm.rank)
        barrier(comm)
        assert center.leader == leader
        sample = torch.full((2,), 7.0, dtype=torch.float64)
        out = torch.empty(2, dtype=torch.float64)
        with center.exclusive_turn():
            center.begin_exchange(sample, 0.1)
            center.read(out)
        assert out.tolist() == ([7.0, 7.0] if comm.rank == leader else [float(leader)] * 2)
        center.peek(out)
        assert out.tolist() == [float(leader)] * 2
        barrier(comm)
        if comm.rank == leader:
            peers.update(2, 2, float("nan"))
        barrier(comm)
        assert center.leader == 0
        unresponsive.add(0)
        assert center.leader == (leader if comm.size == 2 else 1)  # of 2 ranks, the other's loss is NaN
        unresponsive.clear()
        barrier(comm)
        peers.update(3, 3, float(comm.size - comm.rank))
        barrier(comm)
        if comm.rank == leader:
            # Its sample has overflowed: it returns to its published state.
            with center.exclusive_turn():
                center.begin_exchange(torch.full((2,), float("nan"), dtype=torch.float64), 0.1)
                center.read(out)
            assert out.tolist() == [float(leader)] * 2
        barrier(comm)


@pytest.mark.mpi(np=[1, 2, 4])
def test_every_topology_and_coupling_trains(comm):
    for topology in ("gossip", "leader"):
        for coupling in ("elastic", "kernel", "restart"):
            for publish in ("sample", "perturbed"):
                model = network(torch.float32)
                base = torch.optim.SGD(model.parameters(), lr=0.3)
                with LSAM(
                    base, rho=0.05, period=2, topology=topology, coupling=coupling, publish=publish, comm=comm
                ) as opt:
                    losses = [
                        float(opt.step(closure_of(model, opt, x, y)))
                        for x, y in [next(batches(1, torch.float32, seed=comm.rank))] * 60
                    ]
                    opt.drain()
                    with opt.center(model):
                        assert all(torch.isfinite(p).all() for p in model.parameters())
                # A chain that follows a leader need not improve on its own mini-batch.
                assert min(comm.allgather(losses[-1])) < 0.9 * losses[0]
                assert opt.stats()["exchanges"] == 30


@pytest.mark.mpi(np=[2])
def test_refuses_options_that_exclude_each_other(comm):
    def make(**options):
        model = network()
        LSAM(torch.optim.SGD(model.parameters(), lr=0.1), comm=comm, **options)

    for options, message in (
        ({"topology": "star"}, "topology: expected one of center, gossip, leader, found 'star'"),
        ({"degree": 0}, "degree: expected a whole number of ranks >= 1, found 0"),
        ({"group_size": 3}, "group_size: expected a divisor of the 2 ranks, found 3"),
        ({"heartbeat_timeout": 0}, "heartbeat_timeout: expected a number of seconds > 0, found 0"),
        ({"topology": "gossip", "group_size": 2}, "group_size: expected 1 without a shared center, found 2"),
        ({"topology": "leader", "mode": "lockstep"}, "topology: expected center in lockstep, found leader"),
        ({"wire_dtype": "float8"}, "wire_dtype: expected one of float32, bfloat16, float16, found 'float8'"),
    ):
        with pytest.raises(InputError) as caught:
            make(**options)
        assert str(caught.value) == message


@pytest.mark.mpi(np=[1, 2])
def test_losses_that_are_not_finite_are_ignored(comm):
    model = bowl(comm.rank)
    with LSAM(torch.optim.SGD(model.parameters(), lr=LR), topology="leader", comm=comm) as opt:
        for loss in (2.0, float("nan"), float("inf"), 1.0):
            opt.observe(loss)
        assert opt._loss.value == pytest.approx(0.9 * 2.0 + 0.1 * 1.0)


@pytest.mark.mpi(np=[2])
def test_a_loaded_state_is_published(comm):
    for topology in ("gossip", "leader"):
        options = {"topology": topology, "period": 1, "rho": 0.0, "overlap": False, "comm": comm}
        model = Bowl([5.0], 0.0)
        with LSAM(torch.optim.SGD(model.parameters(), lr=0.0), **options) as opt:
            opt.step(model.closure(opt))
            barrier(comm)
            state = opt.state_dict()
            barrier(comm)
        model = Bowl([-1.0], 0.0)
        with LSAM(torch.optim.SGD(model.parameters(), lr=0.0), **options) as opt:
            opt.load_state_dict(state)
            opt.step(model.closure(opt))
            assert model.value.tolist() == [5.0]
            with opt.center(model):
                assert model.value.tolist() == [5.0]
            barrier(comm)
