"""FSAM against its definition: the largest squared gradients of the mini-batch, some kinds of parameters dense."""

import pytest
import torch
from torch import nn

from lsam_hpc import SAM, InputError
from lsam_hpc.optim.masks import FSAM
from tests.helpers.masked import METRICS, trained
from tests.helpers.problems import network


@pytest.mark.parametrize("metric", METRICS)
def test_a_step_equals_the_definition(metric):
    """network(): 48 + 24 weights and 8 + 3 biases; 18 weights move."""
    weights = torch.cat([torch.full((p.numel(),), "bias" not in name) for name, p in network().named_parameters()])
    current = []

    def factors(step, x, g, at):
        if step % 4 == 0:
            order = (g**2 * weights).argsort(descending=True)
            current[:] = [(~weights).double().index_fill(0, order[:18], 1.0)]
        return current[0]

    assert max(trained(12, lambda model: FSAM(model, 0.25, 4), factors, metric=metric)) <= 1e-12


def test_the_gradient_is_ranked_before_the_metric_scales_it():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[10.0, 0.01]])
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.0), 1.0, metric="adaptive", mask=FSAM(model, 0.5))
    (model.weight * torch.tensor([1.0, 5.0])).sum().backward()
    opt.perturb()
    assert (model.weight != torch.tensor([[10.0, 0.01]])).tolist() == [[False, True]]


def test_biases_embeddings_and_normalization_layers_are_dense():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
            self.linear, self.pos_embed = nn.Linear(4, 3), nn.Parameter(torch.ones(1, 4))

    model = Model()
    mask = FSAM(model)
    assert [name for name, p in model.named_parameters() if not mask.dense(p)] == ["linear.weight"]
    params = list(model.parameters())
    direction = [torch.ones_like(p) for p in params]
    mask.prepare(params, [torch.randn_like(p) for p in params])
    mask.multiply_(params, direction)
    moved = {name: int(d.sum()) for (name, _), d in zip(model.named_parameters(), direction, strict=True)}
    assert moved == {
        "pos_embed": 4,
        "words.weight": 20,
        "norm.weight": 4,
        "norm.bias": 4,
        "linear.weight": 6,
        "linear.bias": 3,
    }


def test_a_model_of_dense_parameters_only_is_refused():
    with pytest.raises(InputError) as caught:
        FSAM(nn.LayerNorm(3))
    assert str(caught.value) == (
        "mask: expected weights besides biases, embeddings and normalization layers, found none"
    )
