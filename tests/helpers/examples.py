"""The scripts of docs/examples: as a module, and as a job with small settings."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.helpers.mpis import ROOT, Mpi, run


def script(name: str) -> ModuleType:
    """Return an example as a module; MPI is not started."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / f"docs/examples/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(mpi: Mpi, ranks: int, name: str, out: Path) -> list[dict[str, Any]]:
    """Run an example with its small settings, one rank without a launcher; return the rows of its numbers.json."""
    words = [f"docs/examples/{name}.py", "--tiny", "--out", str(out)]
    command = [mpi.forked, *words] if ranks == 1 else mpi.command(ranks, mpi.forked, "-m", "mpi4py", *words)
    done = run(command, timeout=240, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    rows: list[dict[str, Any]] = json.loads((out / "numbers.json").read_text())
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 1 + len(rows), done.stdout
    return rows
