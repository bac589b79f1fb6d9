"""Replaces assumed numbers with those measured in a run's logs or by `lsam bench exchange`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.simulate.describe import Job, Machine
from lsam_hpc.trajectory import Run

WARM = 3  # first steps and exchanges of each rank, which are left out
MODEL = 11_173_962 * 4  # bytes that `lsam bench exchange` moves: a ResNet-18 for ten classes
SPREAD = 0.02  # relative: smaller spreads of steps, and differences between ranks, are ignored


def calibrate(path: Path, job: Job, machine: Machine) -> tuple[Job, Machine, list[str]]:
    """Return the job and machine with measured numbers in place of assumed ones, and a line of text for each.

    Args:
        path: a run directory, or a file that `lsam bench exchange --json` wrote.
        job: the job to change; ranks that were not measured keep factor 1.
        machine: the machine to change.

    Raises:
        InputError: the file or run cannot be read, or has too few measurements.
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
        durations = np.diff(steps["time"])[np.diff(steps["iteration"]) == 1][WARM:]
        if durations.size:
            lengths[rank] = durations
        seconds.append(exchanges["seconds"][WARM:])
        blocked.append(exchanges["blocked"][WARM:])
    if not lengths:
        raise InputError(f"{path}: expected more than {WARM + 1} steps of a rank, found fewer")
    # With a period above 2, the median step contains no part of an exchange.
    usual = {rank: float(np.median(durations)) for rank, durations in lengths.items()}
    step = float(np.median(list(usual.values())))
    logs = np.concatenate([np.log(durations / usual[rank]) for rank, durations in lengths.items()])
    logs = logs[np.isfinite(logs)]
    # Quantiles, because exchanges and the file system make a few steps much longer.
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
    exchange_seconds, held_seconds = _median(seconds), _median(blocked)
    if exchange_seconds is not None and not machine.host_link:
        arithmetic = exchange_seconds / copies - machine.read_factor - machine.add_factor
        machine = replace(machine, arithmetic=max(0.0, arithmetic))
        lines.append(f"exchange {1e3 * exchange_seconds:.3g} ms: arithmetic of {machine.arithmetic:.3g} copies")
    if held_seconds is not None:
        copy_seconds = 4 * run.size / (machine.device_copy or machine.copy)
        machine = replace(machine, held=held_seconds / copy_seconds)
        lines.append(f"training thread held {1e3 * held_seconds:.3g} ms by an exchange: {machine.held:.3g} copies")
    return job, machine, lines


def _from_bench(path: Path, machine: Machine) -> tuple[Machine, list[str]]:
    try:
        report = json.loads(path.read_text())
        name, ranks = report["benchmark"], int(report["machine"].get("ranks", 2))
        rows = {row[""]: row for row in report["rows"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: expected a file written by lsam bench exchange --json, found: {error!r}") from error
    if name != "exchange":
        raise InputError(f"{path}: expected the benchmark exchange, found {name}")
    try:
        one, all_ = (float(rows["memcpy"][f"{mode} ms"]) / 1e3 for mode in ("alone", "together"))
        read, add = (float(rows[operation]["alone ms"]) / 1e3 / one for operation in ("read", "add"))
        held = float(rows["training thread held up"]["together ms"]) / 1e3 / all_
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: expected times of memcpy, read and add, found none: {error!r}") from error
    machine = replace(machine, copy=MODEL / one, memory=ranks * MODEL / all_)
    machine = replace(machine, read_factor=read, add_factor=add, held=held)
    return machine, [
        f"copy {machine.copy / 1e9:.3g} GB/s by one rank, {machine.memory / 1e9:.3g} GB/s by {ranks}; {path}",
        f"read {read:.3g}, add {add:.3g} and training thread {held:.3g} copies",
    ]


def _median(parts: list[np.typing.NDArray[np.float64]]) -> float | None:
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else None
