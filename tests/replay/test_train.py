"""Training in a simulated order, against the optimizer stepped by hand."""

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional

from lsam_hpc import InputError
from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.optim.lsam import LocalLSAM
from lsam_hpc.replay.train import train
from lsam_hpc.simulate.model import Event
from lsam_hpc.train import data
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.builders import lr_factor, make_model
from lsam_hpc.train.config import TrainConfig
from tests.helpers.problems import flat

KINDS = ("stage", "read", "add", "apply")
SMALL = TrainConfig(steps=24, batch_size=16, period=2, seed=3)


def in_turn(ranks, period=2):
    """Yield endless events: each rank in turn takes a step and does its exchange at once."""
    for step in itertools.count(1):
        for rank in range(ranks):
            for kind in ("step", *KINDS) if step % period == 0 else ("step",):
                yield Event(float(step), rank, kind, step)


@pytest.mark.parametrize("ranks", [1, 2])
def test_equals_the_optimizer_stepped_in_turn_to_the_bit(ranks):
    config = dataclasses.replace(SMALL, overlap=False)
    outcome = train(config, ranks, in_turn(ranks))

    digits = data.load("digits", None)
    models = [make_model(config, digits) for _ in range(ranks)]
    center = LocalCenter(flat(models[0]))
    records, opts, batches = [], [], []
    for rank, model in enumerate(models):
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        opts.append(LocalLSAM(base, center, rho=0.05, pull=0.9 / ranks, period=2, on_exchange=records.append))
        batches.append(Batches(digits.train_x, digits.train_y, 16, 3 * ranks + rank))
    for step in range(24):
        rank = step % ranks
        model, opt = models[rank], opts[rank]
        opt.param_groups[0]["lr"] = 0.1 * lr_factor(config, step, 24)
        x, y = next(batches[rank])

        def closure(model=model, opt=opt, x=x, y=y):
            opt.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        opt.step(closure)
    torch.nn.utils.vector_to_parameters(center.vector, models[0].parameters())
    with torch.no_grad():
        (images,) = digits.test_x.split(len(digits.test_y))
        wrong = models[0](images).argmax(1) != digits.test_y
    assert outcome.center_test_error == 100 * wrong.sum().item() / len(digits.test_y)
    assert outcome.steps == [24 // ranks] * ranks
    assert [r.delta_norm for of_chain in outcome.exchanges for r in of_chain[:1]] == [
        r.delta_norm for r in records[:ranks]
    ]
    assert [of_chain[-1].center_distance for of_chain in outcome.exchanges] == [
        r.center_distance for r in records[-ranks:]
    ]
    assert outcome.staleness.tolist() == [0] * 12


def test_chains_of_a_network_with_batchnorm_share_its_statistics():
    config = dataclasses.replace(SMALL, model="cnn", steps=8)
    outcome = train(config, 2, in_turn(2))
    assert outcome.steps == [4, 4]
    assert 0 < outcome.center_train_loss < 10


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("topology", "gossip", "--topology: expected center in a simulated order, found gossip"),
        ("group_size", 2, "--group-size: expected 1 in a simulated order, found 2"),
        ("selection", "esam", "--selection: expected none in a simulated order, found esam"),
        ("adversarial", "conadv", "--adversarial: expected none in a simulated order, found conadv"),
        ("mode", "lockstep", "--mode: expected async in a simulated order, found lockstep"),
        ("wire_dtype", "bfloat16", "--wire-dtype: expected float32 in a simulated order, found bfloat16"),
    ],
)
def test_options_that_cannot_be_replayed_are_errors(option, value, expected):
    with pytest.raises(InputError) as caught:
        train(dataclasses.replace(SMALL, **{option: value}), 2, in_turn(2))
    assert str(caught.value) == expected
