"""Processor sharing against its closed forms."""

import numpy as np
import pytest
import simpy

from lsam_hpc.simulate.fluid import Fluid


def fluid(env, own, far=None, capacity=(1.0,), weights=None, core=None):
    own = np.array(own, float)
    far = np.zeros_like(own) if far is None else np.array(far, float)
    nodes = len(own)
    weights = np.full(nodes, 1 / nodes) if weights is None else np.array(weights, float)
    core = np.full(len(capacity), np.inf) if core is None else np.array(core, float)
    return Fluid(env, own, far, weights=weights, capacity=np.array(capacity, float), core=core)


def ends(env, pieces):
    """Start pieces (time, fluid, node, kind, seconds), and return the time at which each ends."""
    times = {}

    def one(i, at, model, *piece):
        yield env.timeout(at)
        yield model.work(*piece)
        times[i] = env.now

    for i, piece in enumerate(pieces):
        env.process(one(i, *piece))
    env.run()
    return [times[i] for i in range(len(pieces))]


def test_equal_pieces_share_equally():
    env = simpy.Environment()
    model = fluid(env, [[[1.0]]])
    # Alone for 1 s; two for 2 s; then the first has 1 s done of 3.
    assert ends(env, [(0, model, 0, 0, 2.0), (1, model, 0, 0, 1.0)]) == pytest.approx([3.0, 3.0])


def test_three_pieces_by_hand():
    env = simpy.Environment()
    model = fluid(env, [[[1.0]]])
    # 0-1: a alone, 1 done. 1-3: a and b, each 1. 3-6: three, each 1: b (2 of 2) ends at 6. a has 3, c has 1 of 2.
    # a needs 1.5 more, c 1: c ends at 8, a at 8.5.
    times = ends(env, [(0, model, 0, 0, 4.5), (1, model, 0, 0, 2.0), (3, model, 0, 0, 2.0)])
    assert times == pytest.approx([8.5, 6.0, 8.0])


def test_halting_a_piece_frees_its_share_and_returns_its_remaining_seconds():
    env = simpy.Environment()
    model = fluid(env, [[[1.0]]])
    first, second = model.work(0, 0, 4.0), model.work(0, 0, 2.0)
    env.run(2.0)  # 1 s done of each
    assert model.halt(0, 0, first) == pytest.approx(3.0)
    env.run(second)
    assert env.now == pytest.approx(3.0)
    again = model.work(0, 0, 3.0)
    env.run(again)
    assert env.now == pytest.approx(6.0)
    assert not first.triggered
    assert model.done[0, 0] == 2


def test_pieces_below_the_capacity_run_at_full_rate():
    env = simpy.Environment()
    model = fluid(env, [[[1.0]]], capacity=(3.0,))
    assert ends(env, [(0, model, 0, 0, 2.0)] * 3) == pytest.approx([2.0] * 3)


def test_pieces_share_the_far_end():
    env = simpy.Environment()
    # All weight on node 0: nodes 1 and 2 read from its one card, at half speed each; a third does not touch it.
    far = [[[1.0], [0.0]]] * 3
    model = fluid(env, [[[0.0], [0.5]]] * 3, far, weights=(1, 0, 0))
    assert ends(env, [(0, model, 1, 0, 1.0), (0, model, 2, 0, 1.0), (0, model, 2, 1, 1.0)]) == pytest.approx([2, 2, 1])


def test_the_network_s_core_is_shared():
    env = simpy.Environment()
    model = fluid(env, [[[0.0]]] * 4, [[[1.0]]] * 4, capacity=(10.0,), core=(0.75,))
    # Each piece loads the network's core with 1: the four have a load of 4 on a capacity of 0.75.
    assert ends(env, [(0, model, n, 0, 0.75) for n in range(4)]) == pytest.approx([4.0] * 4)


def test_unused_capacity_goes_to_other_pieces():
    env = simpy.Environment()
    # Kind 0 uses the first resource, kind 2 the second, kind 1 both.
    model = fluid(env, [[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]], capacity=(1.0, 1.0))
    times = ends(env, [(0, model, 0, 0, 10.0), (0, model, 0, 1, 10.0), (0, model, 0, 2, 10.0)])
    assert max(times) == pytest.approx(20.0)  # each resource has 20 s of work in all and is never idle


def test_a_piece_limited_by_another_resource_frees_its_share():
    env = simpy.Environment()
    # Kind 1 runs at a quarter of its rate, and so uses a quarter of the first resource: three quarters are free, of
    # which two rounds give 8/11.
    model = fluid(env, [[[1.0, 0.0], [1.0, 4.0]]], capacity=(1.0, 1.0))
    first, _ = ends(env, [(0, model, 0, 0, 1.0), (0, model, 0, 1, 1.0)])
    assert 4 / 3 <= first <= 11 / 8 + 1e-9


def test_an_m_d_1_queue_of_processor_sharing():
    # Poisson arrivals of equal pieces at load 0.6: by processor sharing a piece stays 1 / (1 - load) times as long, on
    # average, whatever its distribution (Kleinrock 1976, Queueing Systems II, 4.4).
    env, draw = simpy.Environment(), np.random.default_rng(1)
    model = fluid(env, [[[1.0]]])
    arrivals = np.cumsum(draw.exponential(1 / 0.6, 8000))
    stays = np.array(ends(env, [(at, model, 0, 0, 1.0) for at in arrivals])) - arrivals
    # Batch means of 40 x 200 pieces: 4 standard errors.
    batches = stays[:8000].reshape(40, 200).mean(1)
    assert abs(batches.mean() - 2.5) < 4 * batches.std(ddof=1) / np.sqrt(40)
    assert batches.std(ddof=1) / np.sqrt(40) < 0.15


def test_no_work_is_done_at_once():
    env = simpy.Environment()
    model = fluid(env, [[[1.0]]])
    assert ends(env, [(1.0, model, 0, 0, 0.0)]) == [1.0]
    assert model.done[0, 0] == 1
