"""MSAM: along the base optimizer's momentum, so that a step takes one pass."""

from __future__ import annotations

import torch
from torch.amp.grad_scaler import GradScaler

from lsam_hpc.errors import InputError
from lsam_hpc.optim.ascents.base import Ascending, OnePass
from lsam_hpc.optim.gradients import Gradients
from lsam_hpc.optim.shards import clones, local_parts

BUFFERS = ("momentum_buffer", "exp_avg")  # names of the momentum in the optimizers' states


class MSAM(OnePass):
    """e = e(-v), v the momentum buffer of the base optimizer; the first step is the base's.

    Source: Becker et al. 2024, "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead"
    (arXiv 2401.12033), algorithm 1. x is here the unperturbed state, to which weight decay applies; the authors' code
    for SGD decays the perturbed one.
    """

    name = "msam"
    along_gradients = False  # the momentum has the sign of the step already

    def gradients(self, sam: Ascending, scaler: GradScaler | None) -> tuple[Gradients, bool]:
        """Return the negative momentum."""
        params, buffers = [], []
        for p in sam.parameters:
            state = sam.base.state.get(p, {})
            buffer = next((state[name] for name in BUFFERS if state.get(name) is not None), None)
            if buffer is not None:
                params.append(p)
                buffers.append(buffer)
        states = sam.base.state.values()
        if not params and any(state and not state.keys() & set(BUFFERS) for state in states):
            raise InputError(
                f"ascent: expected a base optimizer that keeps {' or '.join(BUFFERS)} for msam, "
                f"found {type(sam.base).__name__}, which keeps other names"
            )
        direction = clones(buffers) if buffers else []
        if direction:
            torch._foreach_neg_(local_parts(direction))
        return Gradients(params, direction), True
