"""The marks around the parts of a step, and the instructions that are ascribed to each part."""

import json

import pytest

from lsam_hpc.tools.bench import step
from lsam_hpc.tools.bench.step import PARTS, REST, STEPS, _Marks, count


def test_marks_name_the_part_that_ran_before_each():
    marks = _Marks()
    inner = marks.around("inner", lambda x: x + 1)
    outer = marks.around("outer", lambda x: inner(inner(x)))
    assert outer(1) == 3
    assert marks.names == []  # marks are off
    marks.on = True
    assert outer(1) == 3
    assert marks.names == [REST, "outer", "inner", "outer", "inner", "outer"]
    assert marks.calls == {"outer": 1, "inner": 2}


def test_the_cost_of_the_marks_is_subtracted(monkeypatch):
    """A call that is marked costs 30 instructions in itself, and 50 in the part that makes it."""
    batch, passes, *_ = PARTS
    work = {batch: 7000, passes: 11000, REST: 2000, "nothing": 0, "calling": 0}
    # Per step: REST calls "calling", which calls "nothing", then the batch, and the passes call the batch again.
    order = [REST, "calling", "nothing", "calling", REST, batch, REST, passes, batch, passes]
    marks = {REST: 50, "calling": 40, "nothing": 30, batch: 30, passes: 40}
    names, counts = [], []
    for _ in range(STEPS):
        for name in order:
            names.append(name)
            counts.append(marks[name] + work[name] // order.count(name))
    counts[0] += 10**6  # what is before the first mark
    calls = {"calling": STEPS, "nothing": STEPS, batch: 2 * STEPS, passes: STEPS}
    monkeypatch.setattr(step, "under_valgrind", lambda words: (json.dumps([names, calls]), counts))
    parts = count("SGD")
    assert parts[batch] == pytest.approx(7)
    assert parts[passes] == pytest.approx(11)
    assert parts[REST] == pytest.approx(2, rel=0.05)  # without a part of the first step
    assert sum(parts.values()) == pytest.approx(20, rel=0.01)
