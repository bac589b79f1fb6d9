"""Sets of options of `lsam train` that belong together; docs/results.md says where they help."""

from __future__ import annotations

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    "large-batch": {
        "coupling": "restart",
        "period": 1,
        "momentum": 0.8,  # a delayed exchange acts like momentum: less is needed
        "synchronous_start": 0.1,
        "rho_from": 0.75,
    }
}
