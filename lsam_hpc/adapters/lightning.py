"""A callback for Lightning's Trainer: each pass of a step as the method needs it, and the center where it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import Optimizer

from lsam_hpc.adapters.chain import Chain, inner
from lsam_hpc.errors import InputError
from lsam_hpc.optim.sam import SAM

_FIRST_AT_X = ("sam", "gam")  # ascents whose first pass is at x; the only pass of the others is at x + e


class LSAMCallback(Callback):  # type: ignore[misc]
    """Lets a `Trainer` of one device train by SAM or LSAM, which `configure_optimizers` returns.

    Under mpirun or srun each rank has a Trainer of its own. The callback sees to it that

    * the passes of a step after the first log nothing, and repeat all micro-batches of `accumulate_grad_batches`;
    * `gradient_clip_val` and `on_before_optimizer_step` act once per step, on the gradient of the descent;
    * a GradScaler (precision "16-mixed") unscales each pass;
    * validation, test, prediction and the weights in checkpoints are at the center, while the checkpoint's optimizer
      state holds the chain, so that `fit(ckpt_path=...)` continues where it was;
    * the end of `fit` leaves the center in the model and ends the exchange, which is collective.

    Other optimizers are left alone.

    Raises:
        InputError: at the start of `fit`, if the Trainer has several devices, or an option that cannot be combined.
    """

    def __init__(self) -> None:
        self._chain: Chain | None = None
        self._center: ExitStack | None = None  # open during validation, test and prediction
        self._replaced = ExitStack()
        self._window: list[tuple[Any, ...]] = []  # arguments of training_step since the last step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the Trainer's functions that take a step and collect the weights; `teardown` removes them."""
        if stage != "fit":
            return
        if not isinstance(trainer.strategy, SingleDeviceStrategy):
            found = type(trainer.strategy).__name__
            raise InputError(f"Trainer: expected devices=1, on each rank a Trainer of its own, found {found}")
        self._undo()
        plugin, strategy = trainer.strategy.precision_plugin, trainer.strategy
        take_step, weights = plugin.optimizer_step, strategy.lightning_module_state_dict

        def optimizer_step(optimizer: Optimizer, model: LightningModule, closure: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            sam = inner(optimizer)
            if sam is None:
                return take_step(optimizer, model=model, closure=closure, **kwargs)
            return self._step(trainer, sam, closure)

        def state_dict() -> dict[str, Any]:
            if self._chain is None or self._center is not None:
                return dict(weights())
            with self._chain.center(pl_module):
                return {name: v.clone() if isinstance(v, Tensor) else v for name, v in weights().items()}

        self._replaced.enter_context(_replaced(plugin, "optimizer_step", optimizer_step))
        self._replaced.enter_context(_replaced(strategy, "lightning_module_state_dict", state_dict))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizer, and begin its chain."""
        self._window = []
        for sam in filter(None, map(inner, trainer.optimizers)):
            if sam.same_random_numbers and trainer.accumulate_grad_batches > 1:
                raise InputError(
                    f"same_random_numbers: expected accumulate_grad_batches=1, found {trainer.accumulate_grad_batches}"
                )
            if self._chain is not None:
                raise InputError("configure_optimizers: expected one SAM or LSAM, found several")
            self._chain = Chain(sam)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ANN401
        """Keep the mini-batch for the later passes of the step."""
        if self._chain is not None and pl_module.automatic_optimization:
            indexed = is_param_in_hook_signature(pl_module.training_step, "batch_idx", min_args=2)
            self._window.append((batch, batch_idx) if indexed else (batch,))
            for sam in filter(None, map(inner, trainer.optimizers)):
                if sam.ascent not in _FIRST_AT_X and trainer.fit_loop._should_accumulate():
                    sam.frozen.on()  # this pass, at x, is of no use and will be repeated at x + e

    def _step(self, trainer: Trainer, sam: SAM, closure: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Take a step: the first pass is Lightning's, and each later one repeats what it computed."""
        model, plugin = trainer.lightning_module, trainer.strategy.precision_plugin
        window, self._window = self._window, []
        passes = 0

        def run() -> Any:  # noqa: ANN401 - what the module's closure returns
            nonlocal passes
            passes += 1
            if passes == 1:
                if len(window) > 1 and sam.ascent not in _FIRST_AT_X:
                    sam.frozen.off()
                    sam.zero_grad()
                    with _silent(model):
                        repeat(window[:-1])
                loss = closure()
                return _present(loss) if model.automatic_optimization else loss
            with _silent(model):
                if not model.automatic_optimization:
                    return closure()
                sam.zero_grad()
                return repeat(window)

        def repeat(batches: list[tuple[Any, ...]]) -> Any:  # noqa: ANN401 - the last one's loss
            for arguments in batches:
                output = _present(trainer.strategy.training_step(*arguments))
                loss = (output["loss"] if isinstance(output, Mapping) else output) / trainer.accumulate_grad_batches
                trainer.strategy.backward(loss, None)
            return loss

        # The base optimizer's hook sees the gradient of the descent, unscaled.
        hook = sam.base.register_step_pre_hook(lambda base, *_: plugin._after_closure(model, base))
        scaler = getattr(plugin, "scaler", None)
        try:
            loss = sam.step(run, scaler)
        finally:
            hook.remove()
        if scaler is not None:
            scaler.update()
        return loss

    def _enter_center(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._chain is not None and self._center is None:
            self._center = ExitStack()
            self._center.enter_context(self._chain.center(pl_module))

    def _leave_center(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._center is not None:
            self._center.close()
            self._center = None

    on_validation_start = on_test_start = on_predict_start = _enter_center
    on_validation_end = on_test_end = on_predict_end = _leave_center

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint within the validation: its optimizer state would hold the center as the sample."""
        if self._center is not None:
            raise InputError("save_checkpoint: expected a call outside of the validation, found one within it")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the center in the model and end the exchange; collective for LSAM."""
        if self._chain is not None:
            self._chain.end()
            self._chain = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the Trainer its own functions back."""
        self._undo()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Move back to the sample; the exchange does not end, which other ranks would have to join."""
        self._leave_center(trainer, pl_module)

    def _undo(self) -> None:
        self._replaced.close()
        self._chain = self._center = None


def _present(output: Any) -> Any:  # noqa: ANN401 - what the module's training_step returns
    """Return an output of `training_step`; raise InputError if it is None, by which Lightning skips a mini-batch."""
    if output is None:
        raise InputError("training_step: expected a loss for every mini-batch with SAM and LSAM, found None")
    return output


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:  # noqa: ANN401
    """Return a context in which an object has another method."""
    setattr(owner, name, function)
    try:
        yield
    finally:
        delattr(owner, name)


@contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    """Return a context in which a module's `log` and `log_dict` do nothing."""
    with _replaced(module, "log", lambda *_, **__: None), _replaced(module, "log_dict", lambda *_, **__: None):
        yield
