"""Chains driven by events, against numpy recursions worked by hand and against LSAM stepped by hand."""

import itertools
import re
from collections import deque
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsam_hpc import InputError
from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.optim.lsam import LocalLSAM
from lsam_hpc.replay.bench import replay
from lsam_hpc.replay.chain import Chain, OrderedSteps, Player
from lsam_hpc.simulate.describe import Job, Machine
from lsam_hpc.simulate.model import Event, Model
from tests.helpers.problems import Bowl, batches, closure_of, flat, network

A, LR, PULL = 0.5, 0.25, 0.25


def bowls(starts, total, **options):
    """Return models, their shared center, players of one chain each, and the exchanges of each chain."""
    models = [Bowl(list(start), A) for start in starts]
    center = LocalCenter(torch.tensor(starts[0], dtype=torch.float64))
    counter, records, players = OrderedSteps(total), [[] for _ in starts], []
    for model, record in zip(models, records, strict=True):
        base = torch.optim.SGD(model.parameters(), lr=LR)
        chain = Chain(base, center, counter, **{"rho": 0.0, "pull": PULL, "on_exchange": record.append, **options})
        players.append(Player(chain, lambda _, model=model, chain=chain: chain.step(model.closure(chain))))
    return models, center, players, records


def order(text):
    """Return the events that a text such as `0step1 0stage1 1step1` lists, one second apart."""
    listed = []
    for time, item in enumerate(text.split()):
        rank, kind, step = re.fullmatch(r"(\d+)([a-z]+)(\d+)", item).groups()
        listed.append(Event(float(time), int(rank), kind, int(step)))
    return listed


def sgd(x):
    return x - LR * A * x


def test_two_chains_in_an_order_worked_by_hand():
    """EASGD's recursion, Zhang et al. 2015, eq. 2 and 3, with the delays of the events."""
    models, center, players, records = bowls([(4.0, -2.0), (4.0, -2.0)], total=8, period=2)
    replay(
        players,
        order(
            "0step1 1step1 0step2 0stage2 0read2 1step2 1stage2 1read2 1add2 0step3 0add2 1apply2 0apply2 1step3 "
            "0step4 0stage4 1step4 1stage4 1read4 0read4 0add4 0apply4 1add4 1apply4"
        ),
    )
    x0 = x1 = y = np.array([4.0, -2.0])
    x0, x1 = sgd(x0), sgd(x1)
    x0 = sgd(x0)
    d0 = PULL * (x0 - y)  # 0stage2 0read2
    x1 = sgd(x1)
    d1 = PULL * (x1 - y)  # 1stage2 1read2
    y = y + d1  # 1add2
    x0 = sgd(x0)  # no result has arrived yet
    y = y + d0  # 0add2: one add after the read
    x1 = sgd(x1) - d1  # 1step3, after 1apply2
    x0 = sgd(x0) - d0
    s0 = x0  # 0stage4
    x1 = sgd(x1)
    d1 = PULL * (x1 - y)
    d0 = PULL * (s0 - y)
    y = y + d0
    y = y + d1
    x0, x1 = x0 - d0, x1 - d1  # results taken in at the end
    for model, expected in zip(models, (x0, x1), strict=True):
        np.testing.assert_allclose(model.value, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(center.vector.numpy(), y, rtol=0, atol=1e-15)
    assert [[r.staleness for r in of_chain] for of_chain in records] == [[1, 0], [0, 1]]
    assert [[r.delay for r in of_chain] for of_chain in records] == [[2, 0], [1, 0]]
    assert [[(r.version_read, r.version_added) for r in of_chain] for of_chain in records] == [
        [(0, 1), (2, 2)],
        [(0, 0), (2, 3)],
    ]


@pytest.mark.parametrize("coupling", ["kernel", "restart"])
def test_couplings_that_add_before_they_read(coupling):
    """A gap is relative to the center read right after the previous add; the result arrives a step late."""
    options = {"coupling": coupling, "stiffness": 0.5, "period": 1}
    models, center, players, records = bowls([(4.0,), (4.0,)], total=4, **options)
    replay(
        players,
        order(
            "0step1 0stage1 1step1 1stage1 1add1 1apply1 0add1 0apply1 "
            "0step2 0stage2 1step2 1stage2 0add2 0apply2 1add2 1apply2"
        ),
    )
    force = 0.5 if coupling == "kernel" else 0.0
    x0 = x1 = y0 = y1 = y = 4.0

    def moved(x, read):
        return x - LR * (A * x + force * (x - read))

    x0, x1 = moved(x0, y0), moved(x1, y1)
    s0, s1 = x0, x1
    y += PULL * (s1 - y1)
    y1 = r1 = y
    y += PULL * (s0 - y0)
    y0 = r0 = y
    x0 = moved(x0, 4.0) + (r0 - s0 if coupling == "restart" else 0.0)  # the force still uses the previous center
    z0, n0 = x0, y0
    x1 = moved(x1, 4.0) + (r1 - s1 if coupling == "restart" else 0.0)
    z1, n1 = x1, y1
    y += PULL * (z0 - n0)
    last0 = y
    y += PULL * (z1 - n1)
    if coupling == "restart":
        x0, x1 = x0 + last0 - z0, x1 + y - z1
    for model, expected in zip(models, (x0, x1), strict=True):
        np.testing.assert_allclose(model.value, [expected], rtol=0, atol=1e-15)
    np.testing.assert_allclose(center.vector.numpy(), [y], rtol=0, atol=1e-15)
    assert [[r.staleness for r in of_chain] for of_chain in records] == [
        [1, 0],
        [0, 2],
    ]  # rank 1's second add comes after two of rank 0


def test_a_chain_that_waits_takes_the_result_in_before_it_stages():
    models, center, players, records = bowls([(4.0,)], total=2, period=1)
    replay(players, order("0step1 0stage1 0read1 0step2 0add1 0apply1 0stage2 0read2 0add2 0apply2"))
    x = y = 4.0
    x = sgd(x)
    d = PULL * (x - y)
    y += d
    x = sgd(x) - d  # taken in before the sample is staged
    d = PULL * (x - y)
    np.testing.assert_allclose([models[0].value[0], center.vector.item()], [x - d, y + d], rtol=0, atol=1e-15)
    assert [r.delay for r in records[0]] == [1, 0]


def nets(count, total, start, overlap, **options):
    torch.manual_seed(0)
    models = [network() for _ in range(count)]
    center, counter, players = LocalCenter(start), OrderedSteps(total), []
    for rank, model in enumerate(models):
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        chain = Chain(base, center, counter, overlap=overlap, seed=rank, **options)
        data = batches(total, seed=rank)
        players.append(Player(chain, lambda _, m=model, c=chain, d=data: c.step(closure_of(m, c, *next(d)))))
    return models, center, players


OPTIONS = [
    {"coupling": "elastic", "pull": 0.3},
    {"coupling": "kernel", "pull": 0.3, "stiffness": 0.2},
    {"coupling": "restart", "pull": 0.3},
    {"coupling": "elastic", "pull": 0.3, "center_momentum": 0.5, "ascent": "dp-sat"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_inline_in_turn_equals_chains_stepped_in_turn_to_the_bit(options):
    start = flat(network())
    ranks, steps = 3, 12
    models, center, players = nets(ranks, ranks * steps, start, overlap=False, rho=0.1, period=2, **options)
    events = []
    for k in range(1, steps + 1):
        for rank in range(ranks):
            kinds = ["step", "stage", "read", "add", "apply"] if k % 2 == 0 else ["step"]
            events += [Event(0.0, rank, kind, k) for kind in kinds]
    replay(players, events)

    expected = LocalCenter(start)
    others = [network() for _ in range(ranks)]
    opts, data = [], []
    for rank, model in enumerate(others):
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        opts.append(LocalLSAM(base, expected, rho=0.1, period=2, seed=rank, **options))
        data.append(batches(steps, seed=rank))
    for _ in range(steps):
        for model, opt, loader in zip(others, opts, data, strict=True):
            opt.step(closure_of(model, opt, *next(loader)))
    assert torch.equal(center.vector, expected.vector)
    assert center.version == expected.version == ranks * steps // 2
    for model, other in zip(models, others, strict=True):
        assert torch.equal(flat(model), flat(other))


class LateExecutor:
    """An executor that runs a job when the test calls `run_next`."""

    def __init__(self):
        self.jobs = []

    def submit(self, job):
        self.jobs.append((Future(), job))
        return self.jobs[-1][0]

    def run_next(self):
        future, job = self.jobs.pop(0)
        future.set_result(job())

    def wait(self, future):
        return future.done()


@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize("options", OPTIONS)
def test_one_chain_equals_lsam_with_a_late_executor_to_the_bit(options, late):
    start = flat(network())
    models, center, players = nets(1, 12, start, overlap=True, rho=0.1, period=3, **options)
    events = []
    for k in range(1, 13):
        events.append(Event(0.0, 0, "step", k))
        if k % 3 == 0:
            events += [Event(0.0, 0, kind, k) for kind in ("stage", "read")]
        if k >= 3 and (k - late) % 3 == 0:
            events += [Event(0.0, 0, kind, k - late) for kind in ("add", "apply")]
    events += [Event(0.0, 0, kind, 12) for kind in ("add", "apply") if late]
    replay(players, events)

    model, expected, executor = network(), LocalCenter(start), LateExecutor()
    opt = LocalLSAM(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        expected,
        rho=0.1,
        period=3,
        executor=executor,
        **options,
    )
    for k, batch in enumerate(batches(12, seed=0), 1):
        opt.step(closure_of(model, opt, *batch))
        if k >= 3 and (k - late) % 3 == 0:
            executor.run_next()
    if late:
        executor.run_next()
    opt.drain()
    assert torch.equal(center.vector, expected.vector)
    assert torch.equal(flat(models[0]), flat(model))


def random_order(seed, ranks, steps, period, max_delay, elastic=True):
    """Return the events of ranks whose steps and exchanges have random lengths."""
    rng = np.random.default_rng(seed)
    events, count = [], itertools.count()

    def emit(time, rank, kind, step):
        events.append((time, next(count), Event(time, rank, kind, step)))

    for rank in range(ranks):
        now = free = 0.0
        pace = rng.uniform(0.5, 2.0)
        applied = []
        for step in range(1, steps + 1):
            now += pace * rng.exponential()
            emit(now, rank, "step", step)
            if step % period:
                continue
            if len(applied) >= max_delay:
                now = max(now, applied[-max_delay])
            emit(now, rank, "stage", step)
            free = max(now, free)
            for kind in ("read", "add", "apply") if elastic else ("add", "apply"):
                free += rng.exponential()
                emit(free, rank, kind, step)
            applied.append(free)
    return [event for _, _, event in sorted(events, key=lambda item: item[:2])]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_staleness_and_delay_are_those_of_the_events(seed, ranks, period, max_delay, elastic):
    options = {} if elastic else {"coupling": "kernel"}
    max_delay = max_delay if elastic else 1
    events = random_order(seed, ranks, 24, period, max_delay, elastic)
    total = 24  # the slowest chain takes at most all of them
    _, center, players, records = bowls([(4.0,)] * ranks, total, period=period, max_delay=max_delay, **options)
    replay(players, events)
    assert sum(player.chain.local_step for player in players) == total
    assert center.version == sum(map(len, records))
    # Brute force: the order of the steps, and the number of adds between a read and its add.
    steps_of, begun, adds, read = [0] * ranks, ranks, 0, {rank: [0] for rank in range(ranks)}
    taking = [rank < total for rank in range(ranks)]
    expected = [[] for _ in range(ranks)]
    for event in events:
        rank, due = event.rank, event.step % period == 0
        if event.kind == "step" and taking[rank]:
            steps_of[rank] += 1
        if event.kind == ("stage" if due else "step") and taking[rank]:
            taking[rank] = begun < total
            begun += 1
        if event.step > steps_of[rank]:
            continue  # an event of a chain that has ended
        if event.kind == "read":
            read[rank] = [adds]
        elif event.kind == "add":
            expected[rank].append(adds - read[rank].pop())
            adds += 1
            if not elastic:
                read[rank] = [adds]
    assert [player.chain.local_step for player in players] == steps_of
    assert [[r.staleness for r in of_chain] for of_chain in records] == expected


@pytest.mark.parametrize("coupling", ["elastic", "kernel"])
def test_staleness_is_what_the_simulator_counted(coupling):
    """The simulator's counts of the same run, for the exchanges that the chains did."""
    job = Job(4, 20_000_000, 0.1, distribution="lognormal", sigma=0.3, period=2, coupling=coupling, factors={1: 3.0})
    machine = Machine("slow", ranks_per_node=1, cores=4, copy=1e10, memory=4e10, nic=1e9, rank_rate=5e8, latency=1e-5)
    pending = deque()
    model = Model(job, machine, 5, pending.append)

    def simulated():
        while True:
            while pending:
                yield pending.popleft()
            model.env.step()

    _, _, players, records = bowls([(4.0,)] * 4, 200, period=2, coupling=coupling)
    replay(players, simulated())
    staleness = [[r.staleness for r in of_chain] for of_chain in records]
    assert max(map(max, staleness)) >= 2
    for of_chain, counted in zip(staleness, model.chains, strict=True):
        assert of_chain == counted.staleness[: len(of_chain)]


def test_a_fast_chain_takes_more_of_the_steps():
    taken = []
    _, _, players, _ = bowls([(4.0,)] * 2, total=8, period=100)
    for rank, player in enumerate(players):
        take = player._step
        player._step = lambda step, rank=rank, take=take: (taken.append((rank, step)), take(step))
    replay(players, order("0step1 0step2 0step3 1step1 0step4 0step5 0step6 1step2 1step3"))
    # Rank 1 takes global step 1 during three of rank 0's steps.
    assert taken == [(0, 0), (0, 2), (0, 3), (1, 1), (0, 4), (0, 6), (0, 7), (1, 5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0step1 0step2", "expected a stage event of rank 0 after its step, found another step"),
        ("0stage1", "expected no stage at step 1 of rank 0, found one"),
        ("0add1", "expected no add at step 1 of rank 0, found one"),
        ("0step1 0stage1 0apply1", "expected no apply at step 1 of rank 0, found one"),
        ("0step1 0stage1 0read1 0step2 0stage2", "expected an apply event before"),
        ("0step1 0stage1", "expected 4 steps and all exchanges of the chains, found 1 steps, and 1 chains"),
        ("1step1", "expected ranks 0 to 0, found 1"),
    ],
)
def test_events_that_do_not_follow(text, message):
    _, _, players, _ = bowls([(4.0,)], total=4, period=1)
    with pytest.raises(InputError) as caught:
        replay(players, order(text))
    assert str(caught.value).startswith(f"events: {message}")
