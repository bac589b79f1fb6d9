"""What `lsam wrap` would replace in a script, found without running it."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from lsam_hpc.launch.hook import REPLACED, refuse

NAMES = ("DistributedOptimizer", "broadcast_parameters", "broadcast_optimizer_state")


@dataclass
class Findings:
    """Lines of a script and what would become of each."""

    lines: list[tuple[int, str]] = field(default_factory=list)
    wraps: bool = False  # an optimizer is made

    def note(self, node: ast.AST, text: str) -> None:
        """Take note of a line."""
        self.lines.append((getattr(node, "lineno", 0), text))


def scan(source: str) -> Findings:
    """Return what would be replaced; calls are known by their names, whatever the module's alias.

    Raises:
        InputError: the script is for another framework.
    """
    found = Findings()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _imported(found, node, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                _imported(found, node, f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Call):
            _called(found, node)
    found.lines.sort()
    return found


def _imported(found: Findings, node: ast.AST, module: str) -> None:
    refuse(module)
    if module == REPLACED or module.startswith(REPLACED + "."):
        found.note(node, f"{module}: LSAM's names are put into {REPLACED}")


def _called(found: Findings, node: ast.Call) -> None:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name not in NAMES:
        return
    found.note(node, f"{name}: LSAM's")
    if name == NAMES[0]:
        found.wraps = True
        if any("Adasum" in ast.dump(keyword.value) for keyword in node.keywords if keyword.arg == "op"):
            found.note(node, "op: Adasum would be refused")
