"""Sharpness-aware minimization around any torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from lsam_hpc.errors import InputError
from lsam_hpc.optim import parallel, radius0
from lsam_hpc.optim.amp import Pass, forget, unscale, unscaled
from lsam_hpc.optim.batchnorm import Frozen
from lsam_hpc.optim.gradients import Gradients, check_dense, check_real, clear, present, take
from lsam_hpc.optim.hyper import Ascent, Hyper, Metric, evaluate
from lsam_hpc.optim.masks import Mask, resolve
from lsam_hpc.optim.options import Average, check_options
from lsam_hpc.optim.perturbation import Perturbation


class SAM(Optimizer):
    """The base optimizer's step with the gradient taken at x + e(x).

    `step(closure)` does it all; loops that cannot use a closure call backward at x, `perturb()`, backward again,
    `restore()` and `update()`. `param_groups` and `state` are the base optimizer's own objects, so learning-rate
    schedulers may be given either of the two. A group may have its own `rho`. With rho = 0 a step is the base
    optimizer's, to the last bit.

    Where the ascent's gradient comes from, `ascent`:

    * `exact`: e = e(g), g = grad f(x): two passes. Foret et al. 2021 (arXiv 2010.01412), algorithm 1.
    * `stale`: g is the gradient that the last step went down: one pass; the first step is the base optimizer's. Jo et
      al. 2025, "Asynchronous Sharpness-Aware Minimization For Fast and Accurate Deep Learning" (arXiv 2503.11147), at
      a delay of one, with the gradient at x + e in place of the one at x, which would cost another pass.
    * `parallel`: x~ = x + e(grad f(y)), y' = x - lr grad f(y), and the step goes down
      (1 - interpolation) grad f(x~) + interpolation grad f(y'): two passes that do not need each other. Xie et al.
      2024, "SAMPa" (arXiv 2410.10683), eq. 6. Needs a closure.

    Args:
        base: the optimizer that takes the step.
        rho: ascent radius, in the units of the parameters; a number or a callable of the total step. Default 0.05.
        gamma: constant that keeps the ascent's division finite. Default 1e-12.
        ascent: `"exact"` (default), `"stale"` or `"parallel"`.
        metric: `"l2"` (default) or `"adaptive"`: see `Perturbation`.
        eta: of the adaptive metric. Default 0.01.
        mask: `"all"` (default), `"random"`, `"fisher"`, or an object from `lsam_hpc.optim.masks`.
        interpolation: of the parallel ascent, 0 to 1. Default 0.2.
        pair: of the parallel ascent: two ranks with the same parameters and mini-batches, of which the first computes
            the gradient at x~ and the second that at y', at the same time. Default None: one rank computes both.
        model: whose BatchNorm statistics are to move at x only, once per step. Default None: they move in every pass.
        average: makes one data-parallel SAM of several ranks. Default None: this rank's gradients are all.

    Raises:
        InputError: an argument is out of its range, or a parameter is complex.
    """

    base: Optimizer

    def __init__(
        self,
        base: Optimizer,
        rho: Hyper = 0.05,
        gamma: float = 1e-12,
        *,
        ascent: Ascent = "exact",
        metric: Metric = "l2",
        eta: float = 0.01,
        mask: str | Mask = "all",
        interpolation: float = 0.2,
        pair: distributed.ProcessGroup | None = None,
        model: nn.Module | None = None,
        average: Average | None = None,
    ) -> None:
        check_options(
            base, rho, gamma, ascent=ascent, metric=metric, eta=eta, mask=mask, interpolation=interpolation, pair=pair,
            average=average,
        )  # fmt: skip
        self.perturbation = Perturbation(float(gamma), metric, float(eta), resolve(mask))
        super().__init__(base.param_groups, {**base.defaults, "rho": rho})
        self.base = base
        self.ascent = ascent
        self.interpolation = interpolation
        self.pair = pair
        self.average = average
        self.local_step = 0  # steps done here
        self.total_step = 0  # steps done by all chains; hyperparameter callables are given it
        self._rho: list[Hyper] = [group["rho"] for group in base.param_groups]
        self.frozen = Frozen(model)
        self.last = Gradients([], [])  # for the next stale or parallel ascent
        self.keeps_gradients = False  # a stale step copies them, and they stay for the caller to look at
        self.passes = [Pass(self) for _ in range(3)]
        self._overflow = False
        self._unfinished = False  # a step has begun and not ended
        self._set_rho()
        base.__dict__["sam"] = True

    # The base optimizer's own objects, also after it has loaded a state by itself. torch's constructor sets them.
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's groups."""
        return self.base.param_groups if "base" in self.__dict__ else self.__dict__["_groups"]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.__dict__["_groups"] = groups

    @property
    def state(self) -> Any:  # noqa: ANN401
        """The base optimizer's state."""
        return self.base.state

    @state.setter
    def state(self, state: object) -> None:
        pass

    @property
    def gamma(self) -> float:
        """Constant that keeps the ascent's division finite."""
        return self.perturbation.gamma

    @property
    def grad_norm(self) -> Tensor:
        """The norm that the last ascent divided by, less gamma, a scalar tensor; |g| for the l2 metric."""
        return self.perturbation.grad_norm

    @property
    def perturbation_norm(self) -> Tensor:
        """|e| of the last ascent, a scalar tensor."""
        return self.perturbation.norm

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all groups, in order."""
        return [p for group in self.param_groups for p in group["params"]]

    def step(self, closure: Callable[[], Any] | None = None, scaler: GradScaler | None = None) -> Any:  # noqa: ANN401
        """Take one step; the parameters are never left perturbed, whatever fails.

        Args:
            closure: clears the gradients, computes the loss, calls backward (of `scaler.scale(loss)` with a scaler) and
                returns the loss; called once (stale, or rho 0) or twice, on the same mini-batch.
            scaler: of mixed precision; the caller calls its `update` afterwards.

        Returns:
            What the closure returned at x (stale: at x + e).
        """
        if closure is None:
            raise InputError(
                "step: expected a closure (zero_grad, forward, backward, return loss), found None; "
                "without one call perturb(), restore() and update()"
            )
        closure = torch.enable_grad()(closure)
        if self.ascent == "parallel":
            self._begin(scaler)
            loss, last, finite = parallel.passes(self, closure, scaler)
            # After an overflow the next step starts afresh, as the first one did.
            self.last, self._overflow = (last, False) if finite else (Gradients([], []), True)
        elif self.ascent == "exact" and radius0.applies(self._rho, self.param_groups):
            self._begin(scaler)
            loss = radius0.one_pass(self, closure, scaler)
        else:
            loss = closure() if self.ascent == "exact" else None
            self.perturb(scaler)
            try:
                second = closure()
            finally:
                self.restore()
            loss = second if loss is None else loss
        self.update(scaler)
        return loss

    @torch.no_grad()
    def perturb(self, scaler: GradScaler | None = None) -> None:
        """Move the parameters to x + e(x); the gradients at x are used up and cleared.

        Args:
            scaler: of mixed precision. After an overflow the parameters stay, and `update` takes no step.

        Raises:
            RuntimeError: called twice, or there is no gradient to ascend along.
        """
        if self.ascent == "parallel":
            raise RuntimeError("perturb: the parallel ascent works by step(closure) only")
        if self.perturbation.active:
            raise RuntimeError("perturb: the parameters are perturbed already: call restore() first")
        self._begin(scaler)
        if self.ascent == "exact":
            if unscaled(scaler, self.base):
                raise RuntimeError(
                    "perturb: the scaler has unscaled opt.base already: do that after restore(), if at all"
                )
            check_dense(self.parameters)
            if self.average is not None and self.average.ascent:
                self.average(self.parameters)
            finite = unscale(scaler, self)
            ascent = take(self.parameters)
        else:
            ascent, self.last, finite = self.last, Gradients([], []), True  # the ascent uses it up
        self._overflow = not finite
        if finite:
            self.ascend(ascent)
        else:
            self.perturbation.leave([])
        if self.ascent == "exact":
            self.frozen.on()

    def restore(self) -> None:
        """Bring the parameters back to x, to the last bit; gradients stay.

        Raises:
            RuntimeError: they are not perturbed.
        """
        if not self.perturbation.active:
            raise RuntimeError("restore: the parameters are not perturbed: call perturb() first")
        self.perturbation.undo()
        self.frozen.off()

    @torch.no_grad()
    def update(self, scaler: GradScaler | None = None) -> None:
        """Take the base optimizer's step with the gradients at x + e.

        Args:
            scaler: of mixed precision. After an overflow in either pass no step is taken; its `update` then lowers the
                scale. To clip, call `scaler.unscale_(opt.base)` before.

        Raises:
            RuntimeError: the parameters are still perturbed, or there is no gradient.
        """
        if self.perturbation.active:
            raise RuntimeError("update: the parameters are still perturbed: call restore() first")
        if all(p.grad is None for p in self.parameters):
            raise RuntimeError(
                "update: no parameter has a gradient: call loss.backward() between perturb() and restore()"
            )
        if self.ascent == "stale" or self.average is not None:
            check_dense(self.parameters)
        if self.average is not None:
            self._average(self.average, scaler)
        # The parallel ascent has unscaled its passes by itself; a stale step has but this one to unscale.
        keys = (self.base, self) if self.ascent == "stale" else (self.base,)
        finite = (self.ascent == "parallel" or unscale(scaler, *keys)) and not self._overflow
        self._overflow = False
        if finite:
            if self.ascent == "stale":
                last = present(self.parameters)
                # With Nesterov momentum SGD writes into the gradients.
                copied = self.keeps_gradients or any(group.get("nesterov") for group in self.param_groups)
                self.last = Gradients(last.params, list(torch._foreach_clone(last.grads))) if copied else last
            self._descend()
            if self.ascent == "stale" and not self.keeps_gradients:
                clear(last.params)  # these tensors are the next ascent's: nobody else may write into them
        self._opt_called = True  # what a learning-rate scheduler looks for
        self._unfinished = False
        self._finish()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; its `rho` defaults to this optimizer's."""
        if "base" not in self.__dict__:
            super().add_param_group(param_group)
            return
        rho = param_group.get("rho", self.defaults["rho"])
        evaluate("rho", rho, self.total_step)
        given = param_group["params"]
        check_real([given] if isinstance(given, Tensor) else given)
        self.base.add_param_group({**param_group, "rho": rho})
        self._rho.append(rho)
        self._set_rho()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()  # for copy.deepcopy; torch's own keeps only what it knows

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state and, under "sam", this one's; `torch.load(weights_only=True)` reads it."""
        self.check_unperturbed("state_dict")
        state = self.base.state_dict()
        where = {id(p): i for i, p in enumerate(self.parameters)}
        state["sam"] = {
            "local_step": self.local_step,
            "total_step": self.total_step,
            "last": {where[id(p)]: g.clone() for p, g in zip(*self.last, strict=True)},
            "mask": self.perturbation.mask.state_dict(self.parameters),
        }
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, or a plain base optimizer's state, which leaves this one's own as it is."""
        self.check_unperturbed("load_state_dict")
        own = state_dict.get("sam")
        if own is not None:
            self.perturbation.mask.check(own["mask"], self.parameters)
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key in ("state", "param_groups")})
        self._set_rho()
        if own is not None:
            params = self.parameters
            self.local_step, self.total_step = own["local_step"], own["total_step"]
            last = [(params[i], g.to(params[i].device, copy=True)) for i, g in own["last"].items()]
            self.last = Gradients([p for p, _ in last], [g for _, g in last])
            self.perturbation.mask.load_state_dict(own["mask"], params)

    def check_unperturbed(self, what: str) -> None:
        """Raise RuntimeError if the parameters are at x + e, where `what` makes no sense."""
        if self.perturbation.active:
            raise RuntimeError(f"{what}: the parameters are perturbed: call restore() first")

    def ascend(self, ascent: Gradients, keep: bool = False) -> None:
        """Move to x + e along gradients, which are overwritten unless told to keep them."""
        rhos = {group["rho"] for group in self.param_groups}
        radii: float | list[float] = next(iter(rhos))
        if len(rhos) > 1:
            by_param = {id(p): group["rho"] for group in self.param_groups for p in group["params"]}
            radii = [by_param[id(p)] for p in ascent.params]
        self.perturbation.apply(ascent.params, ascent.grads, radii, keep)

    def _begin(self, scaler: GradScaler | None = None) -> None:
        """Do what comes before the first move of a step."""
        if self._unfinished:  # the last one failed
            forget(scaler, self, self.base)
        self._unfinished = True
        self._set_rho()

    def _average(self, average: Average, scaler: GradScaler | None) -> None:
        if unscaled(scaler, self.base):
            raise RuntimeError("update: the scaler has unscaled opt.base before the ranks' gradients were averaged")
        if self._overflow:  # here; through the mean all ranks see it, and none takes the step
            torch._foreach_mul_(present(self.parameters).grads, math.inf)
        average(self.parameters)

    def _descend(self) -> None:
        """Take the step along the gradients, which are finite and unscaled."""
        self.base.step()

    def _finish(self) -> None:
        """Do what comes after a step, or after one that was skipped for an overflow."""
        self.local_step += 1
        self.total_step += 1

    def _set_rho(self) -> None:
        for group, rho in zip(self.param_groups, self._rho, strict=True):
            if callable(rho):
                group["rho"] = evaluate("rho", rho, self.total_step)
            else:
                # A loaded state, or the user, may have set another; a plain base optimizer's state has none.
                evaluate("rho", group.setdefault("rho", rho), self.total_step)
