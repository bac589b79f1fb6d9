"""Logs the largest Hessian eigenvalue of a chain's sample while it trains."""

from __future__ import annotations

import time

from torch import nn

from lsam_hpc.optim.curvature import TopEigenvalue
from lsam_hpc.rundir.runlog import RunLog
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.dataset import Dataset, batch_size
from lsam_hpc.train.job import Chain


def top_eigenvalue(config: TrainConfig, model: nn.Module, dataset: Dataset) -> TopEigenvalue | None:
    """Return what measures the model on the first training images or windows, or None; both are on one device."""
    if not config.curvature_every:
        return None
    x, y = dataset.train_x[: config.curvature_images], dataset.train_y[: config.curvature_images]
    size = batch_size(y)  # as in the landscape programs: BatchNorm's statistics depend on it
    return TopEigenvalue(model, list(zip(x.split(size), y.split(size), strict=True)), seed=config.seed)


class CurvatureLog:
    """Measures a chain before its first step and after every `every` of its steps; in groups, the leader does.

    Args:
        chain: with `top_eigenvalue`, or None, and nothing is measured.
        log: of this rank.
        every: number of local steps.
    """

    def __init__(self, chain: Chain, log: RunLog, every: int) -> None:
        self._chain, self._log, self._every = chain, log, every

    def first(self) -> None:
        """Measure before the first step; without effect in a run that is resumed after it.

        Raises:
            InputError: the model cannot be differentiated twice.
        """
        if self._chain.opt.local_step == 0:
            self._measure(0)

    def step(self, global_steps: int) -> None:
        """Measure if it is time, between steps.

        Args:
            global_steps: steps of all ranks so far.
        """
        if self._every and self._chain.opt.local_step % self._every == 0:
            self._measure(global_steps)

    def _measure(self, global_steps: int) -> None:
        if self._chain.top_eigenvalue is None or not self._chain.opt.leads_group:
            return
        began = time.perf_counter()
        result = self._chain.top_eigenvalue.measure()
        self._log.curvature(
            iteration=self._chain.opt.local_step,
            total_iteration=global_steps,
            seconds=time.perf_counter() - began,
            **result._asdict(),
        )
