"""`DistributedOptimizer` as Horovod scripts call it: a chain of LSAM behind an optimizer of the script's own class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lsam_hpc.distributed import LSAM
from lsam_hpc.errors import InputError
from lsam_hpc.horovod.chain import ChainLog, make_chain, make_log
from lsam_hpc.horovod.copies import Copies
from lsam_hpc.horovod.losses import Losses
from lsam_hpc.horovod.modules import Roots
from lsam_hpc.horovod.options import Options
from lsam_hpc.horovod.session import session
from lsam_hpc.optim.gradients import Gradients


class LsamOptimizer(Optimizer):
    """What `DistributedOptimizer` returns, together with the class of the optimizer that it was given.

    The windows and the center are made at the first step, which is collective: until then everything is as with
    Horovod. From then on the parameters are moved to x + e when a forward pass of the model begins, and back by `step`.

    Args:
        base: takes the steps; `param_groups` and `state` are its own.
        reducer: Horovod's optimizer, which averages the gradients over the group.
        ranks: of the group.
        options: of LSAM.
    """

    base: Optimizer

    def __init__(self, base: Optimizer, reducer: Any, ranks: list[int], options: Options) -> None:  # noqa: ANN401
        self.__dict__["base"] = base
        Optimizer.__init__(self, base.param_groups, base.defaults)  # not the next class, which is that of the base
        self.options = options
        self.chain: LSAM | None = None
        self._reducer, self._ranks = reducer, ranks
        self._alone = len(ranks) == 1
        self._averaged = False  # the gradients that are there are the group's mean
        self._in_step = False
        self._has_rho = any("rho" in group for group in base.param_groups)  # the script's own, not the chain's
        self._roots = Roots(self, self._params)
        self._losses = Losses()
        self._held: ExitStack | None = None  # while evaluation holds the center
        self._copies = Copies()
        self._log: ChainLog | None = None
        self._said: set[str] = set()
        session.optimizers.append(self)
        session.wrapped = True

    # The base optimizer's own objects, also after it has loaded a state. torch's constructor sets them.
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
        """Backward passes that `step` expects."""
        return int(self._reducer.backward_passes_per_step)

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Expect another number of backward passes before `step`."""
        self._reducer.set_backward_passes_per_step(passes)

    def synchronize(self) -> None:
        """Wait until the group's gradients are averaged; a rank that is a chain by itself has nothing to wait for."""
        self._reducer.synchronize()

    def skip_synchronize(self) -> AbstractContextManager[None]:
        """Return a context in which `step` does not synchronize."""
        context: AbstractContextManager[None] = self._reducer.skip_synchronize()
        return context

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; Horovod's error between backward and step holds for groups."""
        if self._reducer._handles:
            self._reducer.zero_grad()  # raises, and says why
        self.base.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Take a step of the chain; the first one, which makes the chain, is the base optimizer's and collective.

        Args:
            closure: clears the gradients, computes the loss, calls backward and returns the loss. With one the ascent
                is the exact one: two passes. Default: the gradients are there, and the ascent is the stale one.

        Returns:
            What the closure returned at x.
        """
        self._release("step", warn=True)
        self._in_step = True
        try:
            if closure is None or self.chain is None:
                if closure is None and self.options.ascent == "exact":
                    raise InputError("ascent: expected step(closure) for the exact one, found step() without a closure")
                loss = None if closure is None else torch.enable_grad()(closure)()
                self._descend()
            else:
                self._back()
                self.chain.ascent = "stale" if self.options.ascent == "stale" else "exact"
                loss = self.chain.step(closure)
                self._averaged = self._reducer._synchronized = False
                self._write(self.chain, self._losses.take() if loss is None else loss)
        finally:
            self._in_step = False
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group before the first step; the center's size is fixed then."""
        if "options" not in self.__dict__:
            return  # torch's constructor: they are the base optimizer's already
        if self.chain is not None:
            raise InputError("add_param_group: expected before the first step: the center's size is fixed then")
        self.base.add_param_group(param_group)
        self._roots.more(self._params)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state, which plain Horovod reads too."""
        state = self.base.state_dict()
        if not self._has_rho:  # Horovod's broadcast stumbles over what some ranks' groups have and others' do not
            for group in state["param_groups"]:
                group.pop("rho", None)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base optimizer's state; the chain goes on from where it is."""
        self._reducer._handles = {}
        self.base.load_state_dict(state_dict)

    @contextmanager
    def center(self) -> Iterator[None]:
        """Hold the center in the parameters and BatchNorm statistics; before the first step there is none."""
        self._back()
        if self.chain is None or self._held is not None:
            yield
            return
        with self.chain.at_center():
            yield

    def close(self) -> list[int]:
        """End the chain, collective; the parameters are the center then. Return the ranks that were lost."""
        self.rest()
        self._roots.close()
        chain, self.chain = self.chain, None
        if chain is None:
            return []
        chain.meet()
        if self._log is not None:
            self._log.run.last_states(chain)
        center = chain.read_center()
        result = chain.stats()
        chain.close()
        with torch.no_grad():
            torch._foreach_copy_(chain.shared, center)
        del self.base.__dict__["sam"]
        if self._log is not None:
            self._log.close(result, chain.lost)
            self._log = None
        return chain.lost

    # What its modules tell it.
    def before_forward(self, module: nn.Module) -> None:
        """Move to x + e when the model is about to compute a loss to train on."""
        chain = self.chain
        if chain is None or self._in_step or self._held is not None or not torch.is_grad_enabled():
            return
        if not chain.perturbation.active and (module.training or self.options.eval_center):
            chain.ascent = "stale"
            chain.perturb()

    def mode_changed(self) -> None:
        """Hold the center while all of the model is in evaluation mode."""
        if self.chain is None or not self.options.eval_center:
            return
        if any(module.training for module in self._roots.found):
            self._release("train")
        elif self._held is None:
            self._back()
            self._held = ExitStack()
            self._held.enter_context(self.chain.at_center())

    def state_of(self, names: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the center for those of the tensors that it has; those that evaluation holds, if it does."""
        if self.chain is None or not self.options.save_center:
            return {}
        where = {id(t): i for i, t in enumerate(self.chain.shared)}
        found = {name: where[id(t)] for name, t in names.items() if id(t) in where}
        if not found:
            return {}
        held = self._held is not None
        values = [t.detach().clone() for t in self.chain.shared] if held else self.chain.read_center()
        for i in set(found.values()):
            self._copies.remember(values[i], self.chain.shared[i])
        return {name: values[i] for name, i in found.items()}

    def before_load(self, tensors: Iterable[Tensor]) -> None:
        """Go back to x before it is overwritten."""
        if self.chain is not None and {id(t) for t in tensors} & {id(p) for p in self._params}:
            self.rest()
            self.chain.drain()  # what is on its way would move the loaded ones

    def rest(self) -> None:
        """Have the parameters be the sample, wherever they are."""
        self._release("rest")
        self._back()

    def take_broadcast(self, tensors: list[Tensor]) -> None:
        """Take in values that every rank was given; if they are of parameters, the chains restart from them."""
        if self.chain is None:
            return
        ours = {id(t) for t in self._params}
        with torch.no_grad():
            originals = [self._copies.original(t) for t in tensors]
            for copy, original in zip(tensors, originals, strict=True):
                if original is not None:
                    original.copy_(copy)
        if any(id(t) in ours for t in [*tensors, *originals]):
            self.restart()

    @property
    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _descend(self) -> None:
        """Go back to x and take the step with the gradients that are there."""
        self._synchronize()
        if all(p.grad is None for p in self._params):
            self._back()
            self.base.step()  # as torch: nothing happens
            return
        chain = self.chain or self._begin()
        chain.ascent = "stale"
        if not chain.perturbation.active:  # no forward pass was seen: the gradients are those at x
            chain.last = Gradients([], [])
            chain.perturb()
        chain.restore()
        loss = self._losses.take()
        if loss is not None:
            chain.observe(loss)
        chain.update()
        self._averaged = self._reducer._synchronized = False
        self._write(chain, loss)
        if not self._roots.found:
            self._say(
                "no module was called that holds the parameters: they rest at x + e between the steps, and eval() and "
                "state_dict() do not give the center"
            )
            chain.perturb()

    def _begin(self) -> LSAM:
        """Make the chain; collective."""
        roots = self._roots.found
        model = None if not roots else roots[0] if len(roots) == 1 else nn.ModuleList(roots)
        if self._log is None:
            number = sum(isinstance(o, LsamOptimizer) and o._log is not None for o in session.optimizers)
            self._log = make_log(self.base, self._reducer._parameter_names, self.options, number)
        self.chain = make_chain(
            self.base, self.options, model, self._ranks, self._average, self._log.run if self._log else None
        )
        self._roots.settle()
        session.close_first()
        return self.chain

    def restart(self) -> None:
        """End the chain; the next step makes one that begins at the parameters as they are; collective."""
        chain, self.chain = self.chain, None
        if chain is not None:
            sample = [t.detach().clone() for t in chain.shared]
            chain.close()  # which takes in the exchanges on their way
            with torch.no_grad():
                torch._foreach_copy_(chain.shared, sample)
            del self.base.__dict__["sam"]

    def _synchronize(self) -> None:
        """Have the group's gradients averaged, unless the script did it; as Horovod's `step`."""
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
        """Have the gradients of a pass within `step` averaged; those of a pass before it are already."""
        if not self._averaged:
            self._reducer.synchronize()

    def _back(self) -> None:
        if self.chain is not None and self.chain.perturbation.active:
            self.chain.restore()

    def _release(self, what: str, warn: bool = False) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None
            if warn:
                self._say(f"{what}: expected model.train() before it, found the model in eval mode, at the center")

    def _write(self, chain: LSAM, loss: Any) -> None:  # noqa: ANN401 - what a closure returns
        if self._log is not None:
            self._log.step(chain, loss)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            warnings.warn(f"lsam-hpc: {text}", stacklevel=4)
