"""`lsam simulate`: what a run on another machine would do, from numbers or from what was measured."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from lsam_hpc import preflight
from lsam_hpc.arguments import Parser
from lsam_hpc.errors import InputError
from lsam_hpc.optionfile import read_options
from lsam_hpc.simulate import machines
from lsam_hpc.simulate.describe import Ascent, Coupling, Distribution, Job, Machine, Topology, Wire
from lsam_hpc.simulate.lifetime import Faults, Lifetime, live
from lsam_hpc.simulate.result import Result, simulate
from lsam_hpc.text import columns

# option -> (default, what it is)
OPTIONS: dict[str, tuple[Any, str]] = {
    "machine": ("two-cores", "a known one (%(machines)s), or a file"),
    "ranks": (8, "R"),
    "parameters": (11_000_000, "P, elements of the exchanged vector"),
    "step": (0.1, "mean seconds of a local step: two passes"),
    "work": (0.0, "of these, seconds that need a core of the node"),
    "distribution": ("constant", f"of the steps: {', '.join(get_args(Distribution))}"),
    "sigma": (0.1, "of the logarithm of lognormal steps"),
    "straggler": ("", "RANK:FACTOR[,RANK:FACTOR...]: ranks whose steps are longer"),
    "pause_every": (math.inf, "mean seconds between a rank's random pauses"),
    "pause": (0.0, "mean seconds of such a pause"),
    "period": (4, "steps between exchanges"),
    "wire_dtype": ("float32", ", ".join(get_args(Wire))),
    "coupling": ("elastic", ", ".join(get_args(Coupling))),
    "topology": ("center", ", ".join(get_args(Topology))),
    "degree": (1, "of gossip: peers read at an exchange"),
    "max_delay": (1, "exchanges in flight at most"),
    "group_size": (1, "ranks that are one chain together"),
    "group_ascent": ("own", ", ".join(get_args(Ascent))),
    "hidden": (0.5, "part of a pass behind which an allreduce of gradients hides"),
    "shards": (0, "ranks that own a part of the center; 0: all"),
    "seconds": (0.0, "of simulated time; 0: 20 exchanges of a chain"),
    "steps": (0, "of all ranks, after which it stops; 0: no limit"),
    "seed": (0, "of the random lengths"),
    "budget": (0, "steps of all ranks that the whole run takes; 0: a million"),
    "node_mtbf_hours": (math.inf, "mean time between failures of a node"),
    "checkpoint_every": (math.inf, "seconds of training between checkpoints"),
    "checkpoint": (0.0, "seconds that writing one takes"),
    "requeue": (0.0, "mean seconds from a failure until the job trains again"),
}
# In the machine's part of the command line, or of the simulation's.
APART = ("machine", "straggler", "seconds", "steps", "seed", "budget", "shards", "node_mtbf_hours", "checkpoint_every",
         "checkpoint", "requeue")  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Print the table, or the advice; return the exit code."""
    parser = Parser(
        prog="lsam simulate",
        description="Simulate ranks, exchanges, memory and network of a run, and the same run as synchronous SAM.",
    )
    hints = {name: type(default) for name, (default, _) in OPTIONS.items()}
    for name, (default, text) in OPTIONS.items():
        words = text % {"machines": ", ".join(machines.known())} if name == "machine" else text
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=hints[name], metavar=name.upper(), help=f"{words} (default: {default})")
    parser.add_argument("--config", metavar="FILE", help="YAML or TOML with these options; flags come first")
    measured_by = "take what was measured from a run's logs, or from lsam bench exchange --json"
    parser.add_argument("--calibrate", action="append", default=[], metavar="RUN|FILE.json", help=measured_by)
    parser.add_argument("--advise", action="store_true", help="tell which options suit the machine and the model")
    parser.add_argument("--train", nargs=argparse.REMAINDER, metavar="OPTION",
                        help="train a network in the simulated order; options of lsam train may follow")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    given = vars(parser.parse_args(argv))
    options = {name: default for name, (default, _) in OPTIONS.items()}
    if given["config"]:
        options |= read_options(Path(given["config"]), hints)
    options |= {name: given[name] for name in OPTIONS if given[name] is not None}
    machine = machines.load(options["machine"])
    fields = get_type_hints(Job)
    job = Job(**{name: value for name, value in options.items() if name in fields and name not in APART},
              factors=_stragglers(options["straggler"]), shards=options["shards"] or None)  # fmt: skip
    measured: list[str] = []
    for path in given["calibrate"]:
        from lsam_hpc.simulate.calibrate import calibrate

        job, machine, lines = calibrate(Path(path), job, machine)
        measured += lines
    # A run's own stragglers, and then those that were named.
    job = replace(job, factors={**job.factors, **_stragglers(options["straggler"])})
    if given["train"] is not None:
        preflight.start()  # before anything imports MPI, though one process is all there is
        from lsam_hpc.replay.verb import replay

        trained = replay(job, machine, options["seed"], given["train"])
        if given["json"]:
            _write(given["json"], {"machine": asdict(machine), "job": asdict(job), "trained": trained})
        return 0
    if given["advise"]:
        return _advise(job, machine, options, measured, given["json"])
    return _simulate(job, machine, options, measured, given["json"])


def _simulate(job: Job, machine: Machine, options: dict[str, Any], measured: list[str], out: str | None) -> int:
    seconds, steps = options["seconds"] or None, options["steps"] or None
    results = {"LSAM": simulate(job, machine, seconds, steps, options["seed"])}
    synchronous = replace(job, period=0, group_size=job.ranks, topology="center", wire_dtype="float32")
    results["synchronous SAM"] = simulate(synchronous, machine, seconds, steps, options["seed"])
    budget = options["budget"] or 1_000_000
    faults = Faults(3600 * options["node_mtbf_hours"], options["checkpoint_every"], options["checkpoint"],
                    options["requeue"])  # fmt: skip
    lives = {name: live(budget / r.rate, r.nodes, faults, options["seed"]) for name, r in results.items()}
    names = list(results)
    cells = [_cells(results[name], lives[name], budget) for name in names]
    print(columns([("", *names), *((label, *(c[label] for c in cells)) for label in cells[0])]))
    print("\n" + _assumptions(job, machine, measured, results["LSAM"]))
    if out:
        report = {
            "machine": asdict(machine), "job": asdict(job), "measured": measured, "budget": budget,
            **{name: {**asdict(results[name]), "efficiency": results[name].efficiency, "life": asdict(lives[name])}
               for name in names},
        }  # fmt: skip
        _write(out, report)
    return 0


def _advise(job: Job, machine: Machine, options: dict[str, Any], measured: list[str], out: str | None) -> int:
    from lsam_hpc.simulate.advise import advise

    found = advise(job, machine, options["seed"])
    best = found.job
    words = [f"--period {best.period}", f"--wire-dtype {best.wire_dtype}", f"--pull {found.pull:.3g}"]
    print(" ".join(words + [f"--group-size {best.group_size}"] * (best.group_size > 1)) + "\n")
    print("\n".join(f"* {reason}" for reason in found.reasons))
    rows = [(str(j.period), j.wire_dtype, str(j.group_size), f"{100 * r.efficiency:.1f}", _number(r.staleness.mean),
             f"{100 * r.link_used:.0f}") for j, r in found.tried]  # fmt: skip
    print("\n" + columns([("period", "wire", "group", "efficiency %", "staleness", "link %"), *rows]))
    print("\n" + _assumptions(best, machine, measured, found.result))
    if out:
        _write(out, {"machine": asdict(machine), "job": asdict(best), "pull": found.pull, "reasons": found.reasons})
    return 0


def _cells(r: Result, life: Lifetime, budget: int) -> dict[str, str]:
    gpu = r.ranks * life.held / 3600
    return {
        "steps/s of all ranks": _number(r.rate),
        "of the ranks' own rates, %": f"{100 * r.efficiency:.1f}",
        "slowest chain's steps/s": _number(r.slowest),
        "staleness: mean": _number(r.staleness.mean),
        "staleness: median, 95 %, most": ", ".join(
            _number(v) for v in (r.staleness.median, r.staleness.high, r.staleness.most)
        ),
        "an exchange, s": _number(r.exchange.mean),
        "alone on the machine, s": _number(r.alone),
        "training thread held per step, ms": _number(1e3 * r.held),
        "of these waiting, ms": _number(1e3 * r.waited),
        "bytes of an exchange": _bytes(r.exchange_bytes),
        "busiest network card": f"{_bytes(r.busiest_link)}/s, {100 * r.link_used:.1f} %",
        "busiest node's memory": f"{_bytes(r.busiest_node)}/s, {100 * r.memory_used:.1f} %",
        f"hours for {budget:,} steps": _number(life.wall / 3600),
        "failures": f"{life.failures:.2g}",
        "hours lost by them": _number(life.lost / 3600),
        "hours queued again": _number(life.queued / 3600),
        "hours of checkpoints": _number(life.checkpoints / 3600),
        "GPU-hours (rank-hours)": _number(gpu),
    }


def _assumptions(job: Job, machine: Machine, measured: list[str], found: Result) -> str:
    nodes = f"{found.nodes} node{'s' * (found.nodes > 1)}"
    device = f"device to host {_bytes(machine.host_link)}/s" if machine.host_link else "ranks compute on the host"
    lines = [
        f"Simulated: {_number(found.seconds)} s of {job.ranks} ranks on {nodes}, {found.exchanges} exchanges. Assumed:",
        f"{machine.name}: {machine.ranks_per_node} ranks and {machine.cores:g} cores a node; a thread copies "
        f"{_bytes(machine.copy)}/s, a node {_bytes(machine.memory)}/s; network {_bytes(machine.nic)}/s each way a "
        f"node, {_bytes(machine.rank_rate)}/s a rank, {1e6 * machine.latency:.3g} us, {100 * machine.bisection:.0f} % "
        f"of it across; help {1e3 * machine.help:.3g} ms, {machine.add_passes:g} passes for an add; {device}",
        f"{job.parameters:,} parameters; steps of {job.step:.4g} s ({job.work:.3g} s of a core), {job.distribution}"
        + (f", sigma {job.sigma:.3g}" if job.distribution == "lognormal" else "")
        + "".join(f"; rank {r} {f:.3g} times longer" for r, f in sorted(job.factors.items()))
        + f"; allreduces hide behind {100 * job.hidden:.0f} % of a pass",
    ]
    lines += [f"from: {machine.note}"] * bool(machine.note) + [f"measured: {line}" for line in measured]
    return "\n".join(lines)


def _stragglers(text: str) -> dict[int, float]:
    found = {}
    for part in filter(None, text.split(",")):
        rank, _, factor = part.partition(":")
        try:
            found[int(rank)] = float(factor)
        except ValueError as error:
            raise InputError(f"--straggler: expected RANK:FACTOR, as in 3:4, found {part}") from error
    return found


def _write(path: str, report: dict[str, Any]) -> None:
    try:
        Path(path).write_text(json.dumps(_known(report), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"--json: expected a file that can be written, found {path}: {error.strerror}") from error


def _known(value: Any) -> Any:  # noqa: ANN401
    """Return a value with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(k): _known(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_known(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _bytes(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
