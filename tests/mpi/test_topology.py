"""Gossip and leader: chains that meet through what the others publish."""

import numpy as np
import pytest
import torch

from lsam_hpc import LSAM, InputError
from lsam_hpc.rma import Peers, barrier
from lsam_hpc.topology import GossipCenter, LeaderCenter
from tests.helpers.problems import Bowl, batches, closure_of, network

A, LR = 0.5, 0.25


def bowl(rank, size=3):
    return Bowl(np.linspace(-1, 1, size), A, float(rank), torch.float64)


@pytest.mark.mpi(np=[2, 4])
def test_gossip_with_all_peers_is_the_recursion(comm):
    # Inline, in step: at an exchange every rank reads what the others published at the one before.
    pull = 0.1
    model = bowl(comm.rank)
    sgd = torch.optim.SGD(model.parameters(), lr=LR)
    start = model.value
    xs = [start.copy() for _ in range(comm.size)]
    ys = [start.copy() for _ in range(comm.size)]
    seen = [start.copy() for _ in range(comm.size)]
    gossip = {"topology": "gossip", "graph": "ring", "degree": comm.size - 1}
    with LSAM(sgd, rho=0.0, pull=pull, period=1, overlap=False, comm=comm, **gossip) as opt:
        for _ in range(12):
            barrier(comm)
            # All read before anyone publishes: the closure's part is over when all have come here.
            xs = [x - LR * A * (x - rank) for rank, x in enumerate(xs)]
            published = []
            for rank in range(comm.size):
                others = [(rank + hop) % comm.size for hop in _ring(comm.size)]
                for other in others:
                    ys[rank] = ys[rank] + pull * (seen[other] - ys[rank])
                delta = pull * (xs[rank] - ys[rank])
                published.append(xs[rank])
                ys[rank], xs[rank] = ys[rank] + delta, xs[rank] - delta
            _step_in_two_halves(comm, opt, model)
            seen = published
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
    share = opt.links.center.share

    def late(state):
        kept = state.clone()
        barrier(comm)
        share(kept)

    opt.links.center.share = late
    opt.step(model.closure(opt))
    opt.links.center.share = share


@pytest.mark.mpi(np=[2, 4])
def test_gossip_leaves_a_peer_s_garbage_out(comm):
    with Peers(comm, 4, "float64") as peers:
        peers.publish(np.ones(4))
        barrier(comm)
        center = GossipCenter(peers, list, torch.ones(4, dtype=torch.float64), "ring", comm.size - 1, 10.0, 0)
        center.meet(torch.ones(4), 0.1)
        barrier(comm)
        if comm.rank == 0:
            peers.publish(np.array([np.nan, 0, 0, 0]))
        if comm.rank == 1:
            peers.publish(np.full(4, 1e30))
        barrier(comm)
        center.meet(torch.ones(4), 0.1)
        out = torch.empty(4, dtype=torch.float64)
        center.read(out)
        np.testing.assert_array_equal(out, np.ones(4))
        barrier(comm)


@pytest.mark.mpi(np=[2, 4])
def test_all_are_pulled_to_the_leader_and_the_leader_to_nobody(comm):
    with Peers(comm, 2, "float64") as peers:
        silent = set()
        center = LeaderCenter(peers, lambda: silent)
        peers.publish(np.full(2, float(comm.rank)))
        leader = comm.size - 1
        peers.beat(1, 1, 0.5 if comm.rank == leader else 1.0 + comm.rank)
        barrier(comm)
        assert center.leader == leader
        sample = torch.full((2,), 7.0, dtype=torch.float64)
        out = torch.empty(2, dtype=torch.float64)
        with center.turn():
            center.meet(sample, 0.1)
            center.read(out)
        assert out.tolist() == ([7.0, 7.0] if comm.rank == leader else [float(leader)] * 2)
        center.look(out)
        assert out.tolist() == [float(leader)] * 2
        barrier(comm)
        if comm.rank == leader:
            peers.beat(2, 2, float("nan"))
        barrier(comm)
        assert center.leader == 0
        silent.add(0)
        assert center.leader == (leader if comm.size == 2 else 1)  # of 2 the other has no loss left
        silent.clear()
        barrier(comm)
        peers.beat(3, 3, float(comm.size - comm.rank))
        barrier(comm)
        if comm.rank == leader:
            # Its sample has overflown: it goes back to what it published.
            with center.turn():
                center.meet(torch.full((2,), float("nan"), dtype=torch.float64), 0.1)
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
                # Whoever follows a leader need not get better on its own mini-batch.
                assert min(comm.allgather(losses[-1])) < 0.9 * losses[0]
                assert opt.stats()["exchanges"] == 30


@pytest.mark.mpi(np=[2])
def test_refuses_what_does_not_go_together(comm):
    def make(**options):
        model = network()
        LSAM(torch.optim.SGD(model.parameters(), lr=0.1), comm=comm, **options)

    for options, message in (
        ({"topology": "star"}, "topology: expected one of center, gossip, leader, found 'star'"),
        ({"degree": 0}, "degree: expected a whole number of ranks >= 1, found 0"),
        ({"group_size": 3}, "group_size: expected a divisor of the 2 ranks, found 3"),
        ({"silent_after": 0}, "silent_after: expected a number of seconds > 0, found 0"),
        ({"topology": "gossip", "group_size": 2}, "group_size: expected 1 without a shared center, found 2"),
        ({"topology": "leader", "schedule": "lockstep"}, "topology: expected center in lockstep, found leader"),
        ({"wire_dtype": "float8"}, "wire_dtype: expected one of float32, bfloat16, float16, found 'float8'"),
    ):
        with pytest.raises(InputError) as caught:
            make(**options)
        assert str(caught.value) == message


@pytest.mark.mpi(np=[1, 2])
def test_one_loss_that_overflows_is_forgotten(comm):
    model = bowl(comm.rank)
    with LSAM(torch.optim.SGD(model.parameters(), lr=LR), topology="leader", comm=comm) as opt:
        for loss in (2.0, float("nan"), float("inf"), 1.0):
            opt.observe(loss)
        assert opt._loss.value == pytest.approx(0.9 * 2.0 + 0.1 * 1.0)


@pytest.mark.mpi(np=[2])
def test_a_loaded_state_is_what_the_others_read(comm):
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
