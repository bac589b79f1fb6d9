"""One rank of an MPI test job: python -m mpi4py -m tests.helpers.ranks FOLDER LIMIT FILE::NAME..."""

from __future__ import annotations

import faulthandler
import importlib.util
import inspect
import json
import sys
import time
import traceback
from functools import cache
from pathlib import Path
from types import ModuleType

from lsam_hpc.util.preflight import needed_transports

with needed_transports():
    from mpi4py import MPI

from lsam_hpc.rma import barrier
from tests.helpers.batch import key


def main(folder: str, limit: str, *tests: str) -> None:
    comm = MPI.COMM_WORLD
    for test in tests:
        file, _, name = test.partition("::")
        test_key = key(Path(file), name)
        report = Path(folder) / f"{test_key}-{comm.rank}.json"
        began = time.monotonic()
        _write(report, "started", "", began)
        # exit=True ends this rank and so the job: a hang lasts no longer than the limit.
        faulthandler.dump_traceback_later(float(limit), exit=True)
        scratch = Path(folder) / test_key
        scratch.mkdir(exist_ok=True)
        fixtures = {"comm": comm, "tmp_path": scratch}
        try:
            function = getattr(_module(Path(file)), name)
            function(**{name: fixtures[name] for name in inspect.signature(function).parameters})
        except BaseException:
            _write(report, "failed", traceback.format_exc(), began)
            raise
        _write(report, "waiting", "", began)
        barrier(comm)
        faulthandler.cancel_dump_traceback_later()
        _write(report, "passed", "", began)


@cache
def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mpi_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _write(path: Path, outcome: str, text: str, began: float) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"outcome": outcome, "text": text, "seconds": time.monotonic() - began}))
    temporary.replace(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
