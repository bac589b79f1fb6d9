"""The laws that LSAM's chains should sample, by numerical quadrature, and many chains to compare with them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lsam_hpc.optim import LocalCenter, LocalLSAM

Array = NDArray[np.float64]
Numbers = TypeVar("Numbers", Array, Tensor)


@dataclass(frozen=True)
class Well:
    """f(x) = height * (x^2 - 1)^2 + tilt * x, elementwise: two wells of different depth."""

    height: float = 1.0
    tilt: float = 0.2

    def value(self, x: Array) -> Array:
        """Return f."""
        return self.height * (x * x - 1) ** 2 + self.tilt * x

    def gradient(self, x: Numbers) -> Numbers:
        """Return f'."""
        return 4 * self.height * x * (x * x - 1) + self.tilt

    def critical(self) -> Array:
        """Return the points where f' = 0, in order."""
        roots = np.roots([4 * self.height, 0.0, -4 * self.height, self.tilt])
        return np.sort(roots.real[np.isreal(roots)])


@dataclass(frozen=True)
class Bowl:
    """f(x) = a/2 |x|^2 in any dimension."""

    a: float = 1.0

    def value(self, x: Array) -> Array:
        """Return f in one dimension, elementwise."""
        return self.a / 2 * x * x

    def gradient(self, x: Numbers) -> Numbers:
        """Return grad f."""
        return self.a * x

    def critical(self) -> Array:
        """Return the point where grad f = 0."""
        return np.zeros(1)


def ascended(f: Well | Bowl, x: Array, rho: float) -> Array:
    """Return x + rho * sign(f'(x)): x + e(x) in one dimension with gamma = 0."""
    return x + rho * np.sign(f.gradient(x))


def f_sam(f: Well | Bowl, x: Array, rho: float) -> Array:
    """Return f(x + e(x)) in one dimension with gamma = 0."""
    return f.value(ascended(f, x, rho))


def jumps(f: Well | Bowl, rho: float) -> Array:
    """Return the height of the jump of f_SAM at each of f's critical points."""
    points = f.critical()
    between = np.concatenate([points[:1] - 1, (points[1:] + points[:-1]) / 2, points[-1:] + 1])
    signs = np.sign(f.gradient(between))
    return f.value(points + rho * signs[1:]) - f.value(points + rho * signs[:-1])


def descended(f: Well | Bowl, x: Array, rho: float) -> Array:
    """Return the potential that the steps descend: f_SAM without its jumps, with the derivative f'(x + e(x))."""
    passed = x[:, None] > f.critical()
    return f_sam(f, x, rho) - passed @ jumps(f, rho)


@dataclass(frozen=True)
class Law:
    """q(x|y) ~ exp(-(u(x) + lambda/2 |x - y|^2) / T) for y on an axis, as a sum over quadrature nodes.

    Attributes:
        along: coordinate of the nodes along the axis of y.
        across: their distance from that axis, 0 in one dimension.
        weights: of the nodes.
        u: the potential at the nodes.
        stiffness: lambda.
        temperature: T.
    """

    along: Array
    across: Array
    weights: Array
    u: Array
    stiffness: float
    temperature: float

    def free_energy(self, y: float) -> float:
        """Return F(y) = -T log integral exp(-(u(x) + k(x, y)) / T) dx."""
        exponent = self._exponent(y)
        top = exponent.max()
        return -self.temperature * float(top + np.log(self.weights @ np.exp(exponent - top)))

    def masses(self, y: float) -> Array:
        """Return the probability of each node under q(.|y)."""
        exponent = self._exponent(y)
        masses: Array = self.weights * np.exp(exponent - exponent.max())
        return masses / masses.sum()

    def density(self, y: float) -> Array:
        """Return q(x|y) at the nodes."""
        return self.masses(y) / self.weights

    def mean(self, y: float) -> float:
        """Return E_q[x], along the axis."""
        return float(self.masses(y) @ self.along)

    def variance(self, y: float) -> float:
        """Return the variance of x under q(.|y), along the axis."""
        return float(self.masses(y) @ (self.along - self.mean(y)) ** 2)

    def score(self, y: float) -> float:
        """Return lambda (y - E_q[x]), which theorem 1 says is dF/dy."""
        return self.stiffness * (y - self.mean(y))

    def bins(self, y: float, edges: Array) -> Array:
        """Return the probability between successive edges, which must be ends of the panels."""
        return np.histogram(self.along, edges, weights=self.masses(y))[0]

    def stepped(self, y: float, lr: float, slope: Callable[[Array], Array]) -> Law:
        """Return the stationary law of steps with a finite lr, as a law with its own potential for this y.

        It solves p(x') = integral N(x'; x - lr (slope(x) + lambda (x - y)), 2 lr T) p(x) dx on the nodes, in one
        dimension. The nodes must be closer than sqrt(2 lr T).
        """
        x, spread = self.along, math.sqrt(2 * lr * self.temperature)
        landed = x - lr * (slope(x) + self.stiffness * (x - y))
        kernel = np.exp(-(((x[:, None] - landed) / spread) ** 2) / 2) / (spread * math.sqrt(2 * math.pi))
        # p = kernel @ (weights * p), with the total in place of one of the dependent equations.
        system = kernel * self.weights - np.eye(x.size)
        system[x.size // 2] = self.weights
        right = np.zeros(x.size)
        right[x.size // 2] = 1.0
        density = np.linalg.solve(system, right).clip(1e-300)
        u = -self.temperature * np.log(density) - self.stiffness / 2 * (x - y) ** 2
        return Law(x, self.across, self.weights, u, self.stiffness, self.temperature)

    def _exponent(self, y: float) -> Array:
        kernel = self.stiffness / 2 * ((self.along - y) ** 2 + self.across**2)
        return -(self.u + kernel) / self.temperature


def panels(ends: Array, width: float = 0.1, order: int = 10) -> tuple[Array, Array]:
    """Return Gauss-Legendre nodes and weights on panels no wider than `width`; `ends` are ends of panels."""
    ends = np.unique(ends)
    pieces = [np.linspace(a, b, math.ceil((b - a) / width) + 1) for a, b in itertools.pairwise(ends)]
    cuts = np.unique(np.concatenate(pieces))
    unit, weights = np.polynomial.legendre.leggauss(order)
    half, middle = np.diff(cuts)[:, None] / 2, (cuts[1:] + cuts[:-1])[:, None] / 2
    return (middle + half * unit).ravel(), (half * weights).ravel()


def line_law(
    f: Well | Bowl,
    rho: float,
    stiffness: float,
    temperature: float,
    *,
    jumping: bool = False,
    edges: Array | None = None,
    reach: float = 4.0,
) -> Law:
    """Return the law in one dimension on [-reach, reach].

    Args:
        f: the loss.
        rho: ascent radius.
        stiffness: lambda.
        temperature: T.
        jumping: use f_SAM itself as potential, in place of `descended`.
        edges: of bins; they become ends of panels.
        reach: half the width of the range.
    """
    # A panel must not straddle a critical point: the potential has a kink there.
    ends = np.concatenate([[-reach, reach], f.critical(), [] if edges is None else edges])
    x, weights = panels(ends)
    u = f_sam(f, x, rho) if jumping else descended(f, x, rho)
    return Law(x, np.zeros_like(x), weights, u, stiffness, temperature)


def ball_law(f: Bowl, dimension: int, rho: float, stiffness: float, temperature: float, *, reach: float = 8.0) -> Law:
    """Return the law of a bowl's f_SAM = a/2 (|x| + rho)^2 in two dimensions or more, out to |x| = reach.

    In polar coordinates around the axis of y the integrand is smooth, the kink at x = 0 included.
    """
    r, of_r = panels(np.array([0.0, reach]))
    angle, of_angle = panels(np.array([0.0, math.pi]), width=0.4)
    along, across = np.multiply.outer(r, np.cos(angle)).ravel(), np.multiply.outer(r, np.sin(angle)).ravel()
    weights = np.multiply.outer(of_r * r ** (dimension - 1), of_angle * np.sin(angle) ** (dimension - 2)).ravel()
    return Law(along, across, weights, f.a / 2 * (np.hypot(along, across) + rho) ** 2, stiffness, temperature)


class Replicas:
    """N independent chains of d dimensions in one LSAM over a parameter of shape (N, d), one row each.

    LSAM divides by the norm over all parameters, which would couple the rows. So each row of the gradient for the
    ascent is scaled to norm 1, the norm over all parameters is sqrt(N), and rho is sqrt(N) times as large: each row
    moves by rho * g / |g| with its own g. The gradient for the step is that of the loss.

    Args:
        gradient: of the loss, row by row.
        start: shape (N, d).
        center: y of each row, N * d elements.
        lr: learning rate.
        rho: ascent radius of each chain.
        options: of LSAM.
    """

    def __init__(
        self,
        gradient: Callable[[Tensor], Tensor],
        start: Tensor,
        center: LocalCenter,
        lr: float,
        rho: float,
        **options: Any,
    ) -> None:
        self.x = nn.Parameter(start.clone())
        self._gradient = gradient
        self._ascents = itertools.cycle([True, False] if rho else [False])  # with rho = 0 a step has one pass
        base = torch.optim.SGD([self.x], lr=lr)
        self.opt = LocalLSAM(base, center, rho * math.sqrt(len(start)), coupling="kernel", **options)

    def step(self) -> None:
        """Take one step of every chain."""
        self.opt.step(self._closure)

    def record(self, count: int, every: int) -> Array:
        """Take count * every steps; return the chains after each `every` of them, shape (count, N, d)."""
        out = np.empty((count, *self.x.shape))
        for row in out:
            for _ in range(every):
                self.step()
            row[:] = self.x.detach().numpy()
        return out

    @torch.no_grad()
    def _closure(self) -> float:
        g = self._gradient(self.x)
        if next(self._ascents):
            g = g / torch.linalg.vector_norm(g, dim=1, keepdim=True)
        self.x.grad = g
        return 0.0


def fixed(
    f: Well | Bowl, y: Array, count: int, lr: float, rho: float, stiffness: float, temperature: float, seed: int
) -> Replicas:
    """Return `count` chains around a fixed center at y, shape (d,); they start at y."""
    start = torch.tensor(y, dtype=torch.float64).repeat(count, 1)
    return Replicas(
        f.gradient,
        start,
        LocalCenter(start.ravel()),
        lr,
        rho,
        stiffness=stiffness,
        temperature=temperature,
        pull=0.0,
        period=2**62,
        seed=seed,
    )


def estimate(per_chain: Array) -> tuple[float, float]:
    """Return the mean of independent chains' averages and its standard error."""
    return float(per_chain.mean()), float(per_chain.std(ddof=1) / math.sqrt(len(per_chain)))
