"""Suites: their expansion to runs, and errors in their files."""

import dataclasses

import pytest
import yaml

from lsam_hpc.compare.suite import flags, snapshot_interval
from lsam_hpc.compare.suite_file import read_suite
from lsam_hpc.errors import InputError
from lsam_hpc.train.config import parse
from tests.helpers.mpis import ROOT

SUITE = {
    "train": {"data": "digits", "lr": 0.05},
    "images": 64,
    "ranks": [2, 4],
    "seeds": [0, 1, 2],
    "stragglers": ["none", "-1:3"],
    "budgets": {"short": {"epochs": 2}, "long": {"steps": 100}},
    "reference": "sam",
    "methods": {
        "sgd": {"synchronous": True, "rho": 0, "tune": {"lr": [0.1, 0.2, 0.3, 0.4]}},
        "sam": {"synchronous": True, "tune": {"lr": [0.1, 0.2], "rho": [0.05, 0.1]}},
        "lsam": {"period": 2, "tune": {"lr": [0.1, 0.2], "rho": [0.05, 0.1]}},
    },
    "tune": {"validation": 100, "budget": "short", "ranks": 2, "seeds": [7]},
}


def write(folder, suite):
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    return path


def test_a_suite_is_the_product_of_its_parts(tmp_path):
    suite = read_suite(write(tmp_path, SUITE))
    cells = list(suite.cells({"lsam": {"lr": 0.2, "rho": 0.1}}))
    assert len(cells) == 3 * 2 * 2 * 2 * 3
    assert len({cell.name for cell in cells}) == len(cells)
    cell = next(c for c in cells if c.method == "lsam" and c.ranks == 4 and c.budget == "long")
    # Priority: tuned, method's, budget's, then shared options; 64 images over 4 ranks.
    assert cell.options == {"data": "digits", "lr": 0.2, "rho": 0.1, "batch_size": 16, "steps": 100, "period": 2}
    trials = list(suite.trials())
    assert len(trials) == 3 * 4
    assert len({cell.name for cell in trials} | {cell.name for cell in cells}) == len(trials) + len(cells)
    assert {(c.budget, c.ranks, c.seed, c.stragglers, c.options["validation"]) for c in trials} == {
        ("short", 2, 7, "none", 100)
    }
    tried = [(c.options["lr"], c.options["rho"]) for c in trials if c.method == "sam"]
    assert tried == [(0.1, 0.05), (0.1, 0.1), (0.2, 0.05), (0.2, 0.1)]


def test_a_budget_can_count_the_steps_of_each_rank(tmp_path):
    suite = read_suite(write(tmp_path, {**SUITE, "budgets": {"short": {"local_steps": 50}}}))
    steps = {(cell.method, cell.ranks): cell.options["steps"] for cell in suite.cells({})}
    assert steps == {(m, r): 50 * (r if m == "lsam" else 1) for m in SUITE["methods"] for r in (2, 4)}
    for wrong in (0, "many"):
        with pytest.raises(
            InputError, match=f"budgets: short: local_steps: expected a whole number >= 1, found {wrong!r}"
        ):
            read_suite(write(tmp_path, {**SUITE, "budgets": {"short": {"local_steps": wrong}}}))


def test_flags_parse_to_the_options(tmp_path):
    for cell in read_suite(write(tmp_path, SUITE)).cells({}):
        config = dataclasses.asdict(parse(flags(cell.options)))
        assert {name: config[name] for name in cell.options} == dict(cell.options)


def test_the_snapshot_interval_gives_the_wanted_points():
    assert snapshot_interval(total=8000, chains=4, points=10, period=4) == 200
    assert snapshot_interval(total=80, chains=4, points=10, period=4) == 4  # no more than there are exchanges


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metods": {}}, "metods: expected a known option such as methods"),
        ({"train": {"data": "digits", "lrr": 1}}, "train: lrr: expected a known option such as lr"),
        ({"train": {"data": "digits", "seed": 1}}, "train: seed: expected a known option"),
        ({"train": {"data": "digits", "lr": "fast"}}, "train: lr: expected float, found 'fast'"),
        ({"train": {"data": "cifar10"}}, "--data-dir: expected the directory"),
        ({"ranks": [2, 2]}, "ranks: expected a list of different int"),
        ({"ranks": [3]}, "images: expected a multiple of the ranks, found 64 for 3"),
        ({"seeds": []}, "seeds: expected a list"),
        ({"points": 0}, "points: expected a whole number >= 1, found 0"),
        ({"budgets": {}}, "budgets: expected names"),
        ({"budgets": {"a/b": {}}}, "budgets: expected names of letters"),
        ({"reference": "adam"}, "reference: expected one of sgd, sam, lsam, found 'adam'"),
        ({"stragglers": ["7:2"]}, "--stragglers: expected"),
        (
            {"methods": {"sam": {"synchronous": True, "group_size": 2}}, "tune": None},
            "--group-size and --synchronous exclude each other",
        ),
        ({"methods": {"sam": {"rho": -1}}, "tune": None}, "--rho: expected a finite number"),
        ({"methods": {"sam": {"tune": {"lr": 0.1}}}}, "tune: expected lists of values"),
        ({"tune": None}, "tune: expected a table, as sgd is to be tuned, found none"),
        ({"tune": {"validation": 100, "seeds": [0]}}, "tune: seeds: expected seeds that no run has"),
        ({"tune": {"budget": "short"}}, "tune: expected budget, ranks, seeds, validation"),
        ({"tune": {"validation": 100, "budget": "huge"}}, "tune: expected a budget of the suite"),
    ],
)
def test_errors_are_one_line(tmp_path, changes, why):
    with pytest.raises(InputError) as caught:
        read_suite(write(tmp_path, {**SUITE, **changes}))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_method_is_tuned_with_as_many_runs(tmp_path):
    suite = {**SUITE, "methods": {**SUITE["methods"], "sam": {"tune": {"lr": [0.1, 0.2]}}}}
    with pytest.raises(InputError, match=r"as many settings for each method, found .*'sam': 2"):
        read_suite(write(tmp_path, suite))


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_experiments_are_suites(path):
    assert list(read_suite(path, "somewhere").cells({}))
