"""The optimizer that `DistributedOptimizer` returns: a chain of LSAM with the interface of Horovod's optimizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lsam_hpc.distributed.lsam import LSAM
from lsam_hpc.errors import InputError
from lsam_hpc.horovod.chain import ChainLog, make_chain, make_log
from lsam_hpc.horovod.copies import Copies
from lsam_hpc.horovod.losses import Losses
from lsam_hpc.horovod.modules import Roots
from lsam_hpc.horovod.options import Options
from lsam_hpc.horovod.session import session


class LsamOptimizer(Optimizer):
    """Base class of what `DistributedOptimizer` returns; the other base is the class of the wrapped optimizer.

    The first step is collective: it makes the windows and the center. Until then everything is as with Horovod. After
    it a forward pass of the model moves the parameters to x + e, and `step` moves them back to x.

    Args:
        base: takes the steps; `param_groups` and `state` are its objects.
        reducer: Horovod's optimizer, which averages the gradients over the group.
        ranks: of the group.
        options: of LSAM.
    """

    base: Optimizer

    def __init__(self, base: Optimizer, reducer: Any, ranks: list[int], options: Options) -> None:  # noqa: ANN401
        self.__dict__["base"] = base
        Optimizer.__init__(self, base.param_groups, base.defaults)  # not super(): the next class is that of the base
        self.options = options
        self.chain: LSAM | None = None
        self._reducer, self._ranks = reducer, ranks
        self._alone = len(ranks) == 1
        self._averaged = False  # p.grad holds the group's mean
        self._in_step = False
        self._has_rho = any("rho" in group for group in base.param_groups)  # set by the script, not by the chain
        self._roots = Roots(self, self._params)
        self._losses = Losses()
        self._center_context: ExitStack | None = None  # open while the model is evaluated at the center
        self._copies = Copies()
        self._log: ChainLog | None = None
        self._warnings: set[str] = set()
        session.optimizers.append(self)
        session.wrapped = True

    # Properties, because load_state_dict of the base replaces its objects. torch's constructor calls the setters.
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        pass

    @property
    def state(self) -> Any:  # noqa: ANN401
        """The base optimizer's state."""
        return self.base.state

    @state.setter
    def state(self, state: object) -> None:
        pass

    @property
    def backward_passes_per_step(self) -> int:
        """Number of backward passes before a `step`."""
        return int(self._reducer.backward_passes_per_step)

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Change the number of backward passes before a `step`."""
        self._reducer.set_backward_passes_per_step(passes)

    def synchronize(self) -> None:
        """Wait until the group's gradients are averaged; a chain of one rank does not wait."""
        self._reducer.synchronize()

    def skip_synchronize(self) -> AbstractContextManager[None]:
        """Return a context in which `step` does not synchronize."""
        context: AbstractContextManager[None] = self._reducer.skip_synchronize()
        return context

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002 - torch's signature
        """Clear the gradients; as in Horovod, an error between backward and step in groups of several ranks."""
        if self._reducer._handles:
            self._reducer.zero_grad()  # raises Horovod's error
        self.base.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Take a step of the chain; the first step makes the chain, is collective, and is one of the base optimizer.

        Args:
            closure: clears the gradients, computes the loss, calls backward and returns the loss. With a closure the
                ascent is sam: two passes. Default: use the present gradients, and an ascent of one pass.

        Returns:
            The result of the closure at x.
        """
        self._leave_center(warn=True)
        self._in_step = True
        try:
            if closure is None or self.chain is None:
                if closure is None and self.options.ascent == "sam":
                    raise InputError("ascent: expected step(closure) for sam, found step() without a closure")
                loss = None if closure is None else torch.enable_grad()(closure)()
                self._descend()
            else:
                self._restore()
                self.chain.ascent = "sam" if self.options.ascent == "auto" else self.options.ascent
                loss = self.chain.step(closure)
                self._averaged = self._reducer._synchronized = False
                self._log_step(self.chain, self._losses.take() if loss is None else loss)
        finally:
            self._in_step = False
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; only before the first step, which fixes the center's size."""
        if "options" not in self.__dict__:
            return  # called by torch's constructor: the base has the group already
        if self.chain is not None:
            raise InputError("add_param_group: expected before the first step, which fixes the center's size")
        self.base.add_param_group(param_group)
        self._roots.add_params(self._params)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state, which plain Horovod reads too."""
        state = self.base.state_dict()
        if not self._has_rho:  # Horovod's broadcast fails on keys that not all ranks' groups have
            for group in state["param_groups"]:
                group.pop("rho", None)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base optimizer's state; the chain is unchanged."""
        self._reducer._handles = {}
        self.base.load_state_dict(state_dict)

    @contextmanager
    def center(self) -> Iterator[None]:
        """Put the center into the parameters and BatchNorm statistics; without effect before the first step."""
        self._restore()
        if self.chain is None or self._center_context is not None:
            yield
            return
        with self.chain.at_center():
            yield

    def close(self) -> list[int]:
        """End the chain, leave the center in the parameters, and return the failed ranks; collective."""
        self.restore_sample()
        self._roots.close()
        chain, self.chain = self.chain, None
        if chain is None:
            return []
        chain.rendezvous()
        if self._log is not None:
            self._log.run.last_states(chain)
        center = chain.read_center()
        result = chain.stats()
        chain.close()
        with torch.no_grad():
            torch._foreach_copy_(chain.shared, center)
        del self.base.__dict__["sam"]
        if self._log is not None:
            self._log.close(result, chain.failed_ranks)
            self._log = None
        return chain.failed_ranks

    # Called by its modules.
    def before_forward(self, module: nn.Module) -> None:
        """Move to x + e before a forward pass in training."""
        chain = self.chain
        if chain is None or self._in_step or self._center_context is not None or not torch.is_grad_enabled():
            return
        if not chain.perturbation.active and (module.training or self.options.eval_center):
            chain.ascent = self.options.one_pass_ascent
            chain.perturb()

    def mode_changed(self) -> None:
        """Put the center into the parameters while the whole model is in evaluation mode."""
        if self.chain is None or not self.options.eval_center:
            return
        if any(module.training for module in self._roots.modules):
            self._leave_center()
        elif self._center_context is None:
            self._restore()
            self._center_context = ExitStack()
            self._center_context.enter_context(self.chain.at_center())

    def state_of(self, names: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the center for the tensors that it covers; in evaluation, of the center as evaluated."""
        if self.chain is None or not self.options.save_center:
            return {}
        index = {id(t): i for i, t in enumerate(self.chain.shared)}
        shared = {name: index[id(t)] for name, t in names.items() if id(t) in index}
        if not shared:
            return {}
        at_center = self._center_context is not None
        values = [t.detach().clone() for t in self.chain.shared] if at_center else self.chain.read_center()
        for i in set(shared.values()):
            self._copies.remember(values[i], self.chain.shared[i])
        return {name: values[i] for name, i in shared.items()}

    def before_load(self, tensors: Iterable[Tensor]) -> None:
        """Move back to x before it is overwritten."""
        if self.chain is not None and {id(t) for t in tensors} & {id(p) for p in self._params}:
            self.restore_sample()
            self.chain.drain()  # an exchange in flight would move the loaded values

    def restore_sample(self) -> None:
        """Move the parameters back to the sample, from x + e or from the center."""
        self._leave_center()
        self._restore()

    def take_broadcast(self, tensors: list[Tensor]) -> None:
        """Copy broadcast values into their originals; if any is a parameter, restart the chain from them."""
        if self.chain is None:
            return
        params = {id(t) for t in self._params}
        with torch.no_grad():
            originals = [self._copies.original(t) for t in tensors]
            for copy, original in zip(tensors, originals, strict=True):
                if original is not None:
                    original.copy_(copy)
        if any(id(t) in params for t in [*tensors, *originals]):
            self.restart()

    @property
    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _descend(self) -> None:
        """Move back to x and take a step with the present gradients."""
        self._synchronize()
        if all(p.grad is None for p in self._params):
            self._restore()
            self.base.step()  # as in torch: no parameter changes
            return
        chain = self.chain or self._start_chain()
        chain.ascent = self.options.one_pass_ascent
        if not chain.perturbation.active:  # no forward pass was intercepted: the gradients are those at x
            chain.forget_last()
            chain.perturb()
        chain.restore()
        loss = self._losses.take()
        if loss is not None:
            chain.observe(loss)
        chain.update()
        self._averaged = self._reducer._synchronized = False
        self._log_step(chain, loss)
        if not self._roots.modules:
            self._warn_once(
                "no called module holds the parameters: they stay at x + e between the steps, and eval() and "
                "state_dict() do not use the center"
            )
            chain.perturb()

    def _start_chain(self) -> LSAM:
        """Make the chain; collective."""
        roots = self._roots.modules
        model = None if not roots else roots[0] if len(roots) == 1 else nn.ModuleList(roots)
        if self._log is None:
            number = sum(isinstance(o, LsamOptimizer) and o._log is not None for o in session.optimizers)
            self._log = make_log(self.base, self._reducer._parameter_names, self.options, number)
        self.chain = make_chain(
            self.base, self.options, model, self._ranks, average=self._average, log=self._log.run if self._log else None
        )
        if self._log is not None:
            self._log.follow(self.chain)
            self._log.run.first_states(self.chain)
        self._roots.finish_search()
        session.close_first()
        return self.chain

    def restart(self) -> None:
        """End the chain; the next step makes a new one that starts at the present parameters; collective."""
        chain, self.chain = self.chain, None
        if chain is not None:
            sample = [t.detach().clone() for t in chain.shared]
            chain.close()  # completes the exchanges in flight
            with torch.no_grad():
                torch._foreach_copy_(chain.shared, sample)
            del self.base.__dict__["sam"]

    def _synchronize(self) -> None:
        """Average the gradients over the group unless the script did so, as Horovod's `step` does."""
        if self._reducer._should_synchronize:
            if self._reducer._synchronized:
                warnings.warn(
                    "optimizer.step() called without optimizer.skip_synchronize() context after "
                    "optimizer.synchronize(). This can cause training slowdown.",
                    stacklevel=4,
                )
            self._reducer.synchronize()
        self._averaged = True

    def _average(self, _: list[Tensor]) -> None:
        """Average the gradients of a pass within `step`; those of a pass before `step` are averaged already."""
        if not self._averaged:
            self._reducer.synchronize()

    def _restore(self) -> None:
        if self.chain is not None and self.chain.perturbation.active:
            self.chain.restore()

    def _leave_center(self, *, warn: bool = False) -> None:
        if self._center_context is not None:
            self._center_context.close()
            self._center_context = None
            if warn:
                self._warn_once("step: expected model.train() before it, found the model in eval mode, at the center")

    def _log_step(self, chain: LSAM, loss: Any) -> None:  # noqa: ANN401 - the result of a closure
        if self._log is not None:
            self._log.step(chain, loss)

    def _warn_once(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            warnings.warn(f"lsam-hpc: {text}", stacklevel=4)
