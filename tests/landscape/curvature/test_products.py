"""Products with the Hessian and the Gauss-Newton matrix for layers that lack forward-mode derivatives."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lsam_hpc import InputError
from lsam_hpc.landscape.curvature.products import curvature, dense
from lsam_hpc.landscape.curvature.spectrum import eigenpairs
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.optim import operators


class LastState(nn.Module):
    """A recurrent layer over a sequence of 3 features, and a linear layer on its last output."""

    def __init__(self, kind):
        super().__init__()
        self.recurrent, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


class Attention(nn.Module):
    """Self-attention over a sequence of 4 features, and a linear layer on the mean."""

    def __init__(self, weights):
        super().__init__()
        self.inner, self.head, self.weights = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3), weights

    def forward(self, x):
        return self.head(self.inner(x, x, x, need_weights=self.weights)[0].mean(1))


class Encoder(nn.Module):
    """A Transformer encoder layer over a sequence of 4 features, and a linear layer on the mean."""

    def __init__(self):
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, activation="gelu")
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.inner(x).mean(1))


class Classes(nn.Module):
    """Embeddings of integers; one parameter is not used."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)).mean(1))


def convolution(*after):
    return nn.Sequential(nn.Conv2d(1, 4, 3), *after, nn.Flatten(), nn.Linear(16, 3))


MODELS = {
    "GroupNorm": (lambda: convolution(nn.GroupNorm(2, 4), nn.ReLU()), (1, 4, 4)),
    "SiLU": (lambda: convolution(nn.SiLU()), (1, 4, 4)),
    "BatchNorm2d": (lambda: convolution(nn.BatchNorm2d(4), nn.Tanh()), (1, 4, 4)),
    "LayerNorm": (lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)), (4,)),
    "MaxPool2d": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)), (1, 4, 4)),
    "LSTM": (lambda: LastState(nn.LSTM), (4, 3)),
    "GRU": (lambda: LastState(nn.GRU), (4, 3)),
    "MultiheadAttention": (lambda: Attention(weights=False), (3, 4)),
    "MultiheadAttention with weights": (lambda: Attention(weights=True), (3, 4)),
    "TransformerEncoderLayer": (Encoder, (3, 4)),
    "Embedding": (Classes, None),
}


def problem(name, dtype=torch.float64):
    """Return f of a model on batches of unequal size."""
    torch.manual_seed(0)
    build, shape = MODELS[name]
    x = torch.randint(5, (9, 2)) if shape is None else torch.randn(9, *shape, dtype=torch.float64)
    y = torch.randint(3, (9,))
    model = build().double().to(dtype)
    x = x if shape is None else x.to(dtype)
    return Objective(model, list(zip(x.split(5), y.split(5), strict=True)))


def matrices(f, x):
    """Return the Hessian from torch.autograd.functional, and the Gauss-Newton matrix from its definition."""
    inputs, targets = (torch.cat(parts) for parts in zip(*f.batches, strict=True))
    with f.at(x) as model, sdpa_kernel(SDPBackend.MATH):

        def outputs(flat):
            pieces = flat.split([p.numel() for p in f.params])
            named = {name: piece.view(shape) for (name, shape), piece in zip(f.layout, pieces, strict=True)}
            return torch.func.functional_call(model, named, (inputs,))

        hessian = torch.autograd.functional.hessian(lambda w: nn.functional.cross_entropy(outputs(w), targets), x)
        jacobian = torch.autograd.functional.jacobian(outputs, x)
        p = outputs(x).softmax(1).detach()
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return {"hessian": hessian, "ggn": torch.einsum("nai,nab,nbj->ij", jacobian, inner, jacobian) / len(targets)}


@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_of_the_explicit_matrix(name):
    f = problem(name)
    x = f.start()
    expected = matrices(f, x)
    v = torch.randn(f.size, dtype=torch.float64)
    for matrix in ("hessian", "ggn"):
        with curvature(f, x, matrix) as operator:
            error = (operator @ v - expected[matrix] @ v).norm() / (expected[matrix] @ v).norm()
        assert error < 1e-10, (name, matrix)
    assert (expected["hessian"] - expected["ggn"]).norm() > 1e-3 * expected["ggn"].norm()  # they are two matrices


@pytest.mark.parametrize("name", ["LSTM", "TransformerEncoderLayer", "GroupNorm"])
def test_float32_has_the_same_kernels(name):
    f, single = problem(name), problem(name, torch.float32)
    for matrix in ("hessian", "ggn"):
        top = eigenpairs(single, single.start(), 1, matrix)[0]
        np.testing.assert_allclose(top, eigenpairs(f, f.start(), 1, matrix)[0], rtol=1e-4)


@pytest.mark.parametrize("divided", [True, False])
def test_batches_are_divided_where_the_loss_adds(monkeypatch, divided):
    monkeypatch.setattr(operators, "SPLIT", 1)
    f = problem("BatchNorm2d")
    x, v = f.start(), torch.randn(f.size, dtype=torch.float64)
    expected = matrices(f, x)
    if not divided:  # of unequal parts, the mean of the parts' means would be another loss
        weight = torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64)
        f.loss = nn.CrossEntropyLoss(weight)
        grown = torch.autograd.functional.hessian
        with f.at(x) as model:

            def loss(flat):
                pieces = flat.split([p.numel() for p in f.params])
                named = {name: piece.view(shape) for (name, shape), piece in zip(f.layout, pieces, strict=True)}
                call = torch.func.functional_call
                return sum(f.loss(call(model, named, (a,)), b) * len(b) for a, b in f.batches) / f.samples

            expected["hessian"] = grown(loss, x)
    with curvature(f, x, "hessian") as operator:
        assert len(operator._graphs) == (9 if divided else 2)
        torch.testing.assert_close(operator @ v, expected["hessian"] @ v, rtol=1e-10, atol=1e-12)


def test_graphs_beyond_the_limit_are_made_again(monkeypatch):
    f = problem("LSTM")
    v = torch.randn(f.size, dtype=torch.float64)
    results, counts = [], []
    for limit in (2**31, None, 1):  # all graphs are kept, the first one, none
        with curvature(f, f.start(), check=False) as operator:
            one = operator._bytes(f.batches[0])
        monkeypatch.setattr(operators, "KEPT", limit or one)
        calls = []
        handle = f.model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        with curvature(f, f.start(), check=False) as operator:
            before = len(calls)
            results.append(operator @ v)
        handle.remove()
        counts.append(len(calls) - before)
    assert counts == [0, 1, 2]
    torch.testing.assert_close(results[1], results[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=1e-14, atol=0)
    # What the graph of an LSTM on 5 sequences of 4 steps saves is more than the activations, and within a page or two.
    assert 5 * 4 * 4 * 8 < one < 2**20


class Once(torch.autograd.Function):
    """The square, whose derivative is marked as not differentiable."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Bad(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.w, self.kind = nn.Parameter(torch.full((3, 3), 0.5)), kind

    def forward(self, x):
        if self.kind == "once":
            return Once.apply(x @ self.w)
        if self.kind == "infinite":
            return x @ (self.w - 0.5).abs().pow(1.5)
        return {"logits": x @ self.w}


@pytest.mark.parametrize(
    ("kind", "matrix", "message"),
    [
        ("once", "hessian", "model: expected layers that can be differentiated twice, found: a function whose"),
        ("infinite", "hessian", "model: expected finite products with the hessian at the given state, found nan"),
        ("dict", "ggn", "model: expected a tensor of outputs for the Gauss-Newton matrix, found dict"),
    ],
)
def test_models_without_second_derivatives(kind, matrix, message):
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs["logits"] if kind == "dict" else outputs, targets)

    f = Objective(Bad(kind), [(torch.ones(2, 3), torch.tensor([0, 1]))], loss)
    with pytest.raises(InputError, match=message), curvature(f, f.start(), matrix) as operator:
        dense(operator)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_a_loss_that_is_linear_has_no_curvature(matrix):
    f = Objective(nn.Linear(3, 2), [(torch.ones(4, 3), torch.zeros(4))], lambda outputs, _: outputs.mean())
    with curvature(f, f.start(), matrix) as operator:
        assert (dense(operator) == 0).all()
