"""The state of SAM in a form that torch.distributed.checkpoint keeps too.

It keeps "state" and "param_groups" only. It loads into the tensors that the state of a new optimizer contains, so the
keys must not depend on the steps taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.optim.shards import local_parts


def numbered(
    known: Mapping[Tensor, Tensor], params: Sequence[Tensor], fill: Callable[[Tensor], Tensor]
) -> tuple[dict[int, Tensor], list[bool]]:
    """Return a tensor for each parameter, by its number, and for each whether it is a known one.

    Args:
        known: tensors by the parameter; they are copied.
        params: all parameters of the optimizer, in order.
        fill: makes the tensor of a parameter whose tensor is not known.
    """
    numbers = [i for i, p in enumerate(params) if p.requires_grad or p in known]
    found = [known.get(params[i]) for i in numbers]
    tensors = {i: fill(params[i]) if t is None else t.clone() for i, t in zip(numbers, found, strict=True)}
    return tensors, [t is not None for t in found]


def known_in(tensors: Mapping[int, Tensor], known: Sequence[bool], params: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return copies of the known ones of what `numbered` returned, by the parameter's number, on its device."""
    chosen = [i for i, is_known in zip(sorted(tensors), known, strict=True) if is_known]
    return {i: tensors[i].to(params[i].device, copy=True) for i in chosen}


def join(state: dict[str, Any], sam: dict[str, Any]) -> dict[str, Any]:
    """Return a base optimizer's state with SAM's: under "sam", and in the first group for torch's checkpoints.

    These keep one rank's copy of a plain tensor, and so no mini-batch: an ascent that needs it and the gradient of the
    last step begins anew.
    """
    first, *others = state["param_groups"]
    shared = {key: value for key, value in sam.items() if key != "batch"}
    if "batch" in sam:
        shared["kept"] = [False for _ in sam["kept"]]
    return {**state, "param_groups": [{**first, "sam": shared}, *others], "sam": sam}


def split(state_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the base optimizer's state, and SAM's; None for the state of a plain optimizer.

    Raises:
        InputError: the state is from torch.distributed.checkpoint, and has no SAM's.
    """
    groups = [dict(group) for group in state_dict["param_groups"]]
    inner = groups[0].pop("sam", None) if groups else None
    sam = state_dict.get("sam", inner)
    if sam is None and any(isinstance(name, str) for group in groups for name in group["params"]):
        raise InputError(
            "state_dict: expected the state of a SAM from torch.distributed.checkpoint, found a flattened one or "
            "another optimizer's: load a base optimizer's into opt.base"
        )
    return {"state": state_dict["state"], "param_groups": groups}, _with_numbers(sam)


def _with_numbers(value: Any) -> Any:  # noqa: ANN401 - a part of a state
    """Return a state whose keys are numbers again where torch.distributed.checkpoint returns text."""
    if not isinstance(value, dict):
        return value
    return {
        int(key) if str(key).isdigit() else key: part if key == "batch" else _with_numbers(part)
        for key, part in value.items()
    }


def is_made_by(groups: Sequence[dict[str, Any]]) -> bool:
    """Return True in the step by which torch.distributed.checkpoint makes the state of a new optimizer.

    It calls `step(closure=None)` with gradients and learning rates of 0, which changes no parameter.
    """
    grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    still = all(float(group.get("lr", 0)) == 0 for group in groups)
    return still and bool(grads) and not any(bool(g.any()) for g in local_parts(grads))
