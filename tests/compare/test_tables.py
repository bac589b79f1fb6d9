"""Means, standard errors, times to a target: against numpy and by hand."""

import csv
import math

import numpy as np
import pytest

from lsam_hpc.compare.curves import band, draw
from lsam_hpc.compare.tables import (
    markdown,
    mean_and_error,
    overview,
    seconds_to,
    standard_error,
    write_curves,
    write_runs,
)


def record(method, seed, error, seconds=10.0, curve=(), stragglers="none"):
    cell = {
        "method": method,
        "budget": "short",
        "ranks": 4,
        "seed": seed,
        "stragglers": stragglers,
        "trial": None,
        "options": {"lr": 0.1, "rho": 0.05},
    }
    result = {"center_test_error": error, "center_train_loss": 0.5, "seconds": seconds, "images_per_second": 100.0}
    points = [{"epochs": float(at), "seconds": 2.0 * at, "test_error": value} for at, value in curve]
    return {"cell": cell, "result": result, "curve": points}


def test_standard_errors():
    values = [3.0, 5.0, 4.5, 9.0]
    assert standard_error(values) == pytest.approx(np.std(values, ddof=1) / 2)
    assert math.isnan(standard_error([1.0]))
    assert mean_and_error([1.0, 3.0]) == "2.00 ± 1.00"
    assert mean_and_error([1.0], 1) == "1.0"


def test_seconds_to_a_target():
    run = record("sam", 0, error=5.0, curve=[(1, 50.0), (2, 8.0), (3, 9.0), (4, 5.0)])
    assert seconds_to(run, 8.0) == 4.0
    assert seconds_to(run, 5.0) == 8.0
    assert seconds_to(run, 4.9) == math.inf
    assert seconds_to(record("sam", 0, error=5.0, seconds=11.0), 6.0) == 11.0  # no curve: at the end


def test_the_table_compares_with_the_reference():
    runs = [record("sam", 0, 10.0), record("sam", 1, 12.0), record("lsam", 0, 8.0, 5.0), record("lsam", 1, 10.0, 5.0)]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(runs, "sam").splitlines()[2:]]
    table = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert table["sam"]["test error %"] == "11.00 ± 1.00"
    assert table["sam"]["against sam"] == ""
    # -2 of 11, and 2 / sqrt(1 + 1) standard errors of the difference
    assert table["lsam"]["test error %"] == "**9.00 ± 1.00**"
    assert table["lsam"]["against sam"] == "-18.2 % (1.4 s.e.)"
    assert table["lsam"]["seconds to the error of sam"] == "5.0"
    assert table["sam"]["seconds to the error of sam"] == "1 of 2 runs"
    assert table["lsam"]["settings"] == "lr 0.1, rho 0.05, period 4"


def test_the_overview_has_a_row_per_method_and_a_column_per_ranks_and_stragglers():
    runs = [record("sam", 0, 10.0), record("sam", 1, 12.0), record("lsam", 0, 8.0), record("lsam", 1, 10.0)]
    runs += [record("sam", 0, 10.0, stragglers="-1:3"), record("lsam", 0, 9.0, stragglers="-1:3")]
    assert overview(runs, "sam").splitlines() == [
        "**short**",
        "",
        "| test error % | 4 ranks | 4 ranks, -1:3 |",
        "| --- | --- | --- |",
        "| sam | 11.00 ± 1.00 | 10.00 |",
        "| lsam | **9.00 ± 1.00** (-1.4) | **9.00** |",  # -2 / sqrt(1 + 1); no error of one run
    ]


def test_curves_are_joined_where_all_runs_are():
    at, mean, error = band(
        [record("sam", 0, 1, curve=[(0, 10.0), (10, 0.0)]), record("sam", 1, 1, curve=[(2, 6.0), (12, 6.0)])], "epochs"
    )
    assert (at[0], at[-1]) == (2.0, 10.0)
    np.testing.assert_allclose(mean, [(8.0 + 6.0) / 2, 3.0])
    np.testing.assert_allclose(error, [1.0, 3.0])


def test_csv_and_figures(tmp_path):
    runs = [record(m, s, 10.0 + s, curve=[(1, 50.0), (2, 20.0)]) for m in ("sam", "lsam") for s in (0, 1)]
    write_runs(runs, tmp_path / "runs.csv")
    write_curves(runs, tmp_path / "curves.csv")
    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert [(row["method"], row["seed"], float(row["center_test_error"])) for row in rows] == [
        ("sam", "0", 10.0),
        ("sam", "1", 11.0),
        ("lsam", "0", 10.0),
        ("lsam", "1", 11.0),
    ]
    assert len(list(csv.DictReader((tmp_path / "curves.csv").open()))) == 8
    (figure,) = draw(runs, tmp_path)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_figure_for_each_kind_of_stragglers(tmp_path):
    kinds = ("none", "-1:3", "0:4,1:12")
    runs = [record("sam", 0, 10.0, curve=[(1, 50.0), (2, 20.0)], stragglers=slow) for slow in kinds]
    assert len(set(draw(runs, tmp_path))) == len(list(tmp_path.iterdir())) == 3
