"""`lsam bench optimizer`: cost of a SAM step beyond its passes, and of each ascent's step beyond the base step."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from lsam_hpc.optim import SAM
from lsam_hpc.options.ascent import ASCENTS
from lsam_hpc.tools.bench.base import Report, Row, aim, caption, counted, device_of, markdown, medians, number, wait_for
from lsam_hpc.train.models import cnn, resnet18

TITLE = "The optimizer"
LR, MOMENTUM, RHO = 1e-4, 0.9, 0.05
MEASURED = tuple(ascent for ascent in ASCENTS if ascent != "center")  # it needs a center


def measure(repeats: int, *, quick: bool) -> list[Row]:
    """Return a row per model; see `base.Benchmark`.

    * ours, theirs: ms of the perturbation, its removal and the base step, minus the base step alone, with precomputed
      gradients; theirs is pytorch_optimizer's SAM.
    * memcpy: ms of one copy of the parameters; SAM needs at least three passes over them: save, move, restore.
    * NAME / base: whole training steps, with forward and backward passes, with an ascent and with the base optimizer.
    """
    cases = list((QUICK if quick else MODELS).items())
    return [_row(name, make, shape, repeats) for name, (make, shape) in counted(cases)]


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/explanation/performance.md; see `base.Benchmark`."""
    text = """\
Cost of a SAM step beyond its two forward-backward passes, and of a step of each ascent beyond the base optimizer's (SGD
with momentum). lsam-hpc's SAM ("ours"), pytorch_optimizer's SAM ("theirs") and one copy of the parameters are timed in
turn, with precomputed gradients; ours and theirs are without the base optimizer's own step. The second table compares
whole training steps at batch 32: the median of each ascent's time divided by the base step's that was timed beside it.

"""
    for report in reports:
        columns = [name for name in report.rows[0] if not name.endswith(" / base")]
        ratios = ["model", *(name for name in report.rows[0] if name.endswith(" / base"))]
        text += f"{caption(report)}\n{markdown(report.rows, columns)}\n{markdown(report.rows, ratios)}\n"
        for row in report.rows:
            text += aim(f"{row['model']}, ours : theirs", float(row["ours / theirs"]), 0.5)
            text += aim(f"{row['model']}, a dp-sat step : the base optimizer's", float(row["dp-sat / base"]), 1.1)
    copies = number(reports[-1].rows[0]["ours / memcpy"])
    return f"""{text}
SAM must save, move and restore the parameters and compute one norm: 8 passes over memory, as much as 4 copies; ours
took as long as {copies} copies on the first model. With many small tensors the calls per tensor dominate, also in the
base optimizer's step. asyncsam takes a quarter of the mini-batch for its ascent. The ascent center costs what dp-sat
costs; its direction comes with the exchange. On a GPU, if there is one, the scale is applied without waiting for its
value, at the cost of one more pass.
"""


def _small_tensors(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(16, 16) for _ in range(count)))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18": (lambda: resnet18((3, 32, 32), 10), (32, 3, 32, 32)),
    "2,000 small tensors": (lambda: _small_tensors(1000), (32, 16)),
}
QUICK: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "small CNN": (lambda: cnn((1, 8, 8), 10), (4, 1, 8, 8)),
    "20 small tensors": (lambda: _small_tensors(10), (4, 16)),
}


def _row(name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], repeats: int) -> Row:
    steps = _optimizer_steps(make, repeats)
    whole = _training_steps(make, shape, max(3, repeats // 3))
    ours, theirs = steps["ours"] - steps["base"], steps["theirs"] - steps["base"]
    return {
        "model": name,
        "ours ms": 1e3 * ours,
        "theirs ms": 1e3 * theirs,
        "memcpy ms": 1e3 * steps["memcpy"],
        "ours / theirs": ours / theirs,
        "ours / memcpy": ours / steps["memcpy"],
        "base step ms": 1e3 * steps["base"],
        **{f"{ascent} / base": ratio for ascent, ratio in whole.items()},
    }


def _optimizer_steps(make: Callable[[], nn.Module], repeats: int) -> dict[str, float]:
    device = device_of()

    def optimizers() -> tuple[list[nn.Parameter], list[Tensor]]:
        params = list(make().to(device).parameters())
        return params, [torch.randn_like(p) * 1e-3 for p in params]

    def set_grads(params: list[nn.Parameter], grads: list[Tensor]) -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g

    (ours_p, ours_g), (theirs_p, theirs_g), (base_p, base_g) = optimizers(), optimizers(), optimizers()
    ours = SAM(torch.optim.SGD(ours_p, LR, MOMENTUM), RHO)
    theirs = importlib.import_module("pytorch_optimizer").SAM(
        theirs_p, torch.optim.SGD, rho=RHO, lr=LR, momentum=MOMENTUM
    )
    base = torch.optim.SGD(base_p, LR, MOMENTUM)

    def our_step() -> None:
        ours.perturb()
        set_grads(ours_p, ours_g)  # the second backward pass
        ours.restore()
        ours.update()

    def their_step() -> None:
        theirs.first_step(zero_grad=True)
        set_grads(theirs_p, theirs_g)
        theirs.second_step()

    flat = torch.zeros(sum(p.numel() for p in base_p), device=device)
    copy = torch.empty_like(flat)
    seconds: dict[str, float] = medians(
        repeats,
        {
            "ours": (lambda: set_grads(ours_p, ours_g), our_step),
            "theirs": (lambda: set_grads(theirs_p, theirs_g), their_step),
            "base": (lambda: set_grads(base_p, base_g), base.step),
            "memcpy": (lambda: None, lambda: copy.copy_(flat)),
        },
        partial(wait_for, device),
    )
    return seconds


def _training_steps(make: Callable[[], nn.Module], shape: tuple[int, ...], repeats: int) -> dict[str, float]:
    """Return the time of each ascent's training step, divided by that of the base optimizer's."""
    device = device_of()
    x = torch.randn(shape, device=device)

    def step(ascent: str) -> Callable[[], object]:
        model = make().to(device)
        base = torch.optim.SGD(model.parameters(), LR, MOMENTUM)
        sam = None if ascent == "base" else SAM(base, RHO, ascent=ascent)  # type: ignore[arg-type]

        def closure(batch: Tensor = x) -> Tensor:
            base.zero_grad()
            loss: Tensor = (model(batch) ** 2).mean()
            loss.backward()
            return loss

        return (lambda: base.step(closure)) if sam is None else (lambda: sam.step(closure, batch=x))

    ratios: dict[str, float] = {}
    for ascent in MEASURED:  # two models at a time
        pair = medians(
            repeats, {name: (lambda: None, step(name)) for name in ("base", ascent)}, partial(wait_for, device)
        )
        ratios[ascent] = pair[ascent] / pair["base"]
    return ratios
