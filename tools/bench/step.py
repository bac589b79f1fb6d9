"""Prints what a step of `lsam train` spends where, in instructions of its thread: python tools/bench/step.py

The parts of a step are marked, and callgrind counts the instructions between two marks: see tools/instructions.py. A
part does not contain the parts that it calls. The model is the MLP at batch 32, so small that all parts show.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lsam_hpc.tools.bench.base import Row, markdown
from lsam_hpc.tools.instructions import under_valgrind

STEPS = 20  # counted steps: five exchanges, two blocks of mini-batches
WARM = 10  # steps before them
# Part of a step -> its functions: module, class or "", name.
PARTS = {
    "mini-batch": [("lsam_hpc.train.batches", "Batches", "__next__")],
    "forward pass and loss": [("lsam_hpc.train.loop", "", "batch_loss")],
    "backward pass": [("torch", "Tensor", "backward")],
    "base optimizer": [("torch.optim", "SGD", "step")],
    "ascent, or the gradient's norm without one": [
        ("lsam_hpc.optim.sam", "SAM", "climb"),
        ("lsam_hpc.optim.sam", "SAM", "restore"),
        ("lsam_hpc.optim.ascents.sam", "", "one_pass"),
    ],
    "`LSAM.step` around these": [("lsam_hpc.distributed.lsam", "LSAM", "step")],
    "exchange: staging and result": [
        ("lsam_hpc.optim.lsam", "LocalLSAM", "_collect"),
        ("lsam_hpc.optim.lsam", "LocalLSAM", "_begin_exchange"),
    ],
    "schedules": [("lsam_hpc.optim.sam", "SAM", "_set_rho"), ("lsam_hpc.train.loop", "", "lr_factor")],
    "global step": [("lsam_hpc.distributed.steps", "SharedSteps", "claim")],
    "heartbeat and published loss": [
        ("lsam_hpc.distributed.lsam", "LSAM", "_report_step"),
        ("lsam_hpc.distributed.lsam", "LSAM", "observe"),
    ],
    "log row": [("lsam_hpc.train.step_numbers", "StepNumbers", "add")],
    "checkpoints": [("lsam_hpc.train.checkpoint_scheduler", "CheckpointScheduler", "step")],
}
REST = "loop around these"
FIRST = "thousand instructions"


class _Marks:
    """Marks where a part of a step begins and ends.

    Attributes:
        names: the part between each mark and the one before.
        calls: of each part.
    """

    def __init__(self) -> None:
        self.on = False
        self.names: list[str] = []
        self.calls = Counter[str]()
        self._open = [REST]

    def mark(self) -> None:
        os.getpgid(0)
        self.names.append(self._open[-1])

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def marked(*args: object, **keywords: object) -> object:
            if not self.on:
                return function(*args, **keywords)
            self.mark()
            self.calls[part] += 1
            self._open.append(part)
            try:
                return function(*args, **keywords)
            finally:
                self.mark()
                self._open.pop()

        return marked


def _run(method: str, ready: Path) -> None:
    """Train, and mark the parts from step `WARM` on; print their names."""
    from lsam_hpc.util import preflight

    preflight.start()
    from tqdm import tqdm

    from lsam_hpc.tools.bench import train
    from lsam_hpc.train import checkpoint_scheduler
    from lsam_hpc.train.profile import Profile

    # Under valgrind a step is so slow that these would be due in some of the counted steps.
    checkpoint_scheduler.EARLY = checkpoint_scheduler.FIRST_SECONDS = math.inf
    tqdm.update = lambda *_: None  # type: ignore[method-assign]
    marks = _Marks()
    for part, functions in PARTS.items():
        for module, owner, name in functions:
            place = importlib.import_module(module)
            place = getattr(place, owner) if owner else place
            setattr(place, name, marks.around(part, getattr(place, name)))
    nothing = marks.around("nothing", lambda: None)
    calling = marks.around("calling", lambda: nothing())
    before = Profile.before

    def begin_step(profile: Profile, step: int) -> None:
        if step == WARM:
            gc.collect()
            gc.disable()  # as rare as a collection is, it takes as long as many steps
            ready.touch()
            while ready.exists():
                pass
            marks.on = True
        elif step == WARM + STEPS:
            marks.mark()
            print(json.dumps([marks.names, marks.calls]), file=sys.__stdout__, flush=True)
            os._exit(0)
        calling()
        before(profile, step)

    Profile.before = begin_step  # type: ignore[assignment, method-assign]
    options = ("--model", "mlp", "--batch-size", "32", "--device", "cpu", *(train.ALONE if method == "SGD" else ()))
    with tempfile.TemporaryDirectory() as folder:
        train._write_images(Path(folder))
        train._ours(Path(folder), options)(WARM + 2 * STEPS)


def count(method: str) -> dict[str, float]:
    """Return the instructions of each part of a step, in thousands, for SGD or LSAM; without those of the marks."""
    output, counts = under_valgrind([__file__, method])
    names, calls = json.loads(output)
    total, between = Counter[str](), Counter[str]()
    for name, instructions in list(zip(names, counts, strict=True))[1:]:  # what is before the first mark is no part
        total[name] += instructions
        between[name] += 1
    own = total["nothing"] / calls["nothing"]  # of a call that is marked
    called = total["calling"] / calls["calling"] - own  # of a marked call, in the part that makes it
    return {
        part: (total[part] - own * calls.get(part, 0) - called * (between[part] - calls.get(part, 0))) / STEPS / 1000
        for part in [*PARTS, REST]
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _run(sys.argv[1], Path(sys.argv[2]))
    counts = {method: count(method) for method in ("SGD", "LSAM")}
    rows: list[Row] = [{FIRST: part, **{method: counts[method][part] for method in counts}} for part in [*PARTS, REST]]
    rows.append({FIRST: "sum", **{method: sum(parts.values()) for method, parts in counts.items()}})
    print(markdown(rows))
