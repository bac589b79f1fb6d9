"""Finished points survive a kill of the program, and are not evaluated again."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.landscape.workqueue import evaluate, read_points
from tests.helpers.mpis import ROOT

OPTIONS = {"x": [0.0, 0.1], "kind": "loss"}


def value(index):
    return (index**0.5, np.nan if index == 3 else -float(index))


EXPECTED = np.array([value(i) for i in range(12)])


class Counting:
    def __init__(self, fail_at=None):
        self.seen = []
        self.fail_at = fail_at

    def __call__(self, index):
        if len(self.seen) == self.fail_at:
            raise InputError("point: no more")
        self.seen.append(index)
        return value(index)


def test_all_points_without_a_folder():
    np.testing.assert_array_equal(evaluate(value, 12, 2), EXPECTED)
    assert evaluate(value, 0, 2).shape == (0, 2)


def test_finished_points_are_not_evaluated_again(tmp_path):
    folder = tmp_path / "part"
    with pytest.raises(InputError, match="no more"):
        evaluate(Counting(5), 12, 2, folder, OPTIONS)
    assert sorted(read_points(folder, 2, 12)) == [0, 1, 2, 3, 4]
    again = Counting()
    np.testing.assert_array_equal(evaluate(again, 12, 2, folder, OPTIONS), EXPECTED)
    assert again.seen == list(range(5, 12))
    np.testing.assert_array_equal(evaluate(Counting(0), 12, 2, folder, OPTIONS), EXPECTED)


@pytest.mark.parametrize("cut", [1, 4, 8, 27])
def test_an_incomplete_last_record_is_evaluated_again(tmp_path, cut):
    folder = tmp_path / "part"
    evaluate(value, 12, 2, folder, OPTIONS)
    file = folder / "points-0000.bin"
    os.truncate(file, file.stat().st_size - cut)
    again = Counting()
    np.testing.assert_array_equal(evaluate(again, 12, 2, folder, OPTIONS), EXPECTED)
    assert again.seen == [11]
    assert sorted(read_points(folder, 2, 12)) == list(range(12))


def test_a_damaged_record_is_evaluated_again(tmp_path):
    folder = tmp_path / "part"
    evaluate(value, 12, 2, folder, OPTIONS)
    file = folder / "points-0000.bin"
    stored = bytearray(file.read_bytes())
    stored[28 * 4 + 10] ^= 1
    file.write_bytes(stored)
    again = Counting()
    np.testing.assert_array_equal(evaluate(again, 12, 2, folder, OPTIONS), EXPECTED)
    assert again.seen == [4]


def test_points_of_other_ranks_count(tmp_path):
    folder = tmp_path / "part"
    evaluate(value, 6, 2, folder, OPTIONS)
    (folder / "points-0000.bin").rename(folder / "points-0003.bin")
    again = Counting()
    np.testing.assert_array_equal(evaluate(again, 12, 2, folder, OPTIONS), EXPECTED)
    assert again.seen == list(range(6, 12))


def test_bad_input(tmp_path):
    folder = tmp_path / "part"
    evaluate(value, 12, 2, folder, OPTIONS)
    with pytest.raises(
        InputError,
        match=r'part: expected points of the same options, found kind "loss" there and '
        r'"sam" now: remove the folder, or choose another name$',
    ):
        evaluate(value, 12, 2, folder, {**OPTIONS, "kind": "sam"})
    with pytest.raises(InputError, match=r"found rho null there and 0\.1 now"):
        evaluate(value, 12, 2, folder, {**OPTIONS, "rho": 0.1})
    (folder / "options.json").write_text("{")
    with pytest.raises(InputError, match="part: expected a folder for finished points, found: Expecting"):
        evaluate(value, 12, 2, folder, OPTIONS)
    (folder / "options.json").unlink()
    with pytest.raises(InputError, match=r"part: expected options.json beside the points, found none"):
        evaluate(value, 12, 2, folder, OPTIONS)
    with pytest.raises(InputError, match=r"expected a folder for finished points, found: .*No such file"):
        evaluate(value, 12, 2, tmp_path / "no" / "part", OPTIONS)
    with pytest.raises(InputError, match="point 0: expected 3 values, found 2"):
        evaluate(value, 12, 3, tmp_path / "three", OPTIONS)


SCRIPT = """
import os, sys, time
from pathlib import Path
from lsam_hpc.landscape.workqueue import evaluate
folder, log = Path(sys.argv[1]), open(sys.argv[2], "a")
def work(index):
    log.write(f"{index}\\n"); log.flush()
    time.sleep(0.002)
    return (index / 7, -index)
values = evaluate(work, 300, 2, folder, {"a": 1})
assert (values[:, 0] == [i / 7 for i in range(300)]).all()
"""


def test_killed_at_random_moments(tmp_path):
    """No finished point is evaluated again after repeated kills."""
    chance, folder, log = random.Random(0), tmp_path / "part", tmp_path / "log"
    log.touch()
    kills = 0
    while True:
        done = set(read_points(folder, 2, 300))
        before = len(log.read_text().splitlines())
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(log)], cwd=ROOT)
        try:
            wanted = before + chance.randrange(1, 60)
            deadline = time.monotonic() + 120
            while process.poll() is None and len(log.read_text().splitlines()) < wanted:
                assert time.monotonic() < deadline
            if process.poll() is None and kills < 6:
                process.send_signal(signal.SIGKILL)
                kills += 1
        finally:
            code = process.wait(120)
        started = list(map(int, log.read_text().splitlines()))[before:]
        assert not done & set(started)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert kills >= 4
    everything = list(map(int, log.read_text().splitlines()))
    assert set(everything) == set(range(300))
    # A kill repeats at most the point that was being evaluated.
    assert len(everything) <= 300 + kills
