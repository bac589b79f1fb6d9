"""Two ranks that compute the two gradients of a step at the same time."""

from __future__ import annotations

import torch
from torch import distributed

from lsam_hpc.optim.ascents.base import Ascending
from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.gradients import Gradients


def swap(
    sam: Ascending, local: Gradients, pair: distributed.ProcessGroup, *, statistics_from: int, finite: bool
) -> tuple[Gradients, Gradients, bool]:
    """Return the gradients of the first and of the second rank of a pair, and whether all are finite; collective.

    Both ranks get the BatchNorm statistics of the rank `statistics_from`.

    Args:
        sam: the optimizer.
        local: this rank's gradients.
        pair: the two ranks.
        statistics_from: rank in the pair, 0 or 1.
        finite: True if this rank's gradients are finite.
    """
    both = []
    for source in range(2):
        flat = FlatVector(sam.parameters)  # all parameters: the ranks' passes may have reached different ones
        known = {id(p): g for p, g in zip(*local, strict=True)}
        if distributed.get_rank(pair) == source:
            flat.gather([known.get(id(p), torch.zeros_like(p)) for p in sam.parameters])
        flag = torch.tensor([float(finite)], device=flat.vector.device)
        for tensor in (flat.vector, flag):
            distributed.broadcast(tensor, distributed.get_global_rank(pair, source), group=pair)
        finite = finite and bool(flag.item())
        both.append(Gradients(sam.parameters, [v.to(p.dtype) for v, p in zip(flat.views, sam.parameters, strict=True)]))
    for statistic in sam.frozen.statistics:
        distributed.broadcast(statistic, distributed.get_global_rank(pair, statistics_from), group=pair)
    return both[0], both[1], finite
