"""Files with a model's state_dict; tests/landscape/test_states.py has damaged ones."""

import pytest
import torch
from torch import nn

from lsam_hpc import InputError
from lsam_hpc.rundir.state_dict import load_model


def model():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_parameters_and_buffers_are_those_of_the_file(tmp_path):
    saved, loaded = model(), model()
    saved(torch.randn(8, 3))
    torch.save(saved.state_dict(), tmp_path / "model.pt")
    load_model(loaded, tmp_path / "model.pt")
    for name, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.bias": torch.ones(3)}, r"model.pt: expected 0.bias of shape \(2,\), found \(3,\)"),
        ({"2.bias": torch.ones(3)}, "model.pt: expected the model's tensors only, found 2.bias"),
    ],
)
def test_a_file_of_another_model(change, message, tmp_path):
    torch.save({**model().state_dict(), **change}, tmp_path / "model.pt")
    target = model()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(InputError, match=message):
        load_model(target, tmp_path / "model.pt")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
