"""Labels, tables and styles of comparisons of runs."""

import math
from pathlib import Path

import pytest

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.comparison import Case, cell, named, of_rows, run_labels


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["runs/sgd", "runs/sam"], ["sgd", "sam"]),
        (["sgd/seed0", "sam/seed0"], ["sgd", "sam"]),
        (["sgd/seed0", "sgd/seed1", "sam/seed0"], ["sgd/seed0", "sgd/seed1", "sam/seed0"]),
        (["x/a/b/run", "y/a/b/run"], ["x", "y"]),
        (["x/1", "y/2"], ["1", "2"]),
        (["a", "a/b"], ["a", "b"]),
        (["runs/sgd/rank-0000.h5", "runs/sam/rank-0000.h5"], ["sgd", "sam"]),
        (["runs/sgd"], ["sgd"]),
    ],
)
def test_labels_are_the_shortest_parts_that_differ(tmp_path, paths, labels):
    assert run_labels([tmp_path / path for path in paths]) == labels


def test_a_run_given_twice(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match=r"RUN: expected different runs, found .*/link twice"):
        run_labels([tmp_path / "a", tmp_path / "b", tmp_path / "link"])


def test_columns_that_say_nothing_are_not_printed():
    rows = [
        {"run": run, "split": "train", "x": x, "n": 1000, "empty": math.nan} for run, x in (("a", 0.5), ("b", None))
    ]
    text, table = of_rows(rows)
    assert [line.split() for line in text.splitlines()] == [
        ["run", "x", "n"],
        ["a", "0.5", "1,000"],
        ["b", "-", "1,000"],
    ]
    assert table["split"] == ["train", "train"]
    assert list(table) == ["run", "split", "x", "n", "empty"]
    assert [cell(value) for value in (None, "", math.nan, 3, 1e-7, "a")] == ["-", "-", "-", "3", "1e-07", "a"]


def test_a_colour_for_each_run_and_dashes_for_test_data():
    cases = [Case(run, split, i, Path(run)) for i, run in enumerate("abcdefgh") for split in ("train", "test")]
    assert named(cases)[:2] == ["a, train", "a, test"]
    assert named(cases[::2]) == list("abcdefgh")
    styles = [(case.style["color"], case.style["linestyle"]) for case in cases]
    assert styles[0][0] == styles[1][0] != styles[2][0]
    assert styles[0][1] == "-" != styles[1][1]
    assert len({styles[i] for i in range(0, 16, 2)}) == 8
