"""`lsam bench log`: cost of the log and of sketches in a training step, and time to read many ranks."""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from lsam_hpc.optim.accelerators import module_of, usable
from lsam_hpc.rundir.sketches import DeviceSketch, SketchLog, StateLog
from lsam_hpc.tools.bench.base import Report, Row, caption, counted, markdown, medians
from lsam_hpc.tools.inspect_run import summary
from lsam_hpc.train.models import cnn, resnet18
from lsam_hpc.trajectory import CountSketch, Run, TrajectoryWriter, layer_groups

TITLE = "The log"
STEP = 0.1  # seconds of a step
PERIOD = 4  # steps between exchanges, each of which is sketched
RANKS = 1000
ATTRIBUTES: dict[str, str | int | float] = {
    "code_version": "",
    "git_commit": "",
    "git_dirty": -1,
    "created": "",
    "start_time": time.time(),
    "config": "{}",
    "ranks": 1,
    "seed": 0,
    "host": "",
    "mpi_library": "",
    "launcher": "",
    "job_id": "",
    "torch_version": "",
    "device": "cpu",
}
Layout = list[tuple[str, tuple[int, ...]]]


def measure(repeats: int, *, quick: bool) -> list[Row]:
    """Return a row per figure; see `base.Benchmark`.

    * held: fraction of a step of 100 ms that calls to the log take from the training thread.
    * slower: how much longer such a step takes with the log, whose exchanges, sketches and writing have threads of
      their own. The step is matrix products in one thread, timed in turn.
    * CPU: CPU time that the log adds in all threads; a free core can do this work.
    * bytes: growth of the file per step.
    * sketch : memcpy: bytes of a state read per second by a sketch, relative to a copy, on one core.
    * ranks: time and memory for opening and summarising small files of 1,000 ranks.
    """
    torch.set_num_threads(1)
    model = cnn((1, 8, 8), 10) if quick else resnet18((3, 32, 32), 10)
    layout = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    step, ranks = (STEP / 10, 20) if quick else (STEP, RANKS)
    return [*_logging(layout, repeats, step), *_sketching(layout, repeats), *_reading(ranks)]


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/explanation/performance.md; see `base.Benchmark`."""
    text = f"""\
Cost of a log with a sketch of sample and center at every exchange: a ResNet-18, steps of {1e3 * STEP:.0f} ms on one
core, an exchange every {PERIOD} steps, with and without the log in turn.

"""
    for report in reports:
        rows: list[Row] = [{**row, "": _verdict(float(row["found"]), str(row["aim"]))} for row in report.rows]
        text += f"{caption(report)}\n{markdown(rows)}\n"
    return (
        text
        + """\
The steps and the log's threads share the cores here. On a machine with a free core, or with a GPU, only the first line
remains as a cost.
"""
    )


def _verdict(result: float, aim: str) -> str:
    sign, _, limit = aim.partition(" ")
    if not limit:
        return ""
    return "met" if (result >= float(limit) if sign.startswith(">") else result <= float(limit)) else "**missed**"


def _row(name: str, result: float, aim: str) -> Row:
    return {"ResNet-18": name, "found": result, "aim": aim}


def _logging(layout: Layout, repeats: int, step: float) -> list[Row]:
    groups = layer_groups(layout)
    sketch = CountSketch(groups[-1].stop, groups)
    sample, center = torch.randn(sketch.size), torch.randn(sketch.size)
    work = _work(step)
    ratios, cpu, held, count = [], [], 0.0, 0
    with (
        tempfile.TemporaryDirectory() as folder,
        TrajectoryWriter(Path(folder), 0, layout, ATTRIBUTES, sketch=sketch) as writer,
        ThreadPoolExecutor(1) as exchange_thread,
    ):
        log = StateLog(SketchLog(writer, sketch, ("sample", "center")), None)

        def exchange(step: int) -> None:
            log.on_states(step, 0, {"sample": sample, "center": center})

        before = writer.path.stat().st_size
        for repeat in counted(range(repeats + 1)):
            began, ran = time.perf_counter(), time.process_time()
            for _ in range(PERIOD):
                work()
            without, ran_without = time.perf_counter() - began, time.process_time() - ran
            began, ran = time.perf_counter(), time.process_time()
            exchange_thread.submit(exchange, count)
            for _ in range(PERIOD):
                work()
                clock = time.perf_counter()
                writer.step(
                    iteration=count,
                    total_iteration=count,
                    loss=1.0,
                    grad_norm=1.0,
                    perturbation_norm=1.0,
                    center_distance=1.0,
                    lr=0.1,
                    rho=0.05,
                )
                count += 1
                if count % PERIOD == 0:
                    writer.exchange(
                        began=clock,
                        iteration=count,
                        seconds=1.0,
                        version_read=1,
                        version_added=1,
                        staleness=0,
                        bytes=1,
                        center_distance=1.0,
                        delta_norm=1.0,
                        accepted=True,
                        delay=1,
                        blocked=0.0,
                    )
                held += time.perf_counter() - clock if repeat else 0.0
            if repeat:  # the first turn creates the tables
                ratios.append((time.perf_counter() - began) / without)
                cpu.append((time.process_time() - ran - ran_without) / PERIOD)
        writer.flush()
        grown = writer.path.stat().st_size - before
    return [
        _row("training thread held, % of a step", 100 * held / (repeats * PERIOD) / step, "<= 1"),
        _row("step slower with the log, %", 100 * (statistics.median(ratios) - 1), "<= 1"),
        _row("CPU of the log's threads, % of a step", 100 * statistics.median(cpu) / step, ""),
        _row("KB per step and rank", grown / count / 1000, "<= 20"),
    ]


def _work(step: float) -> Callable[[], object]:
    """Return a function that computes for about `step` seconds in one thread."""
    a = torch.randn(256, 256)

    def products(count: int) -> Tensor:
        product = a
        for _ in range(count):
            product = torch.mm(a, a)
        return product

    products(50)
    began = time.perf_counter()
    products(200)
    count = max(1, round(200 * step / (time.perf_counter() - began)))
    return lambda: products(count)


def _sketching(layout: Layout, repeats: int) -> list[Row]:
    groups = layer_groups(layout)
    sketch = CountSketch(groups[-1].stop, groups)
    devices = ["cpu", *usable()]
    return [row for device in devices for row in _sketching_on(device, sketch, repeats)]


def _sketching_on(device: str, sketch: CountSketch, repeats: int) -> list[Row]:
    state = torch.randn(sketch.size, device=device)
    copy, on_device, array = torch.empty_like(state), DeviceSketch(sketch, device), state.cpu().numpy()

    def timed(work: Callable[[], object]) -> tuple[Callable[[], object], Callable[[], object]]:
        def whole() -> None:
            work()
            done()

        return done, whole

    def done() -> None:
        if (module := module_of(torch.device(device))) is not None:
            module.synchronize()

    works: dict[str, Callable[[], object]] = {"memcpy": lambda: copy.copy_(state), "torch": lambda: on_device(state)}
    if device == "cpu":
        works["numpy"] = lambda: sketch(array)
    seconds = medians(repeats, {name: timed(work) for name, work in works.items()})
    return [
        _row(f"sketch : memcpy, {name} on {device}", seconds["memcpy"] / seconds[name], ">= 0.3")
        for name in list(works)[1:]
    ]


def _reading(ranks: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "config.json").write_text("{}")
        for rank in range(ranks):
            with TrajectoryWriter(path, rank, [("w", (1000, 100))], {**ATTRIBUTES, "ranks": ranks}) as writer:
                for i in range(100):
                    writer.step(iteration=i, total_iteration=i, loss=1.0)
        began = time.perf_counter()
        summary(Run(path))
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return [
        _row(f"{ranks:,} ranks opened and summarised, s", seconds, "<= 10"),
        _row("most memory of this whole benchmark, MB", peak, "<= 1000"),
    ]
