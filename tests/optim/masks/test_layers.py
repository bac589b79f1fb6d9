"""The mask of parameters by name."""

import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.optim.masks import Layers
from tests.helpers.masked import METRICS, trained
from tests.helpers.problems import network


@pytest.mark.parametrize("metric", METRICS)
def test_the_parameters_that_match_the_patterns_move(metric):
    names = ("0.bias", "2.weight", "2.bias")
    chosen = torch.cat([torch.full((p.numel(),), name in names) for name, p in network().named_parameters()])
    differences = trained(
        10, lambda model: Layers(model, ["2.*", "*.bias"]), lambda *_: chosen, metric=metric, selected_norm=True
    )
    assert max(differences) <= 1e-12


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(InputError) as caught:
        Layers(network(), ["9.*"])
    assert str(caught.value) == "mask: expected a pattern that matches a parameter's name, found '9.*'"
