"""Finds the lines of a script that `lsam wrap` affects, without running it."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from lsam_hpc.launch.hook import REPLACED, refuse

NAMES = ("DistributedOptimizer", "broadcast_parameters", "broadcast_optimizer_state")


@dataclass
class Findings:
    """The affected lines of a script, each with a message."""

    lines: list[tuple[int, str]] = field(default_factory=list)
    wraps: bool = False  # DistributedOptimizer is called

    def note(self, node: ast.AST, text: str) -> None:
        """Add the line of a node."""
        self.lines.append((getattr(node, "lineno", 0), text))


def scan(source: str) -> Findings:
    """Return the affected lines; calls are recognized by name, under any alias of the module.

    Raises:
        InputError: the script is for another framework.
    """
    findings = Findings()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _note_import(findings, node, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                _note_import(findings, node, f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Call):
            _note_call(findings, node)
    findings.lines.sort()
    return findings


def _note_import(findings: Findings, node: ast.AST, module: str) -> None:
    refuse(module)
    if module == REPLACED or module.startswith(REPLACED + "."):
        findings.note(node, f"{module}: names of {REPLACED} are replaced by LSAM's")


def _note_call(findings: Findings, node: ast.Call) -> None:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name not in NAMES:
        return
    findings.note(node, f"{name}: LSAM's")
    if name == NAMES[0]:
        findings.wraps = True
        if any("Adasum" in ast.dump(keyword.value) for keyword in node.keywords if keyword.arg == "op"):
            findings.note(node, "op: Adasum would be refused")
