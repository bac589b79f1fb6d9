"""The masks that `lsam train` makes of its options."""

import pytest
import torch

from lsam_hpc.errors import InputError
from lsam_hpc.optim import LocalCenter, LocalLSAM
from lsam_hpc.optim.batchnorm import shared_tensors
from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.options.ascent import MASKS
from lsam_hpc.train.builders import make_base, make_dataset, make_mask, make_model, sampler_options
from lsam_hpc.train.config import TrainConfig
from tests.helpers.problems import closure_of, flat


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_trains_by_its_name(mask):
    config = TrainConfig(mask=mask, mask_refresh=2, model="cnn", subset=100)
    dataset = make_dataset(config)
    model = make_model(config, dataset)
    options = sampler_options(config, model, dataset, 1)
    base = make_base(config, model)
    shared = [tensor for tensors in shared_tensors(base, model) for tensor in tensors]
    opt = LocalLSAM(base, LocalCenter(FlatVector(shared).gather(shared)), **options)
    before = flat(model)
    for step in range(3):
        chosen = torch.arange(8 * step, 8 * step + 8)
        opt.step(closure_of(model, opt, dataset.train_x[chosen], dataset.train_y[chosen]))
    assert torch.isfinite(flat(model)).all()
    assert not torch.equal(flat(model), before)


def test_a_chain_counts_its_own_part_of_the_steps():
    config = TrainConfig(mask="ssam-d", steps=1001)
    dataset = make_dataset(config)
    model = make_model(config, dataset)
    assert [make_mask(config, model, dataset, chains).total for chains in (1, 4)] == [1001, 251]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "norm"}, "mask: expected a model with normalization layers that have parameters, found none"),
        (
            {"mask": "ssam-f", "mask_pattern": "1:3"},
            "mask: expected parameters of a multiple of 3 elements, found shape (128, 64)",
        ),
        ({"mask": "sl-sam", "ascent": "dp-sat"}, "mask: expected the ascent sam for SLSAM, found dp-sat"),
    ],
)
def test_a_model_that_does_not_fit_the_mask_is_refused_before_the_run_begins(options, message):
    config = TrainConfig(**options)
    with pytest.raises(InputError) as caught:
        make_model(config, make_dataset(config))
    assert str(caught.value) == message
