"""Steps that all ranks take together: data-parallel SAM written out, and a synchronous start."""

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional

from lsam_hpc import InputError
from lsam_hpc.replay.together import Meeting
from lsam_hpc.replay.train import train
from lsam_hpc.simulate.model import Event
from lsam_hpc.train import data
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.builders import lr_factor, make_model
from lsam_hpc.train.config import TrainConfig
from tests.replay.test_train import in_turn

RANKS, STEPS = 3, 50
CONFIG = TrainConfig(epochs=STEPS * RANKS * 16 / 960, batch_size=16, subset=960, seed=3, rho=0.1, overlap=False)


def together(steps):
    return [Event(float(number), 0, "together", number) for number in range(1, steps + 1)]


def gradient(model, x, y):
    return torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))


def data_parallel_sam(config, ranks, steps, global_steps, total, *, averaged):
    """Foret et al. 2021, algorithm 1, on all ranks' mini-batches; SGD with momentum as in torch's manual."""
    digits = data.load("digits", None, subset=config.subset)
    model = make_model(config, digits)
    batches = [Batches(digits.train_x, digits.train_y, 16, config.seed * ranks + rank) for rank in range(ranks)]
    buffers = None
    params = list(model.parameters())
    for step in range(steps):
        these = [next(stream) for stream in batches]
        start = [p.detach().clone() for p in params]
        ascents = [gradient(model, x, y) for x, y in these]
        if averaged:
            ascents = [[sum(parts) / ranks for parts in zip(*ascents, strict=True)]] * ranks
        descents = []
        for (x, y), ascent in zip(these, ascents, strict=True):
            norm = torch.sqrt(sum(g.square().sum() for g in ascent))
            with torch.no_grad():
                for p, g in zip(params, ascent, strict=True):
                    p.add_(config.rho * g / norm)
            descents.append(gradient(model, x, y))
            with torch.no_grad():
                for p, x0 in zip(params, start, strict=True):
                    p.copy_(x0)
        lr = config.lr * lr_factor(config, global_steps * step, total)
        with torch.no_grad():
            mean = [sum(parts) / ranks + 5e-4 * p for *parts, p in zip(*descents, params, strict=True)]
            buffers = mean if buffers is None else [0.9 * b + g for b, g in zip(buffers, mean, strict=True)]
            for p, b in zip(params, buffers, strict=True):
                p.sub_(lr * b)
    return model, digits


def results(model, digits):
    with torch.no_grad():
        wrong = (model(torch.stack([*digits.test_x[:]])).argmax(1) != digits.test_y).sum().item()
        loss = functional.cross_entropy(model(digits.train_x[:]), digits.train_y).item()
    return 100 * wrong / len(digits.test_y), loss


@pytest.mark.parametrize("ascent", ["own", "averaged"])
def test_a_synchronous_run_is_data_parallel_sam(ascent):
    config = dataclasses.replace(CONFIG, synchronous=True, group_ascent=ascent)
    outcome = train(config, RANKS, itertools.chain(together(STEPS), in_turn(RANKS)))
    model, digits = data_parallel_sam(config, RANKS, STEPS, 1, STEPS, averaged=ascent == "averaged")
    error, loss = results(model, digits)
    assert outcome.steps == [STEPS] * RANKS
    assert not any(outcome.exchanges)
    assert outcome.center_test_error == pytest.approx(error, abs=1e-9)
    assert outcome.center_train_loss == pytest.approx(loss, rel=1e-5)


def test_a_synchronous_start_ends_in_one_state_and_the_chains_go_on_from_it():
    """The center at the end of the start is data-parallel SAM's, and all first exchanges begin from it."""
    start = 20
    config = dataclasses.replace(CONFIG, synchronous_start=start / STEPS, coupling="restart", period=2)
    points = 5
    outcome = train(config, RANKS, itertools.chain(together(start), in_turn(RANKS)), points=points, curve_images=10**6)
    model, digits = data_parallel_sam(config, RANKS, start, RANKS, STEPS * RANKS, averaged=False)
    error, _ = results(model, digits)
    assert outcome.curve[1]["epochs"] == pytest.approx(start * RANKS * 16 / len(digits.train_y))
    assert outcome.curve[1]["test_error"] == pytest.approx(error, abs=1e-9)
    assert outcome.steps == [STEPS] * RANKS
    assert [len(records) for records in outcome.exchanges] == [(STEPS - start) // 2] * RANKS
    assert len(outcome.curve) == points
    first = [records[0] for records in outcome.exchanges]
    assert [record.version_read for record in first] == [0, 0, 0]  # all chains begin at the same center
    assert [record.step for record in first] == [start + 2] * RANKS


def test_events_without_the_steps_together_are_an_error():
    config = dataclasses.replace(CONFIG, synchronous=True)
    with pytest.raises(InputError, match="events: expected 50 steps together, found 4"):
        train(config, RANKS, itertools.chain(together(4), in_turn(RANKS)))


def test_chains_meet_in_a_fixed_order_as_often_as_they_like():
    meeting, order = Meeting(3, ascent=True), []
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]

    def step(number):
        for time in range(2):
            order.append((time, number))
            parameters[number].grad = None if number == 1 else torch.full((2,), float(number + 1 + time))
            meeting.seats[number]([parameters[number]])
            assert torch.equal(parameters[number].grad, torch.full((2,), (4 + 2 * time) / 3))
        order.append((2, number))

    meeting.step([lambda n=n: step(n) for n in range(3)])
    assert order == [(time, number) for time in range(3) for number in range(3)]


def test_an_error_in_one_chain_ends_the_step():
    meeting, ended = Meeting(3, ascent=False), []

    def step(number):
        if number == 1:
            raise ValueError("no gradient")
        meeting.seats[number]([])
        ended.append(number)

    with pytest.raises(ValueError, match="no gradient"):
        meeting.step([lambda n=n: step(n) for n in range(3)])
    assert not ended
    meeting.step([lambda n=n: meeting.seats[n]([]) for n in range(3)])  # and the next one works
