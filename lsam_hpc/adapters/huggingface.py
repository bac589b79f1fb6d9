"""Hugging Face's Trainer, and Trainers made from it, by SAM and LSAM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

from lsam_hpc.adapters.chain import Chain, inner
from lsam_hpc.adapters.processes import one_process
from lsam_hpc.errors import InputError
from lsam_hpc.optim.random_state import repeating
from lsam_hpc.optim.sam import SAM

__all__ = ["LSAMTrainer", "LSAMTrainerMixin", "one_process"]

_FIRST_AT_X = ("sam",)  # ascents whose first pass is at x; the only pass of the others is at x + e


class LSAMTrainerMixin:
    """Takes the steps of a `Trainer` by the SAM or LSAM of `optimizers=(opt, scheduler)`; for Trainer's subclasses.

    `class MyTrainer(LSAMTrainerMixin, SFTTrainer)` is the same for another Trainer. Under mpirun or srun each rank has
    a Trainer of its own: see `one_process`. The class sees to it that

    * a step with `gradient_accumulation_steps` takes both passes on all its micro-batches;
    * `max_grad_norm` clips the gradient of the descent, and the loss that is logged is the one at x;
    * evaluation, prediction and saved models are at the center, while the checkpoint's optimizer.pt holds the chain, so
      that `train(resume_from_checkpoint=...)` continues where it was;
    * the end of `train` leaves the center in the model, unless it loaded the best checkpoint, and ends the exchange,
      which is collective. The optimizer cannot train again then.

    The steps are taken in phases: not by sampa, asyncsam and gam. Other optimizers are left alone.

    Raises:
        InputError: in `train`, if the precision is float16, or the Trainer has several processes or GPUs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - those of the Trainer
        super().__init__(*args, **kwargs)
        self._window: list[Callable[[], Tensor]] = []  # the passes on the micro-batches since the last step
        self._loss: Tensor | float = 0.0  # of these micro-batches
        self._chain: Chain | None = None
        trainer: Any = self
        trainer.add_callback(_Training(self))

    def begin(self) -> None:
        """Check the Trainer, and begin the optimizer's chain."""
        sam, trainer = self._sam, self._trainer
        self._window, self._loss = [], 0.0
        if sam is None:
            return
        if trainer.accelerator.scaler is not None:
            raise InputError("TrainingArguments: expected bf16 or float32 with SAM and LSAM, found fp16")
        if trainer.args.world_size > 1 or trainer.args.n_gpu > 1:
            found = f"{trainer.args.world_size} processes, {trainer.args.n_gpu} GPUs"
            raise InputError(f"Trainer: expected one process with one device: see one_process(), found {found}")
        if sam.perturbation.active:  # the last training failed
            sam.restore()
        self._chain = Chain(sam)

    def end(self) -> None:
        """Leave the center in the model and end the exchange; collective for LSAM."""
        if self._chain is not None:
            state, arguments = self._trainer.state, self._trainer.args
            best_loaded = arguments.load_best_model_at_end and state.best_model_checkpoint is not None
            self._chain.end(load_center=not best_loaded)
            self._chain = None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Compute the gradient on a micro-batch; with the step's last one, also take the passes at x + e."""
        sam = self._sam
        if sam is None or self._chain is None:
            return self._pass(*args, **kwargs)
        if not self._window and sam.ascent not in _FIRST_AT_X:
            sam.perturb()
        run = partial(self._pass, *args, **kwargs)
        self._window.append(repeating(run) if sam.same_random_numbers else run)
        loss = self._window[-1]()
        self._loss = self._loss + loss
        if self._trainer.accelerator.sync_gradients:
            window, self._window = self._window, []
            if sam.ascent in _FIRST_AT_X:
                sam.perturb()
                for run_again in window:
                    run_again()
            sam.restore()
            sam.observe(self._loss)
            self._loss = 0.0
        return loss

    def _pass(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        parent: Any = super()
        loss: Tensor = parent.training_step(*args, **kwargs)
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Evaluate or predict at the center."""
        parent: Any = super()
        with self._center():
            return parent.evaluation_loop(*args, **kwargs)

    def save_model(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Save the center."""
        parent: Any = super()
        with self._center():
            parent.save_model(*args, **kwargs)

    @contextmanager
    def _center(self) -> Iterator[None]:
        if self._chain is None:
            yield
        else:
            with self._chain.center(self._trainer.model):
                yield

    @property
    def _trainer(self) -> Any:  # noqa: ANN401 - this object, as the Trainer that it is
        return self

    @property
    def _sam(self) -> SAM | None:
        return inner(self._trainer.optimizer)


class LSAMTrainer(LSAMTrainerMixin, Trainer):  # type: ignore[misc]
    """Hugging Face's `Trainer` with `LSAMTrainerMixin`."""


class _Training(TrainerCallback):  # type: ignore[misc]
    """Tells a Trainer when its training begins and ends."""

    def __init__(self, trainer: LSAMTrainerMixin) -> None:
        self._lsam = trainer

    def on_train_begin(self, *_: object, **__: object) -> None:
        self._lsam.begin()

    def on_train_end(self, *_: object, **__: object) -> None:
        self._lsam.end()
