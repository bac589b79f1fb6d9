"""Sharpness-aware minimization around any torch optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from lsam_hpc.errors import InputError
from lsam_hpc.optim.amp import Pass, forget, unscale, unscaled
from lsam_hpc.optim.arguments import Average, SAMArguments, check_arguments, check_combination, check_parts
from lsam_hpc.optim.ascents import make_ascent
from lsam_hpc.optim.ascents.base import Closure
from lsam_hpc.optim.batchnorm import FrozenBatchNormStats
from lsam_hpc.optim.gradients import Gradients, check_real, present
from lsam_hpc.optim.masks import resolve
from lsam_hpc.optim.perturbation import Perturbation
from lsam_hpc.optim.radii import Radii, signed
from lsam_hpc.optim.state import is_made_by, join, split
from lsam_hpc.optim.wrapper import OptimizerWrapper
from lsam_hpc.options.ascent import Ascent
from lsam_hpc.options.keywords import documented, takes
from lsam_hpc.options.schedules import evaluate


@documented(SAMArguments)
class SAM(OptimizerWrapper):
    """The base optimizer's step with the gradient taken at x + e(x).

    `step(closure)` takes a whole step. Loops without a closure call backward at x, `perturb()`, backward again,
    `restore()` and `update()`, or `step()`. `param_groups` and `state` are the base optimizer's own objects, so
    learning-rate schedulers accept either optimizer. A group may have its own `rho`. With rho = 0 a step is the base
    optimizer's, to the last bit.

    `ascent` names the method: see the classes in `lsam_hpc.optim.ascents`. sampa, asyncsam and gam need a closure,
    and sampa and a part of the mini-batch in asyncsam need `step(closure, batch=...)`.

    Args:
        base: the optimizer that takes the step.
        {options}
        pair: for sampa and asyncsam: two ranks with the same parameters and mini-batches, which compute the step's two
            gradients at the same time. Default None: one rank computes both.
        model: module whose BatchNorm statistics change once per step. Default None: in every pass. Needed if
            `fully_shard` has sharded the parameters.
        average: averages gradients over the ranks of a data-parallel SAM. Default None: a single rank.

    Options that are numbers may be functions of the global step where their type says so. A mask may also be an object
    from `lsam_hpc.optim.masks`.

    Raises:
        InputError: an argument is out of its range, or a parameter is complex.
    """

    has_center = False  # True for optimizers whose chain has a center
    _step_supports_amp_scaling = True  # torch then lets `step` refuse GradScaler.step, see `step`

    @takes(SAMArguments)
    def __init__(self, base: Optimizer, arguments: SAMArguments) -> None:
        check_arguments(base, arguments)
        if arguments.ascent == "center" and not self.has_center:
            raise InputError("ascent: expected center with LSAM only, found it without a center")
        gamma, eta, mask = float(arguments.gamma), float(arguments.eta), resolve(arguments)
        self.perturbation = Perturbation(gamma, arguments.metric, eta, mask, arguments.model)
        super().__init__(base, {"rho": arguments.rho})
        self._arguments = arguments
        self._ascent = make_ascent(arguments)
        self.same_random_numbers = arguments.same_random_numbers
        self.average = arguments.average
        self.local_step = 0  # steps taken by this chain
        self.global_step = 0  # steps taken by all chains; the argument of schedules
        self._radii = Radii(base.param_groups, arguments.rho)
        self.frozen = FrozenBatchNormStats(arguments.model)
        self.keeps_gradients = False  # True: dp-sat copies them, so that the caller can read them after a step
        self.passes = [Pass(self) for _ in range(4)]
        self.overflow = False  # True if gradients of this step were not finite
        self._unfinished = False  # a step has begun and not ended
        self._set_rho()
        base.__dict__["sam"] = True

    @property
    def ascent(self) -> str:
        """The name of the ascent; setting another name drops the gradients of earlier steps."""
        return self._ascent.name

    @ascent.setter
    def ascent(self, name: Ascent) -> None:
        if name == self._ascent.name:
            return
        self.check_unperturbed("ascent")
        if name == "center":
            raise InputError("ascent: expected center when LSAM is made, which then tracks the center, found it later")
        arguments = replace(self._arguments, ascent=name, mask=self.perturbation.mask)
        check_combination(self.base, arguments)
        self._ascent = make_ascent(arguments)

    @property
    def last(self) -> Gradients:
        """The gradients kept from the last step for the next ascent; empty if the ascent needs none."""
        return self._ascent.last

    @property
    def radii_are_0(self) -> bool:
        """True if all radii are 0 at this step."""
        return all(group["rho"] == 0 for group in self.param_groups)

    @property
    def grad_norm(self) -> Tensor:
        """The gradient norm of the last ascent before gamma is added, a scalar tensor; |g| for the l2 metric."""
        return self.perturbation.grad_norm

    @property
    def perturbation_norm(self) -> Tensor:
        """|e| of the last ascent, a scalar tensor."""
        return self.perturbation.norm

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all groups, in order."""
        return [p for group in self.param_groups for p in group["params"]]

    def step(
        self, closure: Callable[..., Any] | None = None, scaler: GradScaler | None = None, *, batch: object = None
    ) -> Any:  # noqa: ANN401
        """Take one step; after any exception too, the parameters are unperturbed.

        Args:
            closure: clears the gradients, computes the loss, calls backward (of `scaler.scale(loss)` with a scaler) and
                returns the loss; called once per pass, without arguments or with a mini-batch if `batch` is given.
            scaler: gradient scaler of mixed precision; the caller calls its `update` afterwards.
            batch: the mini-batch: a tensor, or tuples, lists and dicts of tensors with a row per sample. sampa keeps it
                for the next step, and asyncsam takes a part of it. Default None: the closure has its mini-batch.

        Returns:
            What the closure returned at x (ascents of one pass, sampa and asyncsam: in the pass on all samples).
        """
        if "grad_scale" in self.__dict__:  # set by GradScaler.step, which would leave the gradients scaled
            del self.__dict__["grad_scale"], self.__dict__["found_inf"]  # the scaler removes them only after a step
            raise InputError("step: expected opt.step(closure, scaler) with a scaler, found scaler.step(opt, closure)")
        if closure is None:
            if self._unfinished:  # after perturb() and restore()
                return self.in_step(self.update, scaler)
            if is_made_by(self.param_groups):
                return self.base.step()
            raise InputError("step: expected a closure, found None; without one call perturb(), restore() and update()")
        return self.in_step(self._step, closure, scaler, batch)

    @torch.no_grad()  # each further change of the mode takes microseconds; `Closure` computes gradients
    def _step(self, closure: Callable[..., Any], scaler: GradScaler | None, batch: object) -> Any:  # noqa: ANN401
        self.check_unperturbed("step")
        self.begin_step(scaler)
        with self.masked():
            loss = self._ascent.passes(self, Closure(closure, batch, self.same_random_numbers), scaler)
        self.update(scaler)
        if isinstance(loss, (Tensor, float)):
            self.observe(loss)
        return loss

    def observe(self, loss: Tensor | float) -> None:
        """Receive a step's mini-batch loss; LSAM publishes it."""

    def masked(self) -> AbstractContextManager[None]:
        """Return a context for all passes of a step in phases: backward saves the gradients that the mask leaves out.

        It switches `requires_grad` of parameters off and on again. Without it, as in `step`, a mask of whole parameters
        has the same effect, but saves no work.
        """
        mask = self.perturbation.mask
        if not mask.in_steps:
            return nullcontext()
        return mask.passes(self.parameters, ascent_only=self._ascent.begins_with_ascent and not self.radii_are_0)

    @torch.no_grad()
    def perturb(self, scaler: GradScaler | None = None) -> None:
        """Move the parameters to x + e(x), and clear the gradients at x.

        Args:
            scaler: gradient scaler of mixed precision. After an overflow nothing moves, and `update` takes no step.

        Raises:
            RuntimeError: the parameters are perturbed already, or have no gradients.
        """
        if self.perturbation.active:
            raise RuntimeError("perturb: the parameters are perturbed already: call restore() first")
        if self._ascent.in_phases:
            self.begin_step(scaler)
        self.climb(scaler)

    def climb(self, scaler: GradScaler | None) -> None:
        """Move to x + e along the gradients that the ascent returns; in torch.no_grad()."""
        ascent, finite = self._ascent.gradients(self, scaler)
        self.overflow = not finite
        if finite:
            self.ascend(ascent)
        else:
            self.perturbation.leave([])
        if self._ascent.freezes:
            self.frozen.on()

    def restore(self) -> None:
        """Restore the parameters x bit for bit; the gradients stay.

        Raises:
            RuntimeError: the parameters are not perturbed.
        """
        if not self.perturbation.active:
            raise RuntimeError("restore: the parameters are not perturbed: call perturb() first")
        self.perturbation.undo()
        self.frozen.off()

    @torch.no_grad()
    def update(self, scaler: GradScaler | None = None) -> None:
        """Take the base optimizer's step with the gradients at x + e.

        Args:
            scaler: gradient scaler of mixed precision. After an overflow in either pass no step is taken, and its
                `update` lowers the scale. To clip gradients, call `scaler.unscale_(opt.base)` before.

        Raises:
            RuntimeError: no step has begun, or the parameters are still perturbed, or have no gradients.
        """
        if self.perturbation.active:
            raise RuntimeError("update: the parameters are still perturbed: call restore() first")
        if not self._unfinished:
            raise RuntimeError("update: no step has begun: call perturb() first, after loss.backward()")
        if all(p.grad is None for p in self.parameters):
            hint = "call loss.backward() between perturb() and restore()"
            raise RuntimeError(f"update: no parameter has a gradient: {hint}")
        self.hooks("pre")
        if self.average is not None:
            self._average(self.average, scaler)
        keys = self._ascent.unscaled_by(self)
        finite = (not keys or unscale(scaler, *keys)) and not self.overflow
        self.overflow = False
        if finite:
            if self.perturbation.mask.in_steps:
                self.perturbation.mask.before_descent(self.parameters)
            self._ascent.before_descent(self)
            self._descend()
            self._ascent.after_descent(self)
        self._opt_called = True  # learning-rate schedulers of torch check this attribute
        self._unfinished = False
        self._finish()
        self.hooks("post")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; its `rho` defaults to this optimizer's."""
        if "base" not in self.__dict__:
            super().add_param_group(param_group)
            return
        rho = param_group.get("rho", self._radii.default)
        evaluate("rho", rho, self.global_step)
        params = param_group["params"]
        if not isinstance(params, (Tensor, set)):  # torch refuses a set
            params = list(params)  # a generator gives its parameters once
        added = [params] if isinstance(params, Tensor) else [p[1] if isinstance(p, tuple) else p for p in params]
        check_real(added)
        check_parts([*self.parameters, *added], self.perturbation.mask)
        self.base.add_param_group({**param_group, "params": params, "rho": rho})
        self._set_rho()

    def _described(self) -> list[str]:
        rho = ", ".join(f"{value:g}" for value in dict.fromkeys(group["rho"] for group in self.param_groups))
        return [f"rho={rho}", f"ascent={self.ascent!r}", f"metric={self.perturbation.metric!r}"]

    def _state(self) -> dict[str, Any]:
        params = self.parameters
        steps = {"local_step": self.local_step, "total_step": self.global_step}
        mask = self.perturbation.mask.state_dict(params)
        return join(self.base.state_dict(), {**steps, **self._ascent.state_dict(params), "mask": mask})

    def _load(self, state_dict: dict[str, Any]) -> None:
        plain, sam = split(state_dict)
        if sam is not None:
            self.perturbation.mask.check(sam["mask"], self.parameters)
        self.base.load_state_dict(plain)
        self._set_rho()
        if sam is not None:
            params = self.parameters
            self.local_step, self.global_step = sam["local_step"], sam["total_step"]
            self._ascent.load_state_dict(sam, params)
            self.perturbation.mask.load_state_dict(sam["mask"], params)

    def _adopt_groups(self) -> None:
        """Take over groups that were added to the base optimizer itself."""
        self._radii.adopt(self.param_groups)

    def check_unperturbed(self, method: str) -> None:
        """Raise RuntimeError, naming the method, if the parameters are at x + e."""
        if self.perturbation.active:
            raise RuntimeError(f"{method}: the parameters are perturbed: call restore() first")

    def ascend(
        self, ascent: Gradients, *, keep: bool = False, radius: float | None = None, further: bool = False
    ) -> None:
        """Move to x + e along gradients; in torch.no_grad().

        Args:
            ascent: the gradients; overwritten unless `keep` is True.
            keep: keep the gradients. Default False.
            radius: the ascent radius. Default None: each group's rho.
            further: move on from where the parameters are, without saving x. Default False.
        """
        radii = signed(self.param_groups, ascent.params, radius, reverse=self._ascent.along_gradients)
        self.perturbation.apply(
            ascent.params, ascent.grads, radii, keep=keep, again=radius is not None, further=further
        )

    def forget_last(self) -> None:
        """Drop the gradients of earlier steps: the next ascent is as in the first step."""
        self._ascent.forget()

    def begin_step(self, scaler: GradScaler | None = None) -> None:
        """Prepare a step, before the parameters first move."""
        if self._unfinished:  # the last step failed
            forget(scaler, self, self.base)
        self._unfinished = True
        self._set_rho()

    def _average(self, average: Average, scaler: GradScaler | None) -> None:
        if unscaled(scaler, self.base):
            raise RuntimeError("update: the scaler has unscaled opt.base before the ranks' gradients were averaged")
        grads = present(self.parameters).grads
        if self.overflow:  # on this rank: an infinite mean makes all ranks skip the step
            torch._foreach_mul_(grads, math.inf)
        average(self.parameters)

    def _descend(self) -> None:
        """Take the step along the gradients, which are finite and unscaled."""
        self.base.step()

    def _finish(self) -> None:
        """Count a step, also one that was skipped after an overflow."""
        self.local_step += 1
        self.global_step += 1
        if self.perturbation.mask.in_steps:
            self.perturbation.mask.end_step(self.parameters)

    def _set_rho(self) -> None:
        self._adopt_groups()
        self._radii.evaluate(self.param_groups, self.global_step)
