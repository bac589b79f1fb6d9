"""The page and the table of gpu_day.py: machine, tests, benchmarks, and the trainings as ratios."""

import csv
import io
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lsam_hpc.compare.run import Record
from lsam_hpc.compare.tables import mean_and_error
from lsam_hpc.tools.bench import base
from lsam_hpc.tools.bench.base import Report
from lsam_hpc.trajectory.provenance import git_state

State = dict[str, Any]
PACKAGES = ("numpy", "h5py", "mpi4py")
REHEARSED = "**A rehearsal: the numbers mean nothing.**\n\n"
NAMES = {"sam-one": "SAM, one rank with all images", "sam": "SAM, data parallel", "lsam": "LSAM"}
SAMPLES = "samples"  # name of the budget of equal samples
TRAININGS = """\
`: NAME` is a ratio to that row's number, of means over the seeds. SAM of one rank computes all images at once: data
parallel without any cost of communication. Data-parallel SAM averages its gradients by MPI through the host's memory,
because NCCL does not accept several ranks on one GPU. All ranks share the GPU. Exchanges run beside the steps:
"exchanging" is the part of the ranks' time in which one ran, "held up" that in which the training thread waited."""
RATIOS = {"error": "center_test_error", "seconds": "seconds", "samples": "samples", "images/s": "images_per_second"}


def machine() -> dict[str, str]:
    """Return a description of the machine, its driver and the versions of what is used."""
    about = base.machine()
    del about["ranks"], about["mpi"]
    words = _first_line("nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader").split(", ")
    about["driver"], about["gpu memory"] = words if len(words) == 2 else ("none", "none")
    about["kernel"] = platform.release()
    about["cuda"], about["cudnn"] = str(torch.version.cuda), str(torch.backends.cudnn.version())
    about["mpi"] = _first_line(base.launcher(1)[0], "--version")
    about |= {name: _version(name) for name in PACKAGES}
    about["commit"] = git_state()[0] or "unknown"
    pipe = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    about["mps"] = "on" if (pipe / "control").exists() else "off"
    return about


def markdown(state: State) -> str:
    """Return the page."""
    options = state["about"]
    text = "# GPU day\n\n" + REHEARSED * options["rehearse"]
    text += "".join("* " + ", ".join(f"{k}: {v}" for k, v in about.items()) + "\n" for about in state["machines"])
    parts = dict(state["parts"])
    tests = parts.pop("tests", None)
    if tests is not None:
        text += f"\n## Tests\n\n{tests['result']} ({tests['seconds']:.0f} s)\n"
    for name, fields in parts.items():
        report = Report(**fields)
        names = [key for key in report.rows[0] if any(row.get(key, "") != "" for row in report.rows)]
        text += f"\n## lsam bench {name}\n\n{base.caption(report)}\n{base.markdown(report.rows, names)}"
    if state["records"]:
        what = f"{options['data']} ({options['images']:,} images), {options['ranks']} ranks, {state['epochs']} epochs"
        text += f"\n## Trainings\n\n{what}.\n\n{TRAININGS}\n"
    for budget, methods in _budgets(state["records"]).items():
        text += f"\n**{_title(budget)}**\n\n{base.markdown(_rows(budget, methods))}"
    if state["failed"]:
        text += "\n## Failed in the last call\n\n" + "".join(f"* {line}\n" for line in state["failed"])
    return text


def table(state: State) -> str:
    """Return every number as CSV: part, what, quantity, value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["part", "what", "quantity", "value"])
    for row in _numbers(state):
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row])
    return file.getvalue()


def _numbers(state: State) -> Iterator[tuple[object, ...]]:
    for call, about in enumerate(state["machines"]):
        yield from (("machine", f"call {call}", name, value) for name, value in about.items())
    for name, fields in state["parts"].items():
        if name == "tests":
            yield from (("tests", "tests/gpu", key, value) for key, value in fields.items())
            continue
        for row in fields["rows"]:
            first, *others = row
            yield from ((f"bench {name}", row[first], key, row[key]) for key in others if row[key] != "")
    for method, pilot in state["pilots"].items():
        yield from (("pilot", method, f"seconds: {key}", value) for key, value in pilot.items())
    for record in state["records"]:
        cell = record["cell"]
        what = f"{cell['method']}, {cell['budget']}, seed {cell['seed']}"
        yield from (("training", what, key, value) for key, value in record["result"].items())


def _budgets(records: Iterable[Record]) -> dict[str, dict[str, list[Record]]]:
    """Return budget -> method -> its records; equal seconds also have those of the method whose seconds they are."""
    found: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        found.setdefault(record["cell"]["budget"], {}).setdefault(record["cell"]["method"], []).append(record)
    for budget, methods in found.items():
        if budget != SAMPLES:
            seeds = {record["cell"]["seed"] for runs in methods.values() for record in runs}
            target = found[SAMPLES][_target(budget)]
            found[budget] = {_target(budget): [r for r in target if r["cell"]["seed"] in seeds], **methods}
    return found


def _target(budget: str) -> str:
    return "sam" if budget == SAMPLES else budget.removeprefix("seconds-of-")


def _title(budget: str) -> str:
    return "Equal samples" if budget == SAMPLES else f"As many seconds as {NAMES[_target(budget)]}"


def _rows(budget: str, methods: dict[str, list[Record]]) -> list[base.Row]:
    target = _target(budget)

    def mean(method: str, quantity: str) -> float:
        return statistics.fmean(_quantities(methods[method], quantity))

    rows: list[base.Row] = []
    for method, runs in methods.items():
        row: base.Row = {"method": NAMES[method], "ranks": str(runs[0]["cell"]["ranks"]), "seeds": str(len(runs))}
        row["test error %"] = mean_and_error(_quantities(runs, "center_test_error"))
        for name, quantity in RATIOS.items():
            other = mean(target, quantity) if target in methods else 0.0
            row[f"{name} : {target}"] = mean(method, quantity) / other if other else ""
        row["ms per step of a rank"] = mean(method, "step")
        for name in ("exchanging", "held up"):
            row[f"{name}, % of the time"] = mean(method, name) if method == "lsam" else ""
        rows.append(row)
    return rows


def _quantities(records: Sequence[Record], name: str) -> list[float]:
    return [_derived(record)[name] for record in records]


def _derived(record: Record) -> dict[str, float]:
    """Return a training's results, its samples, ms per step of a rank, and what exchanges take of the time, in %."""
    result, ranks = record["result"], record["cell"]["ranks"]
    chains = ranks if record["cell"]["method"] == "lsam" else 1
    return {
        **result,
        "samples": result["images_per_second"] * result["seconds"],
        "step": 1e3 * result["seconds"] * chains / result["total_steps"],
        "exchanging": 100 * result["exchange_seconds"] / result["seconds"] / ranks,
        "held up": 100 * result["exchange_blocked"] / result["seconds"] / ranks,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _first_line(*words: str) -> str:
    """Return the first line that a program prints; "none" if there is no such program, or it fails."""
    if shutil.which(words[0]) is None:
        return "none"
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else "none"
