"""The losses of classes: they and their Hessians add up, and each is that of its own samples."""

import numpy as np
import pytest
import torch
from torch import nn

from lsam_hpc import InputError
from lsam_hpc.landscape.curvature.blocks import Block, Settings, spectra
from lsam_hpc.landscape.curvature.products import curvature, dense
from lsam_hpc.landscape.curvature.results import KINDS, SMALLEST, Spectrum
from lsam_hpc.landscape.figures.draw_classes import draw_classes
from lsam_hpc.landscape.objective import Objective


@pytest.fixture(scope="module")
def case():
    """Return f of a network with BatchNorm and uneven classes in uneven batches, a point, inputs and targets."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4)).double()
    x = torch.randn(40, 3, dtype=torch.float64)
    y = torch.tensor([0] * 25 + [3] * 4 + [1] * 11)  # no sample of class 2, and class 0 alone in the first batch
    f = Objective(model, list(zip(x.split(16), y.split(16), strict=True)))
    return f, 2 * f.start(), x, y


def hessian(f, at):
    with curvature(f, at) as operator:
        return dense(operator).numpy()


def test_classes_add_up(case):
    f, at, _, _ = case
    parts = f.of_classes()
    assert {name: part.samples for name, part in parts.items()} == {"0": 25, "1": 11, "3": 4}
    whole = hessian(f, at)
    total = sum(part.samples / 40 * hessian(part, at) for part in parts.values())
    np.testing.assert_allclose(total, whole, atol=1e-12 * np.abs(whole).max())
    loss, gradient = f.gradient(at)
    assert sum(part.samples / 40 * part(at).loss for part in parts.values()) == pytest.approx(loss, rel=1e-12)
    total = sum(part.samples / 40 * part.gradient(at)[1] for part in parts.values())
    torch.testing.assert_close(total, gradient, rtol=1e-12, atol=1e-14)
    assert sum(part.samples / 40 * part(at).error for part in parts.values()) == pytest.approx(f(at).error)


def test_spectra_of_a_class_are_those_of_its_own_hessian(case):
    f, at, x, y = case
    with f.at(at) as model:  # the statistics are those of all samples

        def loss(flat, chosen):
            pieces = flat.split([p.numel() for p in f.params])
            named = {name: piece.view(shape) for (name, shape), piece in zip(f.layout, pieces, strict=True)}
            outputs = torch.func.functional_call(model, named, (x[y == chosen],))
            return nn.functional.cross_entropy(outputs, y[y == chosen])

        truth = {c: torch.autograd.functional.hessian(lambda w, c=c: loss(w, c), at).numpy() for c in (0, 1, 3)}
    blocks = [Block("hessian", "all", f.size, None, (*KINDS, SMALLEST), group) for group in ("all", "3", "0")]
    found = spectra(f, at, blocks, Settings(3, steps=60, smallest=2), classes=f.of_classes())
    values = np.linalg.eigvalsh(hessian(f, at))
    np.testing.assert_allclose(found[0].values, values[:-4:-1], rtol=1e-8)
    for spectrum, name in zip(found[1:], (3, 0), strict=True):
        values = np.linalg.eigvalsh(truth[name])
        np.testing.assert_allclose(spectrum.values, values[:-4:-1], rtol=1e-8)
        np.testing.assert_allclose(spectrum.smallest, values[:2], rtol=1e-8)
        assert spectrum.ratio == pytest.approx(-values[0] / values[-1])
        assert spectrum.trace.value == pytest.approx(np.trace(truth[name]), abs=5 * spectrum.trace.error)
        assert spectrum.density.nodes[0] == pytest.approx(values[0], rel=1e-6)
        assert spectrum.density.nodes[-1] == pytest.approx(values[-1], rel=1e-6)


def test_targets_that_are_not_classes():
    x = torch.ones(3, 2)
    for targets in (torch.ones(3, 1), torch.ones(3), torch.ones(3, 2, dtype=torch.long)):
        with pytest.raises(InputError, match="data: expected one class per sample as targets, found shape"):
            Objective(nn.Linear(2, 1), [(x, targets)]).of_classes()


def test_a_figure_of_many_classes_and_few_kinds(tmp_path):
    bare = Spectrum(np.array([2.0]), np.empty((0, 0), np.float32), None, None, np.array([-1.0]))
    rows = [("hessian", str(i), bare) for i in range(12)] + [("ggn", "0", bare._replace(smallest=np.empty(0)))]
    assert draw_classes(rows, tmp_path / "classes.svg").stat().st_size > 5000
    nothing = bare._replace(values=np.empty(0))
    assert np.isnan(nothing.ratio)
    draw_classes([("ggn", "0", nothing)], tmp_path / "none.svg")
