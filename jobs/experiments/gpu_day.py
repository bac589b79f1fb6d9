"""Tests, benchmarks and trainings on one GPU within some minutes; gpu-day.sh starts it: docs/howto/gpus.md.

Everything that was measured is in OUT/gpu-day.json, which is written after each part and each training. A further call
with the same OUT skips what is there.
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import gpu_day_page as page
from gpu_day_state import Clock, Day, run

from lsam_hpc.compare.run import Record, run_cell
from lsam_hpc.compare.suite import Cell, Suite
from lsam_hpc.compare.suite_file import read_suite
from lsam_hpc.errors import InputError
from lsam_hpc.optim.accelerators import kind_of
from lsam_hpc.tools.bench.base import Report, job_environment, launcher
from lsam_hpc.train import data, formats
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser

SUITE = Path(__file__).with_name("gpu-day.yaml")
DATA = {"cifar10": (("", "cifar-10-batches-py"), "data_batch_1"), "fashion-mnist": (("",), "train-images-idx3-ubyte")}
ONE = "sam-one"  # SAM of one rank with all images: data parallel without any cost of communication
TARGETS = ("sam", ONE)  # LSAM also trains for as many seconds as each of these
BENCHMARKS = {"exchange": 20, "optimizer": 20, "train": 15}  # repeats
TEST_SHARE, BENCH_SHARE = 0.15, 0.3  # largest parts of the time
SEEDS, WORTH = 2, 10  # seeds to plan for, if each then gets this number of epochs; else for one
MOST, REHEARSED = 200, 2  # epochs at most, in a rehearsal too
REHEARSAL = {  # the same code in seconds
    "train": {"model": "cnn-tiny", "device": "cpu", "subset": 1000},
    "images": 64,
    "seeds": (0,),
    "curve_images": 200,
}


def tests(day: Day, clock: Clock) -> None:
    """Run the tests that need a GPU; without one they are skipped."""
    if "tests" in day.state["parts"] or clock.left < 0:
        return
    began, limit = time.monotonic(), TEST_SHARE * clock.left
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    code, output = run(day, "tests", words, limit)
    last = [line for line in output.splitlines() if line.strip()][-1:]
    if code is None:
        day.fail("tests", f"cut after {limit:.0f} s")
    else:
        day.state["parts"]["tests"] = {"result": " ".join(last), "seconds": time.monotonic() - began}
        if code:
            day.fail("tests", f"exit code {code}: {' '.join(last)}")
    day.save()


def benchmarks(day: Day, clock: Clock, ranks: int, *, quick: bool) -> None:
    """Run the benchmarks of exchange, optimizer and loop."""
    end = clock.left * (1 - BENCH_SHARE)
    for name, repeats in BENCHMARKS.items():
        if name in day.state["parts"] or clock.left <= end:
            continue
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            start = launcher(ranks if name == "exchange" else 1)
            words = [*start, sys.executable, "-m", "lsam_hpc", "bench", name, "--json", str(report)]
            words += ["--repeats", "1", "--quick"] if quick else ["--repeats", str(repeats)]
            limit = clock.left - end
            code, output = run(day, f"bench {name}", words, limit)
            if code == 0:
                day.state["parts"][name] = vars(Report.read(report))
            elif code is None:
                day.fail(f"bench {name}", f"cut after {limit:.0f} s")
            else:
                day.fail(f"bench {name}", f"exit code {code}: {output.strip().splitlines()[-1:]}")
        day.save()


def suite_of(name: str, folder: str | None, ranks: int, *, rehearse: bool) -> Suite:
    """Return the suite of the trainings.

    Args:
        name: of the data set.
        folder: with the data set's files.
        ranks: on the GPU.
        rehearse: whether it is a small one for the CPU.
    """
    suite = read_suite(SUITE, folder or "none")
    train = {**suite.train, "data": name, "data_dir": folder, "device": "cuda"}
    if folder is None:
        del train["data_dir"]
    suite = replace(suite, train=train, ranks=(ranks,))
    if not rehearse:
        return suite
    return replace(suite, **{**REHEARSAL, "train": {**train, **REHEARSAL["train"]}})


def cells_of(suite: Suite, seed: int, epochs: float) -> dict[str, Cell]:
    """Return the trainings of a seed with equal samples, by method."""
    cells = {cell.method: cell for cell in replace(suite, seeds=(seed,)).cells({})}
    sam = cells["sam"]
    cells[ONE] = replace(sam, method=ONE, ranks=1, options={**sam.options, "batch_size": suite.images})
    return {
        name: replace(cells[name], options={**cells[name].options, "epochs": epochs}) for name in (ONE, "sam", "lsam")
    }


def same_seconds(cell: Cell, record: Record, target: Record) -> Cell:
    """Return a training for as many seconds as another took.

    Args:
        cell: the training at equal samples.
        record: its results.
        target: results of the other.
    """
    result = record["result"]
    steps = max(1, round(result["total_steps"] * target["result"]["seconds"] / result["seconds"]))
    options = {name: value for name, value in cell.options.items() if name != "epochs"} | {"steps": steps}
    return replace(cell, budget=f"seconds-of-{target['cell']['method']}", options=options)


def train(day: Day, clock: Clock, suite: Suite, cell: Cell) -> Record | None:
    """Train one cell; return its results with the wall-clock seconds of everything, None if it failed or was cut."""
    print(f"gpu-day: {cell.name}", file=sys.stderr, flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            result, curve = run_cell(cell, suite, folder, launcher, max(1.0, clock.left))
            result |= exchanges(folder / cell.name)
        except InputError as error:
            day.fail(cell.name, str(error))
            day.log((folder / f"{cell.name}.log").read_text(errors="replace"))
            day.save()
            return None
        except subprocess.TimeoutExpired:
            print(f"gpu-day: {cell.name}: cut: the time is over", file=sys.stderr, flush=True)
            return None
    result["wall"] = time.monotonic() - began
    return {"cell": asdict(cell), "result": result, "curve": curve}


def exchanges(run_dir: Path) -> dict[str, float]:
    """Return the sums over all exchanges of their seconds, and of those that the training threads waited for them."""
    with Run(run_dir) as done:
        tables = [done.exchanges(rank) for rank in done.ranks]
    return {f"exchange_{name}": float(sum(table[name].sum() for table in tables)) for name in ("seconds", "blocked")}


def epochs_for(pilots: dict[str, dict[str, float]], left: float, most: int = MOST) -> int:
    """Return the epochs with which the trainings of one seed, or of two if each gets enough, fit into the time.

    Args:
        pilots: of each method: its seconds per epoch, "epoch", and of everything else, "else".
        left: s.
        most: largest number of epochs.
    """

    def fit(seeds: int) -> int:
        fixed = sum(pilot["else"] for pilot in pilots.values()) + len(TARGETS) * pilots["lsam"]["else"]
        each = sum(pilot["epoch"] for pilot in pilots.values()) + sum(pilots[name]["epoch"] for name in TARGETS)
        return min(most, max(1, math.floor((left / seeds - fixed) / each)))

    return fit(SEEDS) if fit(SEEDS) >= min(WORTH, most) else fit(1)


def pilots(day: Day, clock: Clock, suite: Suite) -> bool:
    """Measure each method for one epoch, and set the number of epochs; return whether it is known."""
    known = day.state["pilots"]
    for name, cell in cells_of(suite, 1000, 1).items():
        if name in known or clock.left <= 0:
            continue
        record = train(day, clock, suite, replace(cell, budget="pilot"))
        if record is not None:
            result = record["result"]
            known[name] = {"epoch": result["seconds"], "else": result["wall"] - result["seconds"]}
            day.save()
    if day.state["epochs"] is None and len(known) == 3:
        day.state["epochs"] = epochs_for(known, clock.left, REHEARSED if day.state["about"]["rehearse"] else MOST)
        day.save()
    return day.state["epochs"] is not None


def trainings(day: Day, clock: Clock, suite: Suite) -> None:
    """Train, seed by seed, until the time is over."""
    if not pilots(day, clock, suite):
        return
    known, epochs = day.state["pilots"], day.state["epochs"]
    for seed in suite.seeds:
        cells = cells_of(suite, seed, epochs)
        for name, cell in planned(day, cells):
            method = name or cell.method
            cost = known[cell.method]["else"] + epochs * known[method]["epoch"]
            if clock.left < cost:
                print(f"gpu-day: {cell.name} does not fit: it takes {cost:.0f} s", file=sys.stderr, flush=True)
                return
            record = train(day, clock, suite, cell)
            if record is None:
                continue
            day.state["records"].append(record)
            result = record["result"]
            if name is None:  # better known now than from one epoch
                known[method] = {"epoch": result["seconds"] / epochs, "else": result["wall"] - result["seconds"]}
            day.save()


def planned(day: Day, cells: dict[str, Cell]) -> Iterator[tuple[str | None, Cell]]:
    """Yield the missing trainings of a seed, with the method whose seconds they have; None for equal samples."""

    def done(cell: Cell) -> Record | None:
        found = [r for r in day.state["records"] if Cell(**r["cell"]).name == cell.name]
        return found[0] if found else None

    for cell in cells.values():
        if done(cell) is None:
            yield None, cell
    lsam = done(cells["lsam"])
    for name in TARGETS:
        target = done(cells[name])
        if lsam is not None and target is not None:
            cell = same_seconds(cells["lsam"], lsam, target)
            if done(cell) is None:
                yield name, cell


def data_of(place: str, *, rehearse: bool) -> tuple[str, str | None, int]:
    """Return the data set's name, its folder and the number of training images, after its files were read once.

    Raises:
        InputError: there is none, or a file is damaged.
    """
    if rehearse and place == "digits":
        return place, None, len(data.load(place, None).train_y)
    for name, (places, file) in DATA.items():
        try:
            formats.find(Path(place), places, file)
        except InputError:
            continue
        return name, str(Path(place).resolve()), len(data.load(name, place).train_y)
    raise InputError(f"DATA: expected a folder with the files of {' or '.join(DATA)}, found {place}")


def main(argv: Sequence[str]) -> int:
    """Do what fits into the time; return the exit code."""
    parser = Parser(prog="gpu-day", description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="DATA", help="folder with CIFAR-10's or Fashion-MNIST's files")
    parser.add_argument("out", metavar="OUT", help="folder for the results")
    parser.add_argument("--minutes", type=float, help="time for everything (default: 12; --rehearse: 3)")
    parser.add_argument("--ranks", type=int, default=4, help="ranks on the GPU (default: %(default)s; --rehearse: 2)")
    parser.add_argument(
        "--rehearse", action="store_true", help="small, on the CPU; DATA may be digits, which need none"
    )
    try:
        args = parser.parse_args(argv)
        ranks = 2 if args.rehearse else args.ranks
        minutes = (3.0 if args.rehearse else 12.0) if args.minutes is None else args.minutes
        if not minutes > 0 or not math.isfinite(minutes):
            raise InputError(f"--minutes: expected a number > 0, found {minutes}")
        if ranks < 2 or 512 % ranks:
            raise InputError(f"--ranks: expected 2, 4, 8 or another divisor of 512, found {ranks}")
        if not args.rehearse and kind_of("auto") != "cuda":
            raise InputError("expected a GPU that torch can use, or --rehearse, found none")
        clock = Clock(minutes)
        name, folder, images = data_of(args.data, rehearse=args.rehearse)
        suite = suite_of(name, folder, ranks, rehearse=args.rehearse)
        about = {"data": name, "images": images, "ranks": ranks, "rehearse": args.rehearse}
        day = Day(Path(args.out), about)
        launcher(ranks)
    except InputError as error:
        print(f"gpu-day: {error}", file=sys.stderr)
        return 2
    os.environ.update(job_environment())
    day.state["machines"].append(page.machine())
    if not args.rehearse and day.state["machines"][-1]["mps"] == "off":
        print("gpu-day: the ranks' kernels take turns; nvidia-cuda-mps-control -d lets them overlap", file=sys.stderr)
    day.save()
    tests(day, clock)
    benchmarks(day, clock, ranks, quick=args.rehearse)
    trainings(day, clock, suite)
    day.save()
    print(f"{Path(args.out) / 'gpu-day.md'}: {len(day.state['records'])} trainings of {day.state['epochs']} epochs")
    return 1 if day.state["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
