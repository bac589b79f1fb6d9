"""SSAM-F against a transcription of the authors' code on flat vectors: the Fisher masks, and N:M patterns."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lsam_hpc import SAM, InputError
from lsam_hpc.optim.masks import SSAMF
from lsam_hpc.optim.masks.ssam_f import in_pattern
from tests.helpers.masked import METRICS, mask_of, trained
from tests.helpers.problems import batches, closure_of, flat, gradient, network, samples

SEED = 5


def square_sum(model, data, x, number, count):
    """Return the sum of squared single-sample gradients at x; `number` of the mask determines the order."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(SEED * 1_000_003 + number))
    total = torch.zeros_like(x)
    for index in order[:count]:
        image, label = data[int(index)]
        total += gradient(model, x, image[None], label[None]) ** 2
    return total


@pytest.mark.parametrize("metric", METRICS)
def test_a_step_equals_the_authors_code(metric):
    data, model, sparsity, count, refresh = samples(), network(), 0.75, 12, 4
    current, made = [torch.zeros(83, dtype=torch.float64)], []

    def factors(step, x, g, at):
        # The authors make the mask after the first step of a period, at the new x: at the start of the next step.
        if step >= 1 and (step - 1) % refresh == 0:
            fisher = square_sum(model, data, x, step - 1, count)
            keep = int(len(fisher) * (1 - sparsity))
            mask = torch.zeros_like(fisher)
            mask[torch.topk(fisher, keep).indices] = 1.0
            current[:] = [mask]
            made.append(mask)
        if step:
            assert torch.equal(mask_of(built[0], list(model.parameters())), current[0])
        return current[0]

    built = []

    def make(model):
        built.append(SSAMF(model, data, density=0.25, refresh=refresh, samples=count, seed=SEED))
        return built[0]

    assert max(trained(12, make, factors, metric=metric, model=model)) <= 1e-12
    assert len(made) == 3
    assert not torch.equal(made[0], made[1])


def test_the_fisher_sum_is_of_single_samples_not_of_their_mean():
    """The mean gradient of a pair with opposite gradients in a coordinate is 0 there; the sum of squares is not."""
    model = nn.Linear(2, 1, bias=False).double()
    data = TensorDataset(torch.tensor([[1.0, 0.1], [-1.0, 0.1]], dtype=torch.float64), torch.ones(2))
    mask = SSAMF(model, data, lambda outputs, targets: outputs.sum(), density=0.5)
    assert mask.make([model.weight])[0].tolist() == [[True, False]]


def nm_mask(fisher, n, m):
    """The authors' mask of a matrix: in each row of m of the reshaped matrix, the m - n smallest are 0."""
    rows = fisher.reshape(int(fisher.numel() / m), m)
    mask = torch.ones_like(rows)
    for row, values in zip(mask, rows, strict=True):
        row[torch.argsort(values)[: m - n]] = 0
    return mask.reshape(fisher.shape)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 8)])
def test_a_pattern_of_a_matrix_equals_the_authors_code(n, m):
    fisher = torch.rand(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = in_pattern(fisher, n, m)
    assert torch.equal(mask.double(), nm_mask(fisher, n, m))
    assert (mask.view(-1, m).sum(1) == n).all()
    assert fisher[mask].mean() > fisher[~mask].mean()


def test_a_pattern_of_a_convolution_is_the_authors_at_the_coordinates_it_was_made_for():
    fisher = torch.rand(8, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    transposed = nm_mask(fisher.view(8, -1).t(), 2, 4)
    mask = in_pattern(fisher, 2, 4)
    assert torch.equal(mask.double(), transposed.t().reshape(8, 3, 3, 3))
    # The authors' code reads the transposed mask in the order of the weight: another mask, of other coordinates.
    theirs = transposed.view(8, 3, 3, 3)
    assert not torch.equal(mask.double(), theirs)
    assert theirs.sum() == mask.sum() == fisher.numel() / 2


def test_a_step_with_a_pattern():
    data, model = samples(), network()
    current = [torch.zeros(83, dtype=torch.float64)]

    def factors(step, x, g, at):
        if step >= 1 and (step - 1) % 5 == 0:
            pieces = square_sum(model, data, x, step - 1, 10).split([p.numel() for p in model.parameters()])
            masks = [
                nm_mask(piece.view(p.shape), 2, 4) if p.ndim == 2 else torch.ones_like(piece)
                for piece, p in zip(pieces, model.parameters(), strict=True)
            ]
            current[:] = [torch.cat([mask.reshape(-1) for mask in masks])]
        return current[0]

    differences = trained(
        11, lambda m: SSAMF(m, data, refresh=5, samples=10, pattern="2:4", seed=SEED), factors, model=model
    )
    assert max(differences) <= 1e-12


def test_nothing_else_changes():
    """Gradients, buffers, modes and the random state are as before a new mask."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)]
    model = nn.Sequential(*layers)
    model[2].eval()
    data = TensorDataset(torch.randn(20, 1, 6, 6), torch.randint(0, 3, (20,)))
    params = list(model.parameters())
    for p in params:
        p.grad = torch.randn_like(p)
    grads = [p.grad.clone() for p in params]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    mask = SSAMF(model, data, samples=8)
    mask.end_step(params)
    assert any(bool(m.any()) for m in mask.state_dict(params)["masks"].values())
    assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    # Dropout repeats for the same number of steps, whatever the random state is.
    torch.manual_seed(99)
    other = SSAMF(model, data, samples=8)
    other.end_step(params)
    for i, m in mask.state_dict(params)["masks"].items():
        assert torch.equal(other.state_dict(params)["masks"][i], m)


def test_samples_are_seen_in_training_mode():
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            seen.append((self.training, x.shape))
            return super().forward(x)

    model = Spy(6, 3).double().eval()
    SSAMF(model, samples(), samples=1000).make(list(model.parameters()))
    assert set(seen) == {(True, (1, 6))}
    assert len(seen) == 41  # one in the constructor, and each sample once
    assert not model.training


def test_frozen_and_unused_parameters_are_not_ranked():
    model = nn.ModuleDict({"used": nn.Linear(6, 3), "frozen": nn.Linear(6, 6), "unused": nn.Linear(6, 3)}).double()
    model["frozen"].requires_grad_(False)
    model.forward = lambda x: model["used"](model["frozen"](x))
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), mask=SSAMF(model, samples(), density=0.25, samples=5))
    x, y = next(batches(1))
    for _ in range(2):
        opt.step(closure_of(model, opt, x, y))
    masks = opt.state_dict()["sam"]["mask"]["masks"]
    assert [int(mask.sum()) for mask in masks.values()][2:] == [0, 0]
    assert sum(int(mask.sum()) for mask in masks.values()) == int(0.25 * 42)


def test_the_first_step_does_not_ascend():
    model, plain = network(), network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.3), 0.5, mask=SSAMF(model, samples(), samples=5))
    base = torch.optim.SGD(plain.parameters(), lr=0.3)
    equal = []
    for x, y in batches(2):
        opt.step(closure_of(model, opt, x, y))
        base.step(closure_of(plain, base, x, y))
        equal.append(torch.equal(flat(model), flat(plain)))
    assert equal == [True, False]


def batch_norm():
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network, {"samples": 0}, "mask: expected 1 sample or more, found samples=0 of 40"),
        (network, {"refresh": 0}, "mask: expected a refresh period of 1 ascent or more, found 0"),
        (
            network,
            {"pattern": "4:2"},
            "mask_pattern: expected none or N:M with N from 1 to M - 1, such as 2:4, found '4:2'",
        ),
        (network, {"pattern": "1:5"}, "mask: expected parameters of a multiple of 5 elements, found shape (8, 6)"),
        (
            batch_norm,
            {},
            "mask: expected a model in training mode and a loss that take one sample, found: Expected more than 1 "
            "value per channel when training, got input size torch.Size([1, 4])",
        ),
        (
            network,
            {"loss": lambda outputs, targets: outputs.logits},  # as of a batch that is a dict
            "mask: expected a model in training mode and a loss that take one sample, found: 'Tensor' object has no "
            "attribute 'logits'",
        ),
        (
            network,
            {"loss": lambda outputs, targets: outputs},
            "mask: expected a model in training mode and a loss that take one sample, found: grad can be implicitly "
            "created only for scalar outputs",
        ),
    ],
)
def test_wrong_arguments_are_refused(model, options, message):
    with pytest.raises(InputError) as caught:
        SSAMF(model(), samples(), **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
