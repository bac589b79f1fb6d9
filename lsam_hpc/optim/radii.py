"""The ascent radii of an optimizer's groups."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lsam_hpc.optim.gradients import check_real
from lsam_hpc.options.schedules import ScalarOrSchedule, evaluate

Group = dict[str, Any]


class Radii:
    """The radius of each group: a number, or a function of the global step whose value is put into the group.

    Args:
        groups: the optimizer's groups; a group without "rho" gets the default.
        default: radius of groups that have none of their own.
    """

    def __init__(self, groups: list[Group], default: ScalarOrSchedule) -> None:
        self.default = default
        self._values: list[ScalarOrSchedule] = []
        self.adopt(groups)

    def __len__(self) -> int:
        return len(self._values)

    def adopt(self, groups: list[Group]) -> None:
        """Take over groups that were added since."""
        for group in groups[len(self) :]:
            check_real(group["params"])
            self._values.append(group.setdefault("rho", self.default))

    def evaluate(self, groups: list[Group], step: int) -> None:
        """Put the radii at a global step into the groups.

        Raises:
            InputError: a radius is not a finite number >= 0.
        """
        for group, rho in zip(groups, self._values, strict=True):
            if callable(rho):
                group["rho"] = evaluate("rho", rho, step)
            else:
                # The user or a loaded state may have set another value; a plain base optimizer's state has none.
                evaluate("rho", group.setdefault("rho", rho), step)


def signed(groups: list[Group], params: list[Tensor], radius: float | None, *, reverse: bool) -> float | list[float]:
    """Return the radius of an ascent, one for all parameters if the groups agree, else one for each.

    Args:
        groups: the optimizer's groups, with evaluated radii.
        params: the parameters that move.
        radius: the radius of all groups. None: each group's own.
        reverse: negate the radius of groups that maximize.
    """
    rhos = [
        (-1 if reverse and group.get("maximize") else 1) * (group["rho"] if radius is None else radius)
        for group in groups
    ]
    if len(set(rhos)) == 1:
        return float(rhos[0])
    by_param = {id(p): rho for rho, group in zip(rhos, groups, strict=True) for p in group["params"]}
    return [by_param[id(p)] for p in params]
