"""Every ascent with every metric, mask, mixed precision and accumulation: three steps are right, or refused.

What is right is computed on flat vectors: the ascents are written out once more, with the metric and the mask that the
optimizer reports.
"""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from lsam_hpc import SAM, InputError
from lsam_hpc.optim import masks
from lsam_hpc.options.ascent import ASCENTS, MASKS, AscentOptions
from tests.helpers.problems import batches, flat, gradient, samples

LR, RHO, GAMMA, ETA, MOMENTUM = 0.2, 0.1, 1e-3, 0.01, 0.9
ONE_PASS = ("dp-sat", "msam")
METRICS = ("l2", "adaptive")
WAYS = ("closure", "scaler", "accumulation")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()


def make_mask(name, model):
    if name == "layers":
        return masks.Layers(model, ["0.*"])
    return masks.make(AscentOptions(mask=name, mask_refresh=2), model, samples(), 20)


class Reference:
    """The steps on flat vectors; the mask is asked for the coordinates that move and their factors."""

    def __init__(self, model, ascent, metric, mask):
        self.model, self.ascent, self.metric, self.mask = model, ascent, metric, mask
        self.x, self.buffer, self.last, self.previous = flat(model), None, None, None
        self.params = list(model.parameters())

    def split(self, vector):
        pieces = vector.split([p.numel() for p in self.params])
        return [piece.view(p.shape).clone() for piece, p in zip(pieces, self.params, strict=True)]

    def move(self, at, g, rho=RHO, *, first=True):
        """Return at + e(g), with the mask's own selection and factors."""
        if g is None:
            return at
        chosen = [self.mask.selects(p) for p in self.params]
        kept = torch.cat([torch.full((p.numel(),), float(c)) for p, c in zip(self.params, chosen, strict=True)])
        scale = at.abs() + ETA if self.metric == "adaptive" else torch.ones_like(at)
        params = [p for p, c in zip(self.params, chosen, strict=True) if c]
        if first and params:
            self.mask.prepare(params, [d for d, c in zip(self.split(g), chosen, strict=True) if c])
        unit = kept * scale * g
        direction = self.split(scale * unit / (unit.norm() + GAMMA))
        selected = [d for d, c in zip(direction, chosen, strict=True) if c]
        if selected:
            self.mask.multiply_(params, selected)
        moved = at + rho * torch.cat([d.reshape(-1) for d in direction])
        if first:
            before = flat(self.model)
            self.load(moved)
            self.mask.moved(params)
            self.load(before)
        return moved

    @torch.no_grad()
    def load(self, vector):
        for p, piece in zip(self.params, self.split(vector), strict=True):
            p.copy_(piece)

    def g(self, at, batch):
        return gradient(self.model, at, *batch)

    def step(self, batch):
        x = self.x
        if self.ascent == "sam":
            d = self.g(self.move(x, self.g(x, batch)), batch)
        elif self.ascent == "dp-sat":
            d = self.last = self.g(self.move(x, self.last), batch)
        elif self.ascent == "msam":
            d = self.g(self.move(x, None if self.buffer is None else -self.buffer), batch)
        elif self.ascent == "asyncsam":
            part = tuple(t[:4] for t in batch)
            at_x = self.g(x, part)
            d = self.g(self.move(x, self.last), batch)
            self.last = at_x
        elif self.ascent == "sampa" and self.last is None:
            d = self.last = self.g(x, batch)
        elif self.ascent == "sampa":
            ascent = self.g(self.move(x, self.last), self.previous)
            ahead = self.last if self.buffer is None else MOMENTUM * self.buffer + self.last
            self.last = self.g(x - LR * ahead, batch)
            d = 0.8 * ascent + 0.2 * self.last
        else:
            g0 = self.g(x, batch)
            g1 = self.g(self.move(x, g0), batch)
            x1 = self.move(x, g1 - g0, 0.2, first=False)
            g2 = self.g(x1, batch)
            g3 = self.g(self.move(x1, g2, first=False), batch)
            d, q = 0.6 * g1 + 0.4 * g3, g0 + 0.5 * g2
            d = d - 0.03 * (q - (q @ d) / (d.norm() * q.norm() + GAMMA) * q.norm() * d / (d.norm() + GAMMA))
        self.previous = batch
        self.buffer = d if self.buffer is None else MOMENTUM * self.buffer + d
        self.x = x - LR * self.buffer
        self.load(self.x)
        self.mask.end_step(self.params)


def take_step(model, opt, batch, way):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if way == "scaler" else None

    def closure(batch):
        opt.zero_grad()
        parts = [(t[:8], t[8:]) if way == "accumulation" and len(t) > 8 else (t,) for t in batch]
        for x, y in zip(*parts, strict=True):
            loss = functional.cross_entropy(model(x), y) * len(y) / len(batch[1])
            (loss if scaler is None else scaler.scale(loss)).backward()
        return loss

    opt.step(closure, scaler, batch=batch)
    if scaler is not None:
        scaler.update()


COMBINATIONS = itertools.product([a for a in ASCENTS if a != "center"], METRICS, [*MASKS, "layers"])


@pytest.mark.parametrize(("ascent", "metric", "mask"), list(COMBINATIONS))
def test_three_steps_are_right_or_refused(ascent, metric, mask):
    for way in WAYS:
        model, other = network(), network()
        base = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        options = {"ascent": ascent, "metric": metric, "eta": ETA, "mask": make_mask(mask, model)}
        if mask == "sl-sam" and ascent != "sam":
            with pytest.raises(InputError, match=f"^mask: expected the ascent sam for SLSAM, found {ascent}$"):
                SAM(base, RHO, GAMMA, **options)
            continue
        opt = SAM(base, RHO, GAMMA, **options)
        reference = Reference(other, ascent, metric, make_mask(mask, other))
        for batch in batches(3):
            take_step(model, opt, batch, way)
            if mask == "sl-sam":  # moves chosen layers only, in the descent too: tests/optim/masks/test_sl_sam.py
                assert torch.isfinite(flat(model)).all()
                continue
            reference.step(batch)
            torch.testing.assert_close(flat(model), reference.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("ascent", "mask"), list(itertools.product(ASCENTS, [*MASKS, "layers"])))
def test_with_rho_0_a_step_is_the_base_optimizers_to_the_bit_and_takes_one_pass(ascent, mask):
    if ascent == "center" or mask == "sl-sam":
        return  # needs a center; the descent leaves layers out
    ours, plain, calls = network(), network(), []
    base = torch.optim.SGD(ours.parameters(), lr=LR, momentum=MOMENTUM)
    opt = SAM(base, lambda step: 0.0 * step, ascent=ascent, mask=make_mask(mask, ours))
    calls.clear()
    ours.register_forward_pre_hook(lambda *_: calls.append(1))
    base = torch.optim.SGD(plain.parameters(), lr=LR, momentum=MOMENTUM)
    for x, y in batches(6):
        take_step(ours, opt, (x, y), "closure")
        base.zero_grad()
        functional.cross_entropy(plain(x), y).backward()
        base.step()
    assert torch.equal(flat(ours), flat(plain))
    assert len(calls) == 6 + (mask == "ssam-f") * 3 * len(samples())
