"""The measured parts: steps and exchanges from a run's logs, copies and windows from `lsam bench exchange`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.simulate.describe import Job, Machine
from lsam_hpc.trajectory import Run

WARM = 3  # steps and exchanges of a rank that are left out
MODEL = 11_173_962 * 4  # bytes that `lsam bench exchange` moves: a ResNet-18 for ten classes
SPREAD = 0.02  # of the steps' logarithm: less counts as constant


def calibrate(path: Path, job: Job, machine: Machine) -> tuple[Job, Machine, list[str]]:
    """Return a job and a machine with what was measured in place of what was assumed, and a line for each number.

    Args:
        path: of a run, or of what `lsam bench exchange --json` wrote.
        job: to change; ranks beyond those that were measured keep factor 1.
        machine: to change.

    Raises:
        InputError: the file or run cannot be read, or holds too little.
    """
    if path.suffix == ".json":
        return (job, *_from_bench(path, machine))
    return _from_run(path, job, machine)


def _from_run(path: Path, job: Job, machine: Machine) -> tuple[Job, Machine, list[str]]:
    run = Run(path, partial=True)
    lengths: dict[int, np.typing.NDArray[np.float64]] = {}
    seconds, blocked = [], []
    for rank in run.ranks:
        steps, exchanges = run.steps(rank), run.exchanges(rank)
        found = np.diff(steps["time"])[np.diff(steps["iteration"]) == 1][WARM:]
        if found.size:
            lengths[rank] = found
        seconds.append(exchanges["seconds"][WARM:])
        blocked.append(exchanges["blocked"][WARM:])
    if not lengths:
        raise InputError(f"{path}: expected more than {WARM + 1} steps of a rank, found fewer")
    # The median step is one in which nothing of an exchange was done, if the period is above 2.
    usual = {rank: float(np.median(found)) for rank, found in lengths.items()}
    step = float(np.median(list(usual.values())))
    logs = np.concatenate([np.log(found / usual[rank]) for rank, found in lengths.items()])
    logs = logs[np.isfinite(logs)]
    # Quantiles, as exchanges and the file system make single steps long.
    low, high = np.quantile(logs, (0.159, 0.841))
    sigma = float(high - low) / 2
    factors = {rank: usual[rank] / step for rank in usual if rank < job.ranks and abs(usual[rank] / step - 1) > SPREAD}
    job = replace(
        job,
        step=step * float(np.exp(sigma**2 / 2)),
        work=step * (job.work / job.step),
        factors=factors,
        distribution="lognormal" if sigma > SPREAD else "constant",
        sigma=sigma,
        parameters=run.size,
    )
    lines = [f"step {step:.4g} s (median of {len(lengths)} ranks), sigma {sigma:.3f}; {path}"]
    if factors:
        lines.append("factors " + ", ".join(f"{rank}: {factor:.3g}" for rank, factor in sorted(factors.items())))
    copies = 4 * run.size / machine.copy
    took, held = _median(seconds), _median(blocked)
    if took is not None and not machine.host_link:
        rest = took / copies - machine.read_factor - machine.add_factor
        machine = replace(machine, arithmetic=max(0.0, rest))
        lines.append(f"exchange {1e3 * took:.3g} ms: arithmetic of {machine.arithmetic:.3g} copies")
    if held is not None:
        per = 4 * run.size / (machine.device_copy or machine.copy)
        machine = replace(machine, held=held / per)
        lines.append(f"training thread held {1e3 * held:.3g} ms by an exchange: {machine.held:.3g} copies")
    return job, machine, lines


def _from_bench(path: Path, machine: Machine) -> tuple[Machine, list[str]]:
    try:
        report = json.loads(path.read_text())
        name, ranks = report["benchmark"], int(report["machine"].get("ranks", 2))
        rows = {row[""]: row for row in report["rows"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected what lsam bench exchange --json writes, found: {error!r}") from error
    if name != "exchange":
        raise InputError(f"{path}: expected the benchmark exchange, found {name}")
    try:
        one, all_ = (float(rows["memcpy"][f"{how} ms"]) / 1e3 for how in ("alone", "together"))
        read, add = (float(rows[what]["alone ms"]) / 1e3 / one for what in ("read", "add"))
        held = float(rows["training thread held up"]["together ms"]) / 1e3 / all_
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: expected times of memcpy, read and add, found none: {error!r}") from error
    found = replace(
        machine,
        copy=MODEL / one, memory=ranks * MODEL / all_, read_factor=read, add_factor=add, held=held,
    )  # fmt: skip
    return found, [
        f"copy {found.copy / 1e9:.3g} GB/s by one rank, {found.memory / 1e9:.3g} GB/s by {ranks}; {path}",
        f"read {read:.3g}, add {add:.3g} and training thread {held:.3g} copies",
    ]


def _median(parts: list[np.typing.NDArray[np.float64]]) -> float | None:
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else None
