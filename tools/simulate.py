"""`lsam simulate`: predict throughput and staleness on another machine, from given or measured numbers."""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args, get_type_hints

from lsam_hpc.errors import InputError
from lsam_hpc.options.communication import CommunicationOptions
from lsam_hpc.options.coupling import CouplingOptions
from lsam_hpc.options.files import read_options
from lsam_hpc.options.option import fields
from lsam_hpc.simulate import machines
from lsam_hpc.simulate.describe import Distribution, Job, Machine
from lsam_hpc.util import preflight
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.document import document
from lsam_hpc.util.progress import Progress, add_quiet
from lsam_hpc.util.text import columns

if TYPE_CHECKING:  # they import SimPy, which --help does not need
    from lsam_hpc.simulate.lifetime import Lifetime
    from lsam_hpc.simulate.result import Result

Write = Callable[[dict[str, Any]], None]  # of --json
# Options that mean what they mean in LSAM.
LSAM_OPTIONS = ("period", "wire_dtype", "coupling", "topology", "degree", "max_delay", "group_size", "group_ascent")
# option -> (default, help)
OPTIONS: dict[str, tuple[Any, str]] = {
    "machine": ("two-cores", "a known machine (%(machines)s), or a file"),
    "ranks": (8, "number of ranks"),
    "parameters": (11_000_000, "elements of the exchanged vector"),
    "step": (0.1, "mean seconds of a local step, which is two passes"),
    "work": (0.0, "seconds of a step that need a core of the node"),
    "distribution": ("constant", f"distribution of the steps' lengths: {', '.join(get_args(Distribution))}"),
    "sigma": (0.1, "standard deviation of the logarithm of lognormal steps"),
    "straggler": ("", "RANK:FACTOR[,RANK:FACTOR...]: ranks whose steps are longer"),
    "pause_every": (math.inf, "mean seconds between a rank's random pauses"),
    "pause": (0.0, "mean seconds of such a pause"),
    **{
        item.name: (item.default, item.metadata["help"])
        for concern in (CouplingOptions, CommunicationOptions)
        for item in fields(concern)
        if item.name in LSAM_OPTIONS
    },
    "hidden": (0.5, "share of a pass that overlaps with an allreduce of gradients"),
    "shards": (0, "ranks that own a shard of the center; 0: all"),
    "fully_shard": (False, "each rank of a group holds and exchanges its shard of the model (FSDP2)"),
    "seconds": (0.0, "simulated seconds; 0: 20 exchanges of a chain"),
    "steps": (0, "steps of all ranks after which the simulation stops; 0: no limit"),
    "seed": (0, "seed of the random lengths"),
    "budget": (0, "steps of all ranks in the whole run; 0: a million"),
    "node_mtbf_hours": (math.inf, "mean time between failures of a node"),
    "checkpoint_every": (math.inf, "seconds of training between checkpoints"),
    "checkpoint": (0.0, "seconds to write a checkpoint"),
    "requeue": (0.0, "mean seconds from a failure until the job trains again"),
    "points": (0, "points of the center's error in the file of --json (with --train)"),
}
# Options that main() does not pass to Job by name.
APART = (
    "machine",
    "straggler",
    "seconds",
    "steps",
    "seed",
    "budget",
    "shards",
    "node_mtbf_hours",
    "checkpoint_every",
    "checkpoint",
    "requeue",
    "points",
)


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
        if default is False:
            parser.add_argument(flag, action="store_true", default=None, help=words)
            continue
        parser.add_argument(flag, type=hints[name], metavar=name.upper(), help=f"{words} (default: {default})")
    parser.add_argument("--config", metavar="FILE", help="YAML or TOML file with these options; flags override it")
    measured_by = "use the measurements in a run's logs, or in the output of lsam bench exchange --json"
    parser.add_argument("--calibrate", action="append", default=[], metavar="RUN|FILE.json", help=measured_by)
    parser.add_argument("--advise", action="store_true", help="recommend options for the machine and the model")
    parser.add_argument(
        "--train",
        nargs=argparse.REMAINDER,
        metavar="OPTION",
        help="train a network in the simulated order; options of lsam train may follow",
    )
    results = "file for the results (without FILE: print them, and nothing else on stdout)"
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help=results)
    add_quiet(parser)
    args = vars(parser.parse_args(argv))
    options = {name: default for name, (default, _) in OPTIONS.items()}
    if args["config"]:
        options |= read_options(Path(args["config"]), hints)
    options |= {name: args[name] for name in OPTIONS if args[name] is not None}
    machine = machines.load(options["machine"])
    fields = get_type_hints(Job)
    job = Job(
        **{name: value for name, value in options.items() if name in fields and name not in APART},
        factors=_stragglers(options["straggler"]),
        shards=options["shards"] or None,
    )
    measured: list[str] = []
    for path in args["calibrate"]:
        from lsam_hpc.simulate.calibrate import calibrate

        job, machine, lines = calibrate(Path(path), job, machine)
        measured += lines
    # --straggler overrides the stragglers measured in a run.
    job = replace(job, factors={**job.factors, **_stragglers(options["straggler"])})
    write = partial(_write, args["json"], sys.stdout) if args["json"] else None
    silent = args["quiet"] or args["json"] == "-"
    with contextlib.redirect_stdout(io.StringIO()) if silent else contextlib.nullcontext():
        return _answer(job, machine, options, measured, args=args, write=write)


def _answer(
    job: Job,
    machine: Machine,
    options: dict[str, Any],
    measured: list[str],
    *,
    args: dict[str, Any],
    write: Write | None,
) -> int:
    """Simulate, advise or train, and print."""
    title = None if args["quiet"] else "lsam simulate"
    if args["train"] is not None:
        preflight.start()  # must precede the import of MPI, although there is one process only
        from lsam_hpc.replay.verb import replay

        trained = replay(job, machine, options["seed"], args["train"], options["points"], title=title)
        if write:
            write({"machine": asdict(machine), "job": asdict(job), "trained": trained})
        return 0
    if args["advise"]:
        return _advise(job, machine, options, measured, write, title=title)
    return _simulate(job, machine, options, measured, write, title=title)


def _simulate(
    job: Job, machine: Machine, options: dict[str, Any], measured: list[str], write: Write | None, *, title: str | None
) -> int:
    seconds, steps = options["seconds"] or None, options["steps"] or None
    from lsam_hpc.simulate.lifetime import Faults, live
    from lsam_hpc.simulate.result import simulate

    synchronous = replace(job, period=0, group_size=job.ranks, topology="center", wire_dtype="float32")
    results: dict[str, Result] = {}
    with Progress(title, 200, "percent") as progress:
        for start, (name, simulated) in enumerate({"LSAM": job, "synchronous SAM": synchronous}.items()):

            def show(part: float, start: int = start) -> None:
                progress.reach(round(100 * (start + part)))

            results[name] = simulate(simulated, machine, seconds, steps, options["seed"], show=show)
    budget = options["budget"] or 1_000_000
    faults = Faults(
        3600 * options["node_mtbf_hours"], options["checkpoint_every"], options["checkpoint"], options["requeue"]
    )
    lives = {name: live(budget / r.rate, r.nodes, faults, options["seed"]) for name, r in results.items()}
    names = list(results)
    cells = [_cells(results[name], lives[name], budget) for name in names]
    print(columns([("", *names), *((label, *(c[label] for c in cells)) for label in cells[0])]))
    print("\n" + _assumptions(job, machine, measured, results["LSAM"]))
    if write:
        report = {
            "machine": asdict(machine),
            "job": asdict(job),
            "measured": measured,
            "budget": budget,
            **{
                name: {**asdict(results[name]), "efficiency": results[name].efficiency, "life": asdict(lives[name])}
                for name in names
            },
        }
        write(report)
    return 0


def _advise(
    job: Job, machine: Machine, options: dict[str, Any], measured: list[str], write: Write | None, *, title: str | None
) -> int:
    from lsam_hpc.simulate.advise import advise

    with Progress(title, 100, "percent") as progress:
        advice = advise(job, machine, options["seed"], lambda part: progress.reach(round(100 * part)))
    best = advice.job
    flags = [f"--period {best.period}", f"--wire-dtype {best.wire_dtype}", f"--pull {advice.pull:.3g}"]
    print(" ".join(flags + [f"--group-size {best.group_size}"] * (best.group_size > 1)) + "\n")
    print("\n".join(f"* {reason}" for reason in advice.reasons))
    rows = [
        (
            str(j.period),
            j.wire_dtype,
            str(j.group_size),
            f"{100 * r.efficiency:.1f}",
            _number(r.staleness.mean),
            f"{100 * r.link_used:.0f}",
        )
        for j, r in advice.tried
    ]
    print("\n" + columns([("period", "wire", "group", "efficiency %", "staleness", "link %"), *rows]))
    print("\n" + _assumptions(best, machine, measured, advice.result))
    if write:
        write({"machine": asdict(machine), "job": asdict(best), "pull": advice.pull, "reasons": advice.reasons})
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
        "bytes to the group per step": _bytes(r.group_bytes),
        "vectors that a rank holds": "-" if math.isnan(r.rank_bytes) else _bytes(r.rank_bytes),
        "busiest network card": f"{_bytes(r.busiest_link)}/s, {100 * r.link_used:.1f} %",
        "busiest node's memory": f"{_bytes(r.busiest_node)}/s, {100 * r.memory_used:.1f} %",
        f"hours for {budget:,} steps": _number(life.wall / 3600),
        "failures": f"{life.failures:.2g}",
        "hours lost by them": _number(life.lost / 3600),
        "hours queued again": _number(life.queued / 3600),
        "hours of checkpoints": _number(life.checkpoints / 3600),
        "GPU-hours (rank-hours)": _number(gpu),
    }


def _assumptions(job: Job, machine: Machine, measured: list[str], result: Result) -> str:
    nodes = f"{result.nodes} node{'s' * (result.nodes > 1)}, {result.exchanges} exchanges"
    device = f"device to host {_bytes(machine.host_link)}/s" if machine.host_link else "ranks compute on the host"
    lines = [
        f"Simulated: {_number(result.seconds)} s of {job.ranks} ranks on {nodes}. Assumed:",
        f"{machine.name}: {machine.ranks_per_node} ranks and {machine.cores:g} cores a node; a thread copies "
        f"{_bytes(machine.copy)}/s, a node {_bytes(machine.memory)}/s; network {_bytes(machine.nic)}/s each way a "
        f"node, {_bytes(machine.rank_rate)}/s a rank, {1e6 * machine.latency:.3g} us, {100 * machine.bisection:.0f} % "
        f"of it across; help {1e3 * machine.help:.3g} ms, {machine.add_passes:g} passes for an add; {device}",
        f"{job.parameters:,} parameters; steps of {job.step:.4g} s ({job.work:.3g} s of a core), {job.distribution}"
        + (f", sigma {job.sigma:.3g}" if job.distribution == "lognormal" else "")
        + "".join(f"; rank {r} {f:.3g} times longer" for r, f in sorted(job.factors.items()))
        + ("; each rank holds a shard" if job.fully_shard else "")
        + f"; allreduces hide behind {100 * job.hidden:.0f} % of a pass",
    ]
    lines += [f"from: {machine.note}"] * bool(machine.note) + [f"measured: {line}" for line in measured]
    return "\n".join(lines)


def _stragglers(text: str) -> dict[int, float]:
    factors = {}
    for part in filter(None, text.split(",")):
        rank, _, factor = part.partition(":")
        try:
            factors[int(rank)] = float(factor)
        except ValueError as error:
            raise InputError(f"--straggler: expected RANK:FACTOR, as in 3:4, found {part}") from error
    return factors


def _write(path: str, stdout: TextIO, report: dict[str, Any]) -> None:
    if path == "-":
        print(document(report), file=stdout)
        return
    try:
        Path(path).write_text(document(report) + "\n")
    except OSError as error:
        raise InputError(f"--json: expected a file that can be written, found {path}: {error.strerror}") from error


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
