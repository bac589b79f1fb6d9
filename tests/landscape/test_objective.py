"""The objective against closed forms: values, gradients, and a model that is restored."""

import numpy as np
import pytest
import torch
from torch import nn

from lsam_hpc import InputError
from lsam_hpc.landscape.objective import Objective, fixed_batches


def half_square(outputs, targets):
    return 0.5 * (outputs - targets).square().sum(1).mean()


def regression(samples=23, batch=7):
    """Return linear regression: f(w) = |X w - y|^2 / (2 N)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    return Objective(model, list(zip(x.split(batch), y.split(batch), strict=True)), half_square), x, y


def test_value_and_gradient_of_a_linear_regression():
    f, x, y = regression()
    w = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    rest = x @ w - y[:, 0]
    assert f(w).loss == pytest.approx(float(rest.square().sum() / (2 * len(y))), rel=1e-12)
    assert np.isnan(f(w).error)
    loss, grad = f.gradient(w)
    assert loss == pytest.approx(f(w).loss, rel=1e-12)
    torch.testing.assert_close(grad, x.T @ rest / len(y), rtol=1e-12, atol=1e-12)
    up = f.ascent(w, 0.3)
    torch.testing.assert_close(up, w + 0.3 * grad / grad.norm(), rtol=1e-12, atol=1e-12)


def test_error_counts_wrong_classes():
    model = nn.Linear(2, 2, bias=False)
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    f = Objective(model, [(x[:3], torch.tensor([0, 1, 1])), (x[3:], torch.tensor([0]))])
    assert f(torch.eye(2).reshape(-1)).error == 25


def test_batch_norm_is_recalibrated_at_each_point_and_the_model_is_restored():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 2)).double().train()
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(2, (40,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    f = Objective(model, [(x, y)])
    point = torch.randn(f.size, dtype=torch.float64)
    value_at_point = f(point)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    # By hand: all data are one batch, so its mean and variance are the statistics.
    weight, bias = point[:15].reshape(5, 3), point[15:20]
    scale, shift, last = point[20:25], point[25:30], point[30:]
    hidden = x @ weight.T + bias
    # Running variances are the unbiased ones.
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0) + 1e-5).sqrt() * scale + shift
    logits = hidden @ last[:10].reshape(2, 5).T + last[10:]
    assert value_at_point.loss == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-10)
    stale = Objective(model, [(x, y)], batch_norm="keep")(point)
    assert abs(stale.loss - value_at_point.loss) > 1e-3


@pytest.mark.parametrize(("layer", "enabled"), [(nn.GRU(3, 2), False), (nn.Linear(3, 2), True)])
def test_recurrent_layers_do_not_use_cudnn(layer, enabled):
    """Cudnn's recurrent layers have no derivative in eval mode; no GPU is needed to see the switch."""
    f = Objective(nn.Sequential(layer), [(torch.zeros(2, 3), torch.zeros(2))])
    with f.at(f.start()):
        assert torch.backends.cudnn.enabled == enabled
    assert torch.backends.cudnn.enabled


def test_frozen_parameters_are_not_in_x():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    f = Objective(model, [(torch.randn(4, 3), torch.randn(4, 1))], half_square)
    assert f.layout == [("1.weight", (1, 2)), ("1.bias", (1,))]


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x * self.w + torch.rand(1)


def test_randomness_is_detected():
    x, y = torch.ones(3, 2), torch.ones(3, 2)
    with pytest.raises(InputError, match=r"model: expected the same loss twice, found .* random in eval mode"):
        Objective(Noisy(), [(x, y)], half_square).check()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.arange(100.0)[:, None], torch.arange(100)), batch_size=10, shuffle=True
    )
    with pytest.raises(InputError, match="data: expected the same samples in each pass"):
        fixed_batches(loader)
    f, _, _ = regression()
    f.check()
    with pytest.raises(InputError, match="loss: expected a finite number at the given state, found nan"):
        f.check(torch.full((4,), torch.nan))


def test_bad_input():
    with pytest.raises(InputError, match="data: expected at least one sample, found none"):
        Objective(nn.Linear(2, 2), [])
    with pytest.raises(InputError, match="model: expected parameters that can be trained, found none"):
        Objective(nn.ReLU(), [(torch.ones(1, 1), torch.ones(1))])
    f, _, _ = regression()
    with pytest.raises(InputError, match="model: expected 5 parameters, as in the state, found 4"):
        f(torch.ones(5))
    with pytest.raises(InputError, match="data: expected pairs of tensors, inputs and targets, found Tensor"):
        fixed_batches([torch.ones(3)])


def test_at_most_the_given_number_of_samples():
    x = torch.arange(10.0)[:, None]
    batches = fixed_batches(list(zip(x.split(4), x.split(4), strict=True)), 6)
    assert [len(y) for _, y in batches] == [4, 2]
