"""The mask of normalization layers (SAM-ON): which modules are found, and the step."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lsam_hpc import InputError
from lsam_hpc.optim.masks import Norm
from tests.helpers.masked import METRICS, trained
from tests.helpers.problems import network


class LlamaRMSNorm(nn.Module):
    """As transformers writes it."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=torch.float64))

    def forward(self, x):
        return self.weight * (x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt())


class LayerNorm2d(nn.LayerNorm):
    """As timm's."""


class ChannelNorm(nn.Module):
    """With a gain of shape (1, C, 1, 1)."""

    def __init__(self, channels):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))


class PreNorm(nn.Module):
    """A block with a normalization layer and a gain of its own, but with a matrix too."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.gain = LlamaRMSNorm(4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))


class NormalizedLinear(nn.Linear):
    """A linear layer with normalized weights."""


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("layer", [nn.LayerNorm, LlamaRMSNorm])
def test_a_step_equals_sam_on(layer, metric):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), layer(8), nn.Tanh(), nn.Linear(8, 3)).double()
    chosen = torch.cat([torch.full((p.numel(),), name.startswith("1.")) for name, p in model.named_parameters()])
    assert chosen.any()
    differences = trained(10, Norm, lambda *_: chosen, metric=metric, selected_norm=True, model=model)
    assert max(differences) <= 1e-12


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(4),
        nn.InstanceNorm1d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.LayerNorm((2, 4)),
        nn.RMSNorm(4),
        LlamaRMSNorm(4),
        LayerNorm2d(4),
        ChannelNorm(4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_normalization_layer_is_found(layer):
    model = nn.Sequential(nn.Linear(4, 4), layer)
    mask = Norm(model)
    assert all(mask.selects(p) for p in layer.parameters())
    assert not any(mask.selects(p) for p in model[0].parameters())


def test_other_modules_with_norm_in_their_name_are_not_found():
    block = PreNorm()
    mask = Norm(block)
    assert [name for name, p in block.named_parameters() if mask.selects(p)] == ["norm.weight"]


@pytest.mark.parametrize(
    "model",
    [
        network(),
        parametrizations.weight_norm(nn.Linear(3, 3)),
        parametrizations.spectral_norm(nn.Linear(3, 3)),
        torch.nn.utils.weight_norm(nn.Linear(3, 3)),
        NormalizedLinear(3, 3),
        nn.LayerNorm(3, elementwise_affine=False),
    ],
)
def test_a_model_without_normalization_layers_is_refused(model):
    with pytest.raises(InputError) as caught:
        Norm(model)
    assert str(caught.value) == "mask: expected a model with normalization layers that have parameters, found none"
