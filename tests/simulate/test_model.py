"""The simulated job against closed forms and cases worked by hand."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsam_hpc.errors import InputError
from lsam_hpc.rma.center import CHUNK_BYTES
from lsam_hpc.simulate.cores import Thread
from lsam_hpc.simulate.costs import MESSAGE, Costs
from lsam_hpc.simulate.describe import Job, Machine
from lsam_hpc.simulate.events import events
from lsam_hpc.simulate.fluid import Fluid
from lsam_hpc.simulate.model import Model
from lsam_hpc.simulate.result import result, simulate

# A copy of the vector takes 0.1 s for one thread, and for two at once too: 1,000 elements are 4,000 bytes.
HOST = Machine(
    "host",
    ranks_per_node=4,
    cores=100,
    copy=4e4,
    memory=4e6,
    nic=4e4,
    rank_rate=4e4,
    latency=0.0,
    read_factor=1.0,
    add_factor=1.0,
    arithmetic=1.0,
    held=1.0,
)
JOB = Job(ranks=1, parameters=1000, step=1.0, period=2)


def test_one_rank_without_exchanges_takes_a_step_per_step_time():
    run = simulate(replace(JOB, step=0.25, period=0), HOST, seconds=100.0)
    assert run.rate == pytest.approx(4.0, rel=1e-12)
    assert run.efficiency == pytest.approx(1.0, rel=1e-12)
    assert run.exchanges == 0
    assert math.isnan(run.staleness.mean)


def test_progress_is_shown_and_changes_nothing():
    job = replace(JOB, ranks=4, distribution="lognormal", sigma=0.3)
    for limits in ({"seconds": 50.0}, {"steps": 100}):
        parts: list[float] = []
        assert simulate(job, HOST, **limits, show=parts.append) == simulate(job, HOST, **limits)
        assert parts == sorted(parts)
        assert 90 <= len(set(parts)) <= 101
        assert 0.9 <= parts[-1] <= 1


def test_one_chain_by_hand():
    # Two steps, then 0.05 s to stage; the exchange takes 0.3 s during the third step; applying it takes 0.05 s.
    order = [(round(e.time, 9), e.kind, e.step) for e in events(JOB, HOST, seconds=4.2)]
    assert order == [
        (1.0, "step", 1),
        (2.0, "step", 2),
        (2.05, "stage", 2),
        (2.05, "read", 2),
        (2.35, "add", 2),
        (2.35, "apply", 2),
        (3.05, "step", 3),
        (4.1, "step", 4),
        (4.15, "stage", 4),
        (4.15, "read", 4),
    ]
    run = simulate(JOB, HOST, seconds=200.0)
    assert run.rate == pytest.approx(2 / 2.1)
    assert run.exchange.mean == pytest.approx(0.3)
    assert run.alone == pytest.approx(0.3)
    assert run.delay.mean == 1
    assert run.held == pytest.approx(0.05, rel=0.03)
    assert run.exchange_bytes == 2 * 4000


def test_a_chain_waits_for_an_exchange_longer_than_a_period():
    # Stage, exchange and apply: 0.05 + 9 + 0.05 s between stagings, with the two steps of 1 s in parallel.
    slow = replace(HOST, arithmetic=88.0)
    run = simulate(JOB, slow, seconds=400.0)
    assert run.rate == pytest.approx(2 / 9.1)
    assert run.delay.mean == 2
    assert run.waited == pytest.approx((9.0 - 2.0) / 2, rel=0.05)
    # Two in flight do not help one exchange thread.
    assert simulate(replace(JOB, max_delay=2), slow, seconds=900.0).rate == pytest.approx(2 / 9.0, rel=0.01)


def test_an_add_waits_for_the_slowest_owner_or_for_one_after_the_other():
    # Four nodes; a copy, and each quarter of a read or an add, in its own time; an answer takes 0.01 + 2 * 0.02 s.
    apart = replace(HOST, ranks_per_node=1, latency=0.01, help=0.02)
    job = replace(JOB, ranks=4, step=100.0)
    read, compute, answer = 0.1 + 2 * 0.01, 0.1, 0.01 + 2 * 0.02
    assert simulate(job, apart, seconds=1000.0).alone == pytest.approx(read + compute + 0.1 + 3 * answer)
    fetching = replace(apart, add_passes=2)
    add = 0.1 / 4 + 2 * 0.3 / 4 + (3 * 4 + 3) * answer
    assert simulate(job, fetching, seconds=1000.0).alone == pytest.approx(read + compute + add)


def test_messages_are_as_long_as_those_of_the_center():
    assert MESSAGE == CHUNK_BYTES


def test_staleness_of_two_chains_by_hand():
    # Both stage at the same moments: the second add comes after the first.
    both = Model(replace(JOB, ranks=2), HOST)
    both.run(60.0)
    assert [sorted(pair) for pair in zip(*(c.staleness for c in both.chains), strict=True)] == [[0, 1]] * 28
    # Steps of 1 and 1.3 s: an exchange of 0.3 s sometimes overlaps with the other chain's add.
    order = list(events(replace(JOB, ranks=2, factors={1: 1.3}), HOST, seconds=60.0))
    version, read, expected = 0, {}, []
    for event in order:
        if event.kind == "read":
            read[event.rank] = version
        if event.kind == "add":
            expected.append(version - read[event.rank])
            version += 1
    run = simulate(replace(JOB, ranks=2, factors={1: 1.3}), HOST, seconds=60.0)
    assert run.histogram == tuple(np.bincount(expected))
    assert 0 < run.staleness.mean < 0.5


@pytest.mark.parametrize("coupling", ["kernel", "restart"])
def test_other_couplings_read_after_they_add(coupling):
    kinds = [e.kind for e in events(replace(JOB, coupling=coupling), HOST, seconds=4.0)]
    assert kinds == ["step", "step", "stage", "add", "apply", "step"]
    # Read at 2.25 s and added to at 4.35 s: in lockstep each chain misses the other's add in between, or before it.
    model = Model(replace(JOB, ranks=2, coupling=coupling), HOST)
    model.run(60.0)
    assert all(c.staleness[3:] == [1] * len(c.staleness[3:]) for c in model.chains)


def test_results_are_taken_in_within_the_wait():
    order = list(events(JOB, replace(HOST, arithmetic=88.0), seconds=30.0))
    stages = [i for i, e in enumerate(order) if e.kind == "stage"]
    for before, after in itertools.pairwise(stages):
        assert [e.kind for e in order[before + 1 : after]].count("apply") == 1


def test_cores_are_shared_by_steps_that_need_them():
    # Eight ranks on two cores: a quarter of a core each, in turns of 50 ms; one turn of each may not be counted.
    job = Job(ranks=8, parameters=1, step=1.0, work=1.0, period=0)
    crowded = replace(HOST, ranks_per_node=8, cores=2)
    assert simulate(job, crowded, seconds=100.0).rate == pytest.approx(2.0, rel=8 * 0.05 / 2 / 100)
    # Half of a step needs no core. At best the cores never idle; at worst all ranks need them at the same time.
    assert 8 / (0.5 + 0.5 * 4) < simulate(replace(job, work=0.5), crowded, 100.0).rate < 4.0


def test_an_exchange_takes_turns_with_ranks_that_compute():
    # Four ranks compute on one core; an exchange, 0.3 s alone, gets every fifth turn.
    job = Job(ranks=4, parameters=1000, step=1.0, work=1.0, period=3, distribution="lognormal", sigma=0.5)
    run = simulate(job, replace(HOST, cores=1, held=0.0), seconds=400.0)
    assert run.exchange.median == pytest.approx(0.3 * 5, rel=0.03)
    assert run.alone == pytest.approx(0.3)
    # The core does all the work: steps of 1 s, and 0.3 s for every third.
    assert run.rate == pytest.approx(1 / 1.1, rel=0.03)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["elastic", "kernel", "restart"]),
    st.integers(1, 2),
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
    st.sampled_from([0.0, 0.01, 0.02]),
    st.sampled_from([1.0, 1.5, 2.0]),
    st.integers(0, 2),
    st.booleans(),
)
def test_threads_use_the_cores_that_they_have(coupling, in_flight, group_size, device, work, cores, period, shard):
    # Eight ranks on two nodes with few cores. A copy of the vector takes 1 ms.
    machine = replace(
        HOST, cores=cores, copy=4e6, memory=8e6, nic=4e6, rank_rate=4e6, host_link=4e6 * device, device_copy=4e6
    )
    in_flight = in_flight if coupling == "elastic" else 1
    job = Job(
        ranks=8,
        parameters=1000,
        step=0.02,
        work=work,
        distribution="lognormal",
        sigma=0.3,
        period=period,
        coupling=coupling,
        max_delay=in_flight,
        group_size=group_size,
        fully_shard=shard,
    )
    running, working = set(), {}

    class Watched(Thread):
        def start(self):
            running.add(self)
            super().start()

        def stop(self):
            running.discard(self)
            super().stop()

        def sleep(self):
            running.discard(self)
            super().sleep()

    class Counted(Fluid):
        def work(self, node, kind, seconds):
            event = super().work(node, kind, seconds)
            working[event] = node
            return event

        def halt(self, node, kind, event):
            del working[event]
            return super().halt(node, kind, event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lsam_hpc.simulate.model.Thread", Watched)
        patch.setattr("lsam_hpc.simulate.model.Fluid", Counted)
        model = Model(job, machine)
        while model.env.now < 1.0:
            at = model.env.now
            if model.env.peek() > at + 1e-12:  # all callbacks of this moment have run
                for event in [event for event in working if event.triggered]:
                    del working[event]
                assert len(running) == len(working)
                assert max(list(working.values()).count(node) for node in (0, 1)) <= math.ceil(cores)
            model.env.step()
    assert all(chain.steps >= 5 for chain in model.chains)


def test_bytes_are_two_vectors_an_exchange():
    job = Job(ranks=4, parameters=1000, step=1.0, period=5, wire_dtype="bfloat16")
    assert simulate(job, HOST).exchange_bytes == 2 * 2000
    # Two nodes of two: half of each vector crosses; both ranks of a node, and the others' through the same card.
    model = Model(replace(job, wire_dtype="float32"), replace(HOST, ranks_per_node=2))
    model.run(102.0)
    run = result(model)
    assert run.nodes == 2
    one_way = 4000 / 2 * 2  # bytes of a node's reads in a round; as many enter with the other node's adds
    assert run.busiest_link * 102.0 == pytest.approx(2 * one_way * (run.exchanges / 4), rel=0.1)


def test_synchronous_sam_waits_for_the_slowest():
    job = Job(ranks=64, parameters=1, step=1.0, period=0, group_size=64, factors={5: 4.0})
    machine = replace(HOST, link=1e30, nic=1e30)
    assert simulate(job, machine, 400.0).rate == pytest.approx(64 / 4)
    # The mean of the largest of n exponential lengths is the n-th harmonic number.
    harmonic = sum(1 / k for k in range(1, 65))
    run = simulate(replace(job, factors={}, distribution="exponential"), machine, 40_000.0)
    steps = run.rate * 40_000 / 64
    deviation = math.sqrt(sum(1 / k**2 for k in range(1, 65)) / steps) / harmonic
    assert run.rate == pytest.approx(64 / harmonic, rel=4 * deviation)  # 4 sigmas: once in 16,000 seeds


def test_an_allreduce_is_a_ring_minus_the_overlap():
    job = Job(ranks=4, parameters=1000, step=1.0, period=0, group_size=4)
    machine = replace(HOST, link=6000.0)
    assert simulate(job, machine, 100.0).rate == pytest.approx(4 / (1 + 2 * 3 / 4 * 4000 / 6000))
    assert simulate(replace(job, group_ascent="averaged"), machine, 100.0).rate == pytest.approx(4 / 3)
    assert simulate(replace(job, hidden=1.0), machine, 100.0).rate == pytest.approx(4 / (1 + 1.0 - 0.5))


def test_groups_exchange_as_one():
    job = Job(ranks=4, parameters=1000, step=1.0, period=2, group_size=2)
    model = Model(job, HOST)
    model.run(50.0)
    run = result(model)
    assert len(model.chains) == 2
    assert run.staleness.most <= 1
    assert run.delay.mean == 2  # a group takes a result in at its next exchange


def test_shards_move_and_hold_a_part_of_the_model():
    job = Job(ranks=8, parameters=1000, step=1.0, period=2, group_size=4, fully_shard=True)
    run = simulate(job, replace(HOST, link=1e30))
    assert run.exchange_bytes == 2 * 4000 / 4
    assert run.rank_bytes == (3 + 1 + 2 + 1 / 2) / 4 * 4000
    assert run.group_bytes == 2 * 3 * 3 / 4 * 4000  # two passes; parameters twice and gradients once by rings
    assert run.alone == pytest.approx(0.3 / 4)  # nothing is passed on to other ranks
    whole = simulate(replace(job, fully_shard=False, coupling="restart"), HOST)
    assert whole.exchange_bytes == 2 * 4000
    assert whole.rank_bytes == (3 + 1 + 2 + 1 + 1 / 8) * 4000
    assert whole.group_bytes == 2 * 3 / 4 * 4000  # gradients of the second pass
    assert simulate(replace(job, period=0), HOST).rank_bytes == 4 * 4000 / 4
    assert math.isnan(simulate(replace(JOB, topology="leader"), HOST).rank_bytes)


def test_gathers_and_scatters_of_shards_are_three_halves_of_a_ring():
    job = Job(ranks=4, parameters=1000, step=1.0, period=0, group_size=4, fully_shard=True)
    machine = replace(HOST, link=6000.0)
    each = 3 * 3 / 4 * 4000 / 6000  # of a pass
    assert simulate(job, machine, 100.0).rate == pytest.approx(4 / (1 + 2 * each))
    assert simulate(replace(job, hidden=1.0), machine, 100.0).rate == pytest.approx(4 / (1 + 2 * (each - 0.5)))
    assert simulate(replace(job, single=10**6), machine, 100.0).rate == pytest.approx(4 / (0.5 + each))


@pytest.mark.parametrize(
    ("per_node", "size", "near"),
    [
        (4, 4, [1 / 2] * 2),  # a chain per node: one of two holders on each
        (2, 4, [1 / 2] * 4),  # a chain on two nodes: the other holder is two nodes away
        (4, 2, [1 / 2] * 2),  # two chains per node: two of four holders on each
        (8, 4, [1.0]),
        (4, 8, [1.0] * 2),  # one chain: each shard has one holder
    ],
)
def test_a_shard_is_exchanged_with_its_holders(per_node, size, near):
    job = Job(ranks=8, parameters=1000, step=100.0, period=2, group_size=size, fully_shard=True)
    machine = replace(HOST, ranks_per_node=per_node)
    part, chains = 4000 / size, 8 // size
    # By brute force: holders on the rank's own node.
    same = [sum(r % size == o % size and r // per_node == o // per_node for o in range(8)) / chains for r in range(8)]
    assert same == [near[r // per_node] for r in range(8)]
    model = Model(replace(job, step=1.0), machine)
    model.run(100.0)
    run = result(model)
    each = run.exchanges / chains * per_node * part * (1 - near[0])  # bytes one way for a node's reads
    assert run.busiest_link * 100.0 == pytest.approx(2 * each, rel=0.1)  # reads enter, and so do others' adds
    assert len(model.chains) == chains
    assert run.delay.mean == 2 or run.exchanges == 0


def test_lognormal_steps_keep_their_mean():
    job = Job(ranks=16, parameters=1, step=1.0, period=0, distribution="lognormal", sigma=0.5)
    run = simulate(job, HOST, 1000.0)
    assert run.rate == pytest.approx(16, rel=4 * math.sqrt(math.exp(0.25) - 1) / math.sqrt(16_000))
    paused = simulate(replace(job, pause_every=10.0, pause=5.0), HOST, 4000.0)
    assert paused.rate == pytest.approx(16 / 1.5, rel=0.05)


@pytest.mark.parametrize("topology", ["gossip", "leader"])
def test_other_topologies_have_no_staleness_of_a_center(topology):
    job = Job(ranks=8, parameters=1000, step=1.0, period=2, topology=topology)
    run = simulate(job, replace(HOST, ranks_per_node=2))
    assert run.exchanges > 0
    assert run.staleness.most == 0
    with pytest.raises(InputError, match="topology: expected center"):
        next(events(job, HOST))


def test_all_readers_share_the_network_card_of_the_leader():
    job = Job(ranks=8, parameters=1000, step=1.0, period=1, topology="leader")
    model = Model(job, replace(HOST, ranks_per_node=1, arithmetic=0.0))
    model.run(40.0)
    # Seven vectors of 0.1 s out of one card, all asked for at once.
    assert np.median(np.concatenate([c.seconds for c in model.chains[1:]])) == pytest.approx(0.7 + 0.1, rel=0.02)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["lognormal", "exponential"]), st.integers(1, 5), st.integers(1, 3))
def test_seeds_reproduce_and_events_are_in_order(seed, distribution, ranks, max_delay):
    job = Job(ranks=ranks, parameters=1000, step=1.0, period=2, distribution=distribution, max_delay=max_delay)
    order = list(events(job, HOST, steps=30, seed=seed))
    assert order == list(events(job, HOST, steps=30, seed=seed))
    assert order != list(events(job, HOST, steps=30, seed=seed + 1))
    assert [e.time for e in order] == sorted(e.time for e in order)
    assert sum(e.kind == "step" for e in order) == 30
    for rank in range(ranks):
        of_rank = [e for e in order if e.rank == rank]
        assert [e.step for e in of_rank if e.kind == "step"] == list(
            range(1, 1 + sum(e.kind == "step" for e in of_rank))
        )
        for before, after in (("stage", "read"), ("read", "add"), ("add", "apply")):
            first, second = ([e.step for e in of_rank if e.kind == kind] for kind in (before, after))
            assert second == first[: len(second)]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"ranks": 0}, "ranks: expected a whole number >= 1, found 0"),
        ({"step": math.nan}, "step: expected seconds > 0, found nan"),
        ({"work": 2.0}, "work: expected seconds between 0 and the step's, found 2.0"),
        ({"factors": {3: 2.0}}, "straggler: expected a rank below 1, found 3"),
        ({"group_size": 2}, "group_size: expected a divisor of the 1 ranks, found 2"),
        ({"coupling": "soft"}, "coupling: expected one of elastic, kernel, restart, found 'soft'"),
        ({"coupling": "kernel", "max_delay": 2}, "max_delay: expected 1 with coupling kernel, found 2"),
        ({"topology": "gossip", "wire_dtype": "float16"}, "wire_dtype: expected float32 without a shared center"),
        ({"shards": 2}, "shards: expected 1 to 1, found 2"),
        (
            {"shards": 1, "fully_shard": True},
            "shards: expected none with fully_shard, where all ranks own a part, found 1",
        ),
        (
            {"topology": "gossip", "fully_shard": True},
            "fully_shard: expected False without a shared center, found True",
        ),
    ],
)
def test_invalid_jobs_are_errors(wrong, text):
    with pytest.raises(InputError, match=text):
        simulate(replace(JOB, **wrong), HOST)


def test_steps_together_wait_for_the_slowest_and_steps_of_one_pass_take_half():
    job = replace(JOB, ranks=2, period=0, factors={1: 2.2}, together=3, single=10, parameters=1, hidden=1.0)
    order = [(e.kind, e.rank, e.step, round(e.time, 6)) for e in events(job, HOST, seconds=5.9)]
    assert order == [
        ("together", 0, 1, 1.1),  # half of the slow rank's 2.2 s
        ("together", 0, 2, 2.2),
        ("together", 0, 3, 3.3),
        ("step", 0, 1, 3.8),
        ("step", 0, 2, 4.3),
        ("step", 1, 1, 4.4),
        ("step", 0, 3, 4.8),
        ("step", 1, 2, 5.5),  # began as the tenth step
        ("step", 0, 4, 5.8),  # two passes
    ]
    assert [e.kind for e in events(job, HOST, steps=8)] == ["together"] * 3 + ["step"] * 2


def test_pauses_follow_passes():
    """As many pauses a second, of the same length, whether steps take one pass or two."""
    job = replace(JOB, period=0, step=1.0, pause_every=4.0, pause=2.0)
    pauses = {single: [] for single in (0, 10**9)}
    for single, found in pauses.items():
        times = [e.time for e in events(replace(job, single=single), HOST, steps=8000)]
        lengths = np.diff([0.0, *times]) - (0.5 if single else 1.0)
        found += [length for length in lengths if length > 1e-9]
        seconds = 4000 if single else 8000  # without pauses
        assert abs(sum(found) - seconds / 4 * 2) < 5 * 2 * math.sqrt(2 * seconds / 4)  # five standard deviations
        assert abs(len(found) / len(lengths) - (1 - math.exp(-(0.125 if single else 0.25)))) < 0.025


def test_a_step_of_one_pass_averages_once():
    job = replace(JOB, ranks=2, group_size=2, period=0, group_ascent="averaged")
    machine = replace(HOST, link=4e4)
    one, two = Costs(job, machine).group_seconds(1), Costs(job, machine).group_seconds()
    assert two == pytest.approx(2 * one)
    assert one == Costs(replace(job, group_ascent="own"), machine).group_seconds()


def test_too_short_a_time_is_an_error():
    with pytest.raises(InputError, match="seconds: expected at least one step"):
        simulate(JOB, HOST, seconds=0.5)
