"""Counts the instructions of the hot paths under valgrind, and compares them with the committed figures.

    python tools/instructions.py            compare with tests/instructions.json; exit code 1 if one differs
    python tools/instructions.py --write    replace the committed figures

The number of instructions does not depend on the machine's load, so it shows a slow-down of a few per cent that a clock
would not show. It depends on the versions of the libraries: figures are compared only if these are the same. Callgrind
counts, because virtual machines and containers often have no hardware counters for perf and perf_event_open.
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

from lsam_hpc.errors import InputError
from lsam_hpc.util.arguments import Parser

FIGURES = Path(__file__).resolve().parents[1] / "tests" / "instructions.json"
TOLERANCE = 0.05  # accepted relative difference
REPEATS = 40  # calls of an operation between two marks
PATIENCE = 300.0  # s, time limit of the count
MARK = "getpgid"  # a libc function that nothing else calls: callgrind writes its counts at every call


def environment() -> dict[str, str]:
    """Return the versions and the processor type that the counts depend on besides the code."""
    import numpy as np
    import torch
    from mpi4py import MPI

    return {
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "h5py": version("h5py"),
        "mpi": " ".join(str(part) for part in MPI.get_vendor()),
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }


def count() -> tuple[dict[str, str], dict[str, int]]:
    """Return the environment under valgrind, and the instructions of each operation.

    Raises:
        InputError: valgrind is missing or fails.
    """
    output, counts = under_valgrind([__file__, "--operations"])
    result = json.loads(output)
    if len(counts) != len(result["operations"]):
        raise InputError(f"valgrind: expected {len(result['operations'])} counts, found {len(counts)}")
    by_name = dict(zip(result["operations"], counts, strict=True))
    nothing = by_name["nothing"]
    counted = {name: n - nothing for name, n in by_name.items() if name not in ("", "nothing")}
    return result["environment"], {name: round(n / REPEATS) for name, n in counted.items()}


def under_valgrind(words: Sequence[str]) -> tuple[str, list[int]]:
    """Run a Python program under callgrind; return its output, and the main thread's instructions between its marks.

    Args:
        words: the program and its arguments, to which the path of a file is added. The program makes this file when
            counting is to start, and waits until it is removed. Its marks are calls of the function `MARK`.

    Raises:
        InputError: valgrind is missing or fails.
    """
    if shutil.which("valgrind") is None or shutil.which("callgrind_control") is None:
        raise InputError("valgrind: expected the program on the PATH, found none: bash tests/debian.sh valgrind")
    with tempfile.TemporaryDirectory() as folder:
        out, ready = Path(folder, "out"), Path(folder, "ready")
        command = [
            "valgrind",
            "-q",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--dump-before={MARK}",
            "--separate-threads=yes",
            f"--callgrind-out-file={out}",
            sys.executable,
            *words,
            str(ready),
        ]
        fixed = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with subprocess.Popen(
            command, env={**os.environ, **fixed}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                _until(lambda: ready.exists() or process.poll() is not None)
                if process.poll() is None:  # counting starts here: counting the imports too would take minutes
                    subprocess.run(
                        ["callgrind_control", "-i", "on", str(process.pid)],
                        check=True,
                        capture_output=True,
                        timeout=PATIENCE,
                    )
                    ready.unlink()
                output, errors = process.communicate(timeout=PATIENCE)
            except (OSError, subprocess.SubprocessError, TimeoutError) as error:
                process.kill()
                raise InputError(f"valgrind: expected counts, found: {error}") from error
        if process.returncode:
            raise InputError(f"valgrind: expected counts, found: {(errors.strip().splitlines() or ['nothing'])[-1]}")
        dumps = sorted(Path(folder).glob("out.*-01"), key=lambda file: int(file.suffix[1:].partition("-")[0]))
        counts = [_instructions(dump) for dump in dumps]
    return output, counts


def environment_changes(current: dict[str, str], reference: dict[str, str]) -> str:
    """Return how this environment differs from that of the figures; "" if it does not."""
    names = [name for name in reference if current.get(name) != reference[name]]
    return ", ".join(f"{name}: figures for {reference[name]}, this is {current.get(name)}" for name in names)


def differences(counts: dict[str, int], figures: dict[str, int]) -> list[str]:
    """Return a line for each operation that is not within the tolerance of its figure."""
    lines = []
    for name in sorted({*counts, *figures}):
        if name not in counts or name not in figures:
            lines.append(f"{name}: expected {figures.get(name, 'no figure')}, found {counts.get(name, 'no count')}")
        elif abs(counts[name] - figures[name]) > TOLERANCE * figures[name]:
            change = 100 * (counts[name] / figures[name] - 1)
            lines.append(f"{name}: expected {figures[name]:,} instructions, found {counts[name]:,} ({change:+.1f} %)")
    return lines


def operations(folder: Path) -> dict[str, Callable[[], object]]:
    """Return the hot paths by name, on small tensors: the overhead around the arithmetic is what is measured."""
    import numpy as np
    import torch

    from lsam_hpc import rma
    from lsam_hpc.optim import SAM
    from lsam_hpc.optim.center import LocalCenter
    from lsam_hpc.optim.lsam import LocalLSAM
    from lsam_hpc.rundir.sketches import DeviceSketch
    from lsam_hpc.trajectory import CountSketch, TrajectoryWriter, layer_groups, schema
    from lsam_hpc.util import preflight

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
    lsam = LocalLSAM(torch.optim.SGD(second, lr=1e-6, momentum=0.9), center, rho=0.05, pull=0.1, period=1)
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
    """Create the file `ready`, wait until the parent removes it, and run every operation between two marks."""
    with tempfile.TemporaryDirectory() as folder:
        todo = {"nothing": lambda: None, **operations(Path(folder))}
        for operation in todo.values():
            for _ in range(3):
                operation()  # warm-up: first calls do more
        names: list[str] = []
        gc.collect()
        gc.disable()
        ready.touch()
        while ready.exists():
            pass  # no sleep: callgrind_control reaches valgrind only while the process runs code
        for name, operation in todo.items():
            with _marked(names, name):
                for _ in range(REPEATS):
                    operation()
        print(json.dumps({"environment": environment(), "operations": names}), flush=True)
        os._exit(0)  # so that callgrind counts and writes nothing more


@contextmanager
def _marked(names: list[str], name: str) -> Iterator[None]:
    os.getpgid(0)
    yield
    os.getpgid(0)
    names += ["", name]  # the counts before the first mark belong to no operation


def _instructions(dump: Path) -> int:
    match = re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE)
    return int(match[1]) if match else 0


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not ready after {PATIENCE:.0f} s")
        time.sleep(0.1)


def main(argv: Sequence[str]) -> int:
    """Count and compare, or write the figures; return the exit code."""
    parser = Parser(prog="instructions", description="Compare the hot paths' instructions with the committed figures.")
    parser.add_argument("--write", action="store_true", help="replace the figures by the new counts")
    parser.add_argument("--operations", metavar="FILE", help="internal: run the operations under valgrind")
    args = parser.parse_args(argv)
    if args.operations:
        run_operations(Path(args.operations))
    current, counts = count()
    if args.write:
        FIGURES.write_text(json.dumps({"environment": current, "instructions": counts}, indent=1) + "\n")
        print(f"{FIGURES}: {len(counts)} figures")
        return 0
    figures = json.loads(FIGURES.read_text())
    if changes := environment_changes(current, figures["environment"]):
        print(f"no comparison: {changes}")
        return 0
    lines = differences(counts, figures["instructions"])
    print("\n".join(lines) or f"{len(counts)} operations within {100 * TOLERANCE:.0f} % of their figures")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
