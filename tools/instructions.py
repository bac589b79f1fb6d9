"""Counts the instructions of the hot paths under valgrind, and compares them with the committed figures.

    python tools/instructions.py            compare with tests/instructions.json; ends with 1 if one differs
    python tools/instructions.py --write    make these the committed figures

Instructions do not depend on the machine's load, so a slow-down of some per cent shows where no clock would show it.
They do depend on the versions of the libraries: figures count only where these are the same. Callgrind counts, because
virtual machines and containers often have no hardware counters, and then neither perf nor perf_event_open works.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from lsam_hpc.arguments import Parser
from lsam_hpc.errors import InputError

FIGURES = Path(__file__).parents[1] / "tests" / "instructions.json"
TOLERANCE = 0.05  # of a figure
REPEATS = 40  # of an operation, between two marks
PATIENCE = 300.0  # s that counting may take
MARK = "getpgid"  # in libc, called by nothing else here: callgrind writes its counts whenever it is called


def environment() -> dict[str, str]:
    """Return what the counts depend on besides the code."""
    import numpy as np
    import torch
    from mpi4py import MPI

    return {
        "machine": platform.machine(), "libc": " ".join(platform.libc_ver()), "python": platform.python_version(),
        "torch": str(torch.__version__), "numpy": np.__version__, "h5py": version("h5py"),
        "mpi": " ".join(str(part) for part in MPI.get_vendor()), "vectors": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


def count() -> tuple[dict[str, str], dict[str, int]]:
    """Return the environment under valgrind, and the instructions of each operation.

    Raises:
        InputError: there is no valgrind, or it fails.
    """
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        raise InputError("valgrind: expected it for counting (bash tests/debian.sh valgrind), found none")
    with tempfile.TemporaryDirectory() as folder:
        out, ready = Path(folder, "out"), Path(folder, "ready")
        command = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", f"--dump-before={MARK}",
                   f"--callgrind-out-file={out}", sys.executable, __file__, "--operations", str(ready)]  # fmt: skip
        alone = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with subprocess.Popen(command, env={**os.environ, **alone}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True) as process:  # fmt: skip
            try:
                _until(lambda: ready.exists() or process.poll() is not None)
                if process.poll() is None:  # imports are not counted: that would take minutes
                    subprocess.run(["callgrind_control", "-i", "on", str(process.pid)], check=True,
                                   capture_output=True, timeout=PATIENCE)  # fmt: skip
                    ready.unlink()
                told, errors = process.communicate(timeout=PATIENCE)
            except (OSError, subprocess.SubprocessError, TimeoutError) as error:
                process.kill()
                raise InputError(f"valgrind: expected counts, found: {error}") from error
        if process.returncode:
            raise InputError(f"valgrind: expected counts, found: {(errors.strip().splitlines() or ['nothing'])[-1]}")
        dumps = sorted(Path(folder).glob("out.*"), key=lambda file: int(file.suffix[1:]))
        counts = [_total(dump) for dump in dumps]
    found = json.loads(told)
    if len(counts) != len(found["operations"]):
        raise InputError(f"valgrind: expected {len(found['operations'])} counts, found {len(counts)}")
    by_name = dict(zip(found["operations"], counts, strict=True))
    nothing = by_name["nothing"]
    counted = {name: n - nothing for name, n in by_name.items() if name not in ("", "nothing")}
    return found["environment"], {name: round(n / REPEATS) for name, n in counted.items()}


def other(here: dict[str, str], there: dict[str, str]) -> str:
    """Return in what another environment differs from the one of the figures, "" if in nothing."""
    names = [name for name in there if here.get(name) != there[name]]
    return ", ".join(f"{name}: figures of {there[name]}, here {here.get(name)}" for name in names)


def differences(found: dict[str, int], figures: dict[str, int]) -> list[str]:
    """Return a line for each operation that is not within the tolerance of its figure."""
    lines = []
    for name in sorted({*found, *figures}):
        if name not in found or name not in figures:
            lines.append(f"{name}: expected {figures.get(name, 'no figure')}, found {found.get(name, 'no count')}")
        elif abs(found[name] - figures[name]) > TOLERANCE * figures[name]:
            change = 100 * (found[name] / figures[name] - 1)
            lines.append(f"{name}: expected {figures[name]:,} instructions, found {found[name]:,} ({change:+.1f} %)")
    return lines


def operations(folder: Path) -> dict[str, Callable[[], object]]:
    """Return the hot paths by name, each small: what Python and the libraries do around the arithmetic counts most."""
    import numpy as np
    import torch

    from lsam_hpc import preflight, rma
    from lsam_hpc.optim import SAM
    from lsam_hpc.optim.center import LocalCenter
    from lsam_hpc.optim.lsam import LSAM
    from lsam_hpc.sketches import DeviceSketch
    from lsam_hpc.trajectory import CountSketch, TrajectoryWriter, layer_groups, schema

    preflight.start()
    from mpi4py import MPI

    torch.manual_seed(0)
    torch.set_num_threads(1)

    def params() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.randn(64, 64)) for _ in range(8)]

    def step_of(opt: SAM, of: Sequence[torch.nn.Parameter]) -> Callable[[], object]:
        grads = [torch.randn(64, 64) for _ in of]

        def closure() -> torch.Tensor:
            for p, g in zip(of, grads, strict=True):
                p.grad = g
            return loss

        loss = torch.zeros(())
        return lambda: opt.step(closure)

    first, second = params(), params()
    sam = SAM(torch.optim.SGD(first, lr=1e-6, momentum=0.9), rho=0.05)
    center = LocalCenter(torch.cat([p.detach().reshape(-1) for p in second]))
    lsam = LSAM(torch.optim.SGD(second, lr=1e-6, momentum=0.9), center, rho=0.05, pull=0.1, period=1)
    size = center.size
    vector = torch.randn(size)
    sketch = DeviceSketch(CountSketch(size, layer_groups([("p", (size,))], 1), 1024, 0), "cpu")
    row = {column.name: 1 for column in schema.STEP if column.name != "time"}
    attributes = {name: attribute.kind(1) for name, attribute in schema.ATTRIBUTES.items() if not attribute.written}
    writer = TrajectoryWriter(folder, 0, [("p", (size,))], attributes, 3600.0)
    host = np.zeros(size, np.float32)
    windows = rma.Center(MPI.COMM_SELF, size)
    return {
        "SAM step": step_of(sam, first),
        "LSAM step with its exchange": step_of(lsam, second),
        "sketch": lambda: sketch(vector),
        "log row": lambda: writer.step(**row),
        "center read": lambda: windows.read(host),
        "center add": lambda: windows.add(host),
    }


def run_operations(ready: Path) -> None:
    """Do every operation between marks, when the file that says that this process is ready has gone."""
    with tempfile.TemporaryDirectory() as folder:
        todo = {"nothing": lambda: None, **operations(Path(folder))}
        for operation in todo.values():
            for _ in range(3):
                operation()  # what the first time does is no hot path
        names: list[str] = []
        gc.collect()
        gc.disable()
        ready.touch()
        while ready.exists():
            pass  # valgrind is reached only while there is something to run
        for name, operation in todo.items():
            with _marked(names, name):
                for _ in range(REPEATS):
                    operation()
        print(json.dumps({"environment": environment(), "operations": names}), flush=True)
        os._exit(0)  # nothing else is to be counted, or written


@contextmanager
def _marked(names: list[str], name: str) -> Iterator[None]:
    os.getpgid(0)
    yield
    os.getpgid(0)
    names += ["", name]  # what comes before the first mark is of no operation


def _total(dump: Path) -> int:
    found = re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not ready after {PATIENCE:.0f} s")
        time.sleep(0.1)


def main(argv: Sequence[str]) -> int:
    """Count and compare, or write the figures; return the exit code."""
    parser = Parser(prog="instructions", description="Compare the instructions of the hot paths with the last figures.")
    parser.add_argument("--write", action="store_true", help="make what is counted now the figures")
    parser.add_argument("--operations", metavar="FILE", help="internal: what valgrind runs")
    given = parser.parse_args(argv)
    if given.operations:
        run_operations(Path(given.operations))
    here, found = count()
    if given.write:
        FIGURES.write_text(json.dumps({"environment": here, "instructions": found}, indent=1) + "\n")
        print(f"{FIGURES}: {len(found)} figures")
        return 0
    figures = json.loads(FIGURES.read_text())
    if unlike := other(here, figures["environment"]):
        print(f"no comparison: {unlike}")
        return 0
    lines = differences(found, figures["instructions"])
    print("\n".join(lines) or f"{len(found)} operations within {100 * TOLERANCE:.0f} % of their figures")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
