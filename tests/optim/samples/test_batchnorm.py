"""Split BatchNorm layers: two sets of statistics, and everything else as before."""

import copy

import pytest
import torch
from torch import nn

from lsam_hpc import SAM, InputError
from lsam_hpc.optim import LocalCenter, LocalLSAM, masks
from lsam_hpc.optim.batchnorm import recalibrate, shared_tensors
from lsam_hpc.optim.samples import adversarial_statistics, split_batchnorm

KINDS = [(nn.BatchNorm1d, (7, 3)), (nn.BatchNorm2d, (7, 3, 2, 2)), (nn.BatchNorm3d, (7, 3, 2, 2, 2))]


def layer(kind=nn.BatchNorm1d, **options):
    model = nn.Sequential(kind(3, **options)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        model[0].bias.copy_(torch.tensor([0.5, 0.0, -0.5]))
    return model


@pytest.mark.parametrize(("kind", "shape"), KINDS)
def test_each_set_equals_a_layer_that_sees_one_kind_of_inputs(kind, shape):
    split, clean, adversarial = split_batchnorm(layer(kind)), layer(kind), layer(kind)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        torch.testing.assert_close(split(x), clean(x), rtol=0, atol=0)
        with adversarial_statistics(split):
            torch.testing.assert_close(split(5 * y + 1), adversarial(5 * y + 1), rtol=0, atol=0)
    for mode in (True, False):
        for model in (split, clean, adversarial):
            model.train(mode)
        torch.testing.assert_close(split(x), clean(x), rtol=0, atol=0)
        with adversarial_statistics(split):
            torch.testing.assert_close(split(x), adversarial(x), rtol=0, atol=0)
    assert not torch.equal(split[0].running_mean, split[0].adversarial.running_mean)


def test_the_model_keeps_its_parameters_and_the_names_of_its_state():
    plain = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    params, names, state = list(plain.parameters()), [n for n, _ in plain.named_parameters()], set(plain.state_dict())
    held = plain[1]
    split = split_batchnorm(plain)
    assert split is plain
    assert split[1] is held
    assert all(p is q for p, q in zip(split.parameters(), params, strict=True))
    assert [name for name, _ in split.named_parameters()] == names
    assert state <= set(split.state_dict())
    loaded = copy.deepcopy(split)
    assert loaded[1].weight is loaded[1].adversarial.weight
    loaded.load_state_dict(split.state_dict())


def test_the_second_layers_may_have_parameters_of_their_own():
    model = split_batchnorm(layer(), parameters=True)
    assert len(list(model.parameters())) == 4
    assert torch.equal(model[0].adversarial.weight, model[0].weight)
    with adversarial_statistics(model):
        model(torch.randn(7, 3, dtype=torch.float64)).square().sum().backward()
    assert model[0].weight.grad is None
    assert model[0].adversarial.weight.grad.abs().sum() > 0


def test_the_clean_statistics_are_back_after_an_exception():
    model = split_batchnorm(layer())
    with pytest.raises(KeyError), adversarial_statistics(model):
        raise KeyError
    model(torch.ones(7, 3, dtype=torch.float64))
    assert model[0].num_batches_tracked == 1
    assert model[0].adversarial.num_batches_tracked == 0


def test_both_sets_are_frozen_shared_and_masked_like_others():
    model = split_batchnorm(layer())
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    assert len(shared_tensors(base, model)[1]) == 4
    assert masks.Norm(model).selects(model[0].weight)
    opt = SAM(base, 0.1, model=model)
    x = torch.randn(7, 3, dtype=torch.float64)

    def closure():
        opt.zero_grad()
        loss = model(x).square().sum()
        with adversarial_statistics(model):
            loss = loss + model(2 * x).square().sum()
        loss.backward()
        return loss

    opt.step(closure)
    assert model[0].num_batches_tracked == model[0].adversarial.num_batches_tracked == 1


def test_recalibrating_leaves_the_set_that_no_input_reaches():
    model = split_batchnorm(layer())
    with adversarial_statistics(model):
        model(torch.arange(12.0).view(4, 3).double())
    before = model[0].adversarial.running_mean.clone()
    x = torch.randn(7, 3, dtype=torch.float64)
    recalibrate(model, [x])
    torch.testing.assert_close(model[0].running_mean, x.mean(0), rtol=0, atol=1e-15)
    assert torch.equal(model[0].adversarial.running_mean, before)
    assert model[0].adversarial.num_batches_tracked == 1


def test_a_chain_holds_the_center_of_both_sets():
    model = split_batchnorm(layer())
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters, statistics = shared_tensors(base, model)
    center = LocalCenter(torch.cat([t.detach().reshape(-1) for t in (*parameters, *statistics)]))
    opt = LocalLSAM(base, center, 0.1, model=model)
    with adversarial_statistics(model):
        model(torch.arange(12.0).view(4, 3).double())
    moved = model[0].adversarial.running_mean.clone()
    with opt.center(model):
        assert not model[0].adversarial.running_mean.any()
    assert torch.equal(model[0].adversarial.running_mean, moved)


class Own(nn.BatchNorm1d):
    """A layer with a forward pass that the split does not know."""


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.BatchNorm1d(2), nn.SyncBatchNorm(2)), "SyncBatchNorm"),
        (Own(2), "Own"),
        (split_batchnorm(nn.BatchNorm2d(2)), "SplitBatchNorm2d"),
    ],
)
def test_refuses_other_layers_and_leaves_the_model(model, name):
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(InputError) as caught:
        split_batchnorm(model)
    assert str(caught.value) == f"model: expected BatchNorm1d, 2d or 3d layers, found {name}"
    assert [type(module) for module in model.modules()] == kinds
