"""Exchanges whose results come later than the next step: the chain against recursions in numpy."""

import math
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.optim.lsam import LocalLSAM
from tests.helpers.problems import Bowl

A, LR, PULL = 0.5, 0.25, 0.25


class Late:
    """An executor that runs a job when the test calls `do`."""

    def __init__(self):
        self.jobs, self.waits = [], 0

    def submit(self, job):
        future = Future()
        self.jobs.append((future, job))
        return future

    def do(self):
        future, job = self.jobs.pop(0)
        future.set_result(job())

    def wait(self, future):
        self.waits += 1
        while not future.done():
            self.do()
        return True


def chain(start=(4.0, -2.0), **options):
    model = Bowl(list(start), A)
    center = LocalCenter(torch.tensor(start, dtype=torch.float64))
    base = torch.optim.SGD(model.parameters(), lr=LR)
    executor = Late()
    records = []
    opt = LocalLSAM(base, center, rho=0.0, pull=PULL, executor=executor, on_exchange=records.append, **options)
    return model, center, opt, executor, records


def step(model, opt):
    opt.step(model.closure(opt))


def sgd(x):
    return x - LR * A * x


@pytest.mark.parametrize("late", [0, 1, 3])
def test_an_elastic_result_moves_the_sample_at_the_first_step_after_it_is_done(late):
    model, _, opt, executor, records = chain(period=4)
    x = y = y_read = np.array([4.0, -2.0])
    staged = None
    for count in range(1, 25):
        step(model, opt)
        x = sgd(x)
        # The result is applied `late` steps after the staging.
        if count % 4 == late % 4 and staged is not None:
            x = x - PULL * (staged - y_read)
            y = y + PULL * (staged - y_read)
            staged = None
        if count % 4 == 0:
            staged, y_read = x, y
        if count % 4 == (late - 1) % 4 and executor.jobs and late:
            executor.do()
        if late == 0 and executor.jobs:
            executor.do()
            opt._collect()
            x = x - PULL * (staged - y_read)
            y = y + PULL * (staged - y_read)
            staged = None
        np.testing.assert_allclose(model.value, x, rtol=0, atol=1e-12)
    assert {r.delay for r in records} == {late}
    assert len(records) in (5, 6)


def test_no_more_exchanges_than_max_delay_are_in_flight():
    for max_delay in (1, 2, 3):
        model, _, opt, executor, records = chain(period=1, max_delay=max_delay)
        for count in range(1, 11):
            step(model, opt)
            assert len(executor.jobs) == min(count, max_delay)
        assert executor.waits == 10 - max_delay
        assert {r.delay for r in records} == {max_delay}
        state = opt.state_dict()  # waits for the exchanges in flight
        assert not executor.jobs
        assert len(records) == 10
        assert state["lsam"]["exchanges"] == 10


def test_restart_keeps_the_steps_since_the_staging():
    model, center, opt, executor, _ = chain(period=2, coupling="restart")
    x = np.array([4.0, -2.0])
    start = x
    step(model, opt)
    step(model, opt)  # stages the sample
    staged = sgd(sgd(x))
    x = sgd(staged)
    center.add(torch.tensor([1.0, 1.0], dtype=torch.float64))  # by another chain
    executor.do()
    y = start + PULL * (staged - start) + 1
    np.testing.assert_allclose(center.vector, y, rtol=0, atol=1e-12)
    step(model, opt)
    np.testing.assert_allclose(model.value, y + (x - staged), rtol=0, atol=1e-12)
    step(model, opt)  # the next gap is the move of the chain since it started from y
    x = sgd(y + (x - staged))
    np.testing.assert_allclose(model.value, x, rtol=0, atol=1e-12)
    executor.do()
    np.testing.assert_allclose(center.vector, y + PULL * (x - y), rtol=0, atol=1e-12)


def test_the_kernel_force_uses_the_new_center_after_the_result_is_applied():
    stiffness = 0.5
    model, center, opt, executor, _ = chain(period=2, coupling="kernel", stiffness=stiffness)
    x = y = np.array([4.0, -2.0])

    def forced(x, y):
        return x - LR * (A * x + stiffness * (x - y))

    step(model, opt)
    step(model, opt)
    staged = x = forced(forced(x, y), y)
    center.add(torch.tensor([1.0, 1.0], dtype=torch.float64))
    executor.do()  # the result is applied only at the end of the next step
    new = y + PULL * (staged - y) + 1
    step(model, opt)
    x = forced(x, y)
    np.testing.assert_allclose(model.value, x, rtol=0, atol=1e-12)
    step(model, opt)
    x = forced(x, new)
    np.testing.assert_allclose(model.value, x, rtol=0, atol=1e-12)
    executor.do()
    np.testing.assert_allclose(center.vector, new + PULL * (x - new), rtol=0, atol=1e-12)


def test_a_rejection_resets_the_chain_and_discards_the_exchanges_in_flight():
    model, center, opt, executor, records = chain(period=1, max_delay=2)
    with torch.no_grad():
        model.x[0] = math.inf
    step(model, opt)
    step(model, opt)
    assert len(executor.jobs) == 2
    executor.do()
    start = center.vector.numpy().copy()
    opt._collect()
    np.testing.assert_array_equal(model.value, start)
    executor.do()
    opt._collect()
    np.testing.assert_array_equal(model.value, start)
    assert [r.accepted for r in records] == [False, False]
    np.testing.assert_array_equal(center.vector, start)


def test_with_a_fixed_delay_results_wait_for_the_next_exchange():
    model, _, opt, executor, records = chain(period=3, fixed_delay=True)
    for count in range(1, 10):
        step(model, opt)
        if executor.jobs and count % 3 == 0:
            executor.do()
    assert [(r.step, r.delay) for r in records] == [(3, 3), (6, 3)]


def test_steps_ends_with_nothing_in_flight():
    model, _, opt, executor, records = chain(period=2)
    for _ in opt.steps(8):
        step(model, opt)
    assert not executor.jobs
    assert len(records) == 4


def test_a_chain_continues_alone_after_an_exchange_was_given_up():
    model, _, opt, executor, records = chain(period=1)
    step(model, opt)
    executor.wait = lambda future: False
    x = model.value
    for _ in range(5):
        step(model, opt)
        x = sgd(x)
    np.testing.assert_allclose(model.value, x, rtol=0, atol=1e-12)
    assert len(executor.jobs) == 1
    assert not records


class Shared(LocalCenter):
    publishes = True

    def __init__(self, start):
        super().__init__(start)
        self.states = []

    def publish(self, state):
        self.states.append(state.numpy().copy())


@pytest.mark.parametrize("perturbed", [False, True])
def test_publishes_the_sample_or_the_perturbed_sample(perturbed):
    model = Bowl([3.0, 4.0], A)
    center = Shared(torch.tensor([3.0, 4.0], dtype=torch.float64))
    base = torch.optim.SGD(model.parameters(), lr=LR)
    opt = LocalLSAM(base, center, rho=0.5, pull=PULL, period=2, publish_perturbed=perturbed)
    expected = []
    x = y = np.array([3.0, 4.0])
    for count in range(1, 7):
        at = x + 0.5 * x / np.linalg.norm(x)
        x = x - LR * A * at
        if count % 2 == 0:
            expected.append(at if perturbed else x)
            delta = PULL * (x - y)
            x, y = x - delta, y + delta
        step(model, opt)
    np.testing.assert_allclose(center.states, expected, rtol=0, atol=1e-9)


def test_every_exchange_publishes_the_perturbed_sample_of_its_own_step():
    for options in ({"period": 1, "max_delay": 3}, {"period": 2, "fixed_delay": True}):
        model = Bowl([3.0, 4.0], A)
        center = Shared(torch.tensor([3.0, 4.0], dtype=torch.float64))
        base = torch.optim.SGD(model.parameters(), lr=LR)
        opt = LocalLSAM(base, center, rho=0.5, pull=PULL, publish_perturbed=True, executor=Late(), **options)
        expected = []
        for count in range(1, 13):
            x = model.value
            if count % options["period"] == 0:
                expected.append(x + 0.5 * x / np.linalg.norm(x))
            step(model, opt)
        opt.drain()
        np.testing.assert_allclose(center.states, expected, rtol=0, atol=1e-9)


def test_every_failing_exchange_raises():
    class Broken(LocalCenter):
        def add(self, delta):
            raise OSError("no network")

    model = Bowl([3.0], A)
    opt = LocalLSAM(
        torch.optim.SGD(model.parameters(), lr=LR), Broken(torch.full((1,), 3.0, dtype=torch.float64)), period=1
    )
    for _ in range(3):
        with pytest.raises(OSError, match="no network"):
            step(model, opt)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,), (torch.float32, torch.float64), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("coupling", ["elastic", "kernel", "restart"])
def test_parameters_of_mixed_types(dtypes, coupling):
    params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
    wide = torch.float64 if torch.float64 in dtypes else torch.float32
    center = LocalCenter(torch.ones(3 * len(params), dtype=wide))
    opt = LocalLSAM(torch.optim.SGD(params, lr=0.25), center, rho=0.0, coupling=coupling, period=1, pull=0.5)

    def closure():
        opt.zero_grad()
        loss = sum((p.double() ** 2).sum() for p in params) / 2
        loss.backward()
        return loss

    for _ in range(8):
        opt.step(closure)
    assert all(0 <= float(p.detach().abs().max()) < 0.6 for p in params)
    assert float(center.vector.abs().max()) < 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_delay": 0}, "max_delay: expected a whole number of exchanges >= 1, found 0"),
        ({"max_delay": 2, "coupling": "restart"}, "max_delay: expected 1 with the coupling restart, found 2"),
        ({"max_delta_ratio": 0.5}, "max_delta_ratio: expected a number > 1, found 0.5"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(InputError) as caught:
        chain(**options)
    assert str(caught.value) == message
