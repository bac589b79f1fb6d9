"""Suites on a simulated machine: seconds by hand, equal seconds, and the choice of settings."""

import json

import pytest
import yaml

from lsam_hpc.cli import main
from lsam_hpc.compare.simulated import SimulatedRunner
from lsam_hpc.compare.suite_file import read_suite
from lsam_hpc.errors import InputError

STEP = 0.5  # seconds of two passes; exchanges and allreduces of 1,000 elements take microseconds
SUITE = {
    "train": {"data": "digits", "batch_size": 16, "rho": 0.1},
    "simulate": {"machine": "juwels-booster", "step": STEP, "parameters": 1000},
    "ranks": [4],
    "seeds": [0],
    "stragglers": ["none", "-1:3"],
    "points": 4,
    "curve_images": 200,
    "budgets": {"tiny": {"epochs": 2}},
    "equal_seconds": True,
    "reference": "sam",
    "tune": {"validation": 100, "seeds": [1000]},
    "methods": {
        "sam": {"synchronous": True, "tune": {"lr": [0.1, 0.0001]}},
        "late": {"synchronous": True, "rho_from": 0.5, "tune": {"lr": [0.0001, 0.1]}},
        "lsam": {"recipe": "large-batch", "rho_from": 0.0, "synchronous_start": 0.2, "tune": {"lr": [0.1, 0.0001]}},
    },
}


def runner(tmp_path, **changes):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({**SUITE, **changes}, sort_keys=False))
    return SimulatedRunner(read_suite(path), tmp_path / "out", lambda ranks: [], lambda name: None)


@pytest.mark.slow("trains 27 small networks")
def test_each_method_gets_the_seconds_of_the_reference_and_its_best_setting(tmp_path):
    run = runner(tmp_path)
    tuned = run.tuned()
    columns = [
        "tiny, stragglers none, 4 ranks",
        "tiny-seconds, stragglers none, 4 ranks",
        "tiny-seconds, stragglers -1:3, 4 ranks",
    ]
    assert tuned == {f"{column}: {method}": {"lr": 0.1} for column in columns for method in SUITE["methods"]}
    assert len(run.trials()) == 3 * 3 * 2
    records = {(r["cell"]["budget"], r["cell"]["stragglers"], r["cell"]["method"]): r for r in run.records(tuned)}
    assert len(records) == 9
    steps = -(-2 * 1347 // 64)  # of data-parallel SAM
    seconds = {key: record["result"]["seconds"] for key, record in records.items()}
    taken = {key: record["result"]["total_steps"] for key, record in records.items()}
    samples, equal, slow = [(column.split(", ")[0], column.split(" ")[2].rstrip(",")) for column in columns]
    # Equal samples: SAM takes two passes a step; late SAM one in the first half; LSAM four steps at a time.
    assert taken[(*samples, "sam")] == taken[(*samples, "late")] == steps
    assert seconds[(*samples, "sam")] == pytest.approx(steps * STEP, rel=1e-3)
    assert seconds[(*samples, "late")] == pytest.approx((steps / 2 + steps / 4) * STEP, rel=0.02)
    # Equal seconds, to less than a step; the slow rank delays all in SAM, and in LSAM's synchronous start.
    for column, factor in ((equal, 1), (slow, 3)):
        target = seconds[(*column, "sam")]
        assert taken[(*column, "sam")] == steps
        assert target == pytest.approx(factor * steps * STEP, rel=1e-3)
        for method in ("late", "lsam"):
            assert target - 2 * factor * STEP <= seconds[(*column, method)] <= target + 0.01 * STEP
    assert taken[(*equal, "late")] == pytest.approx(steps / 0.75, rel=0.05)
    assert taken[(*equal, "lsam")] == pytest.approx(4 * steps, rel=0.05)
    # With n steps in all, the start takes 3 * 0.2 n / 4 steps' time, the rest 0.8 n / (3 + 1/3).
    assert taken[(*slow, "lsam")] == pytest.approx(3 * steps / (0.15 + 0.24), rel=0.05)
    curve = records[(*equal, "lsam")]["curve"]
    assert len(curve) == 4
    assert [point["seconds"] for point in curve] == sorted(point["seconds"] for point in curve)
    assert curve[-1]["epochs"] == pytest.approx(2 * taken[(*equal, "lsam")] / (4 * steps), rel=0.05)
    assert all(record["result"]["center_test_error"] < 40 for record in records.values())  # 90 by chance


def test_pauses_come_as_often_as_in_a_real_job(tmp_path):
    """A pass in ten is followed by a pause of 2 s on average: 0.4 s a step of two passes, for one rank."""
    few = {"sam": {"synchronous": True}}
    run = runner(tmp_path, ranks=[1], stragglers=["pause:0.1:2"], methods=few, tune=None, budgets={"b": {"steps": 400}})
    record = next(iter(run.records({})))
    seconds, expected = record["result"]["seconds"], 400 * (STEP + 0.4)
    # Standard deviation of the sum of a Poisson number of exponential pauses: sqrt(2 * 80) * 2 s; 5 of them.
    assert abs(seconds - expected) < 5 * (2 * 80) ** 0.5 * 2
    assert seconds > 400 * STEP + 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"simulate": {"machine": "juwels-booster"}}, "simulate: expected machine, step and parameters"),
        ({"simulate": {"machine": "no-such", "step": 1, "parameters": 1}}, "--machine: expected one of"),
        ({"simulate": 3}, "simulate: expected machine, step and parameters, found 3"),
        ({"stragglers": ["spread:0.3"]}, "stragglers: expected no spread on a simulated machine, found spread:0.3"),
        ({"tune": {"validation": 100, "ranks": 4}}, "tune: expected seeds, validation, found"),
        ({"equal_seconds": False}, "stragglers: expected one of them at equal samples, which take the same steps"),
        ({"train": {"data": "digits", "ascent": "gam"}}, "--ascent: expected one of one or two passes in a simulated"),
        ({"train": {"data": "digits", "precision": "bf16"}}, "--precision: expected float32 in a simulated order"),
        ({"simulate": {"machine": "two-cores", "step": "x", "parameters": 1}}, "simulate: step: expected"),
    ],
)
def test_bad_input(tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        runner(tmp_path, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_writes_tables_and_curves(tmp_path, capsys):
    path = tmp_path / "suite.yaml"
    small = {"methods": {"sam": {"synchronous": True}}, "tune": None, "stragglers": ["none"], "equal_seconds": False}
    path.write_text(yaml.safe_dump({**SUITE, **small}))
    assert main(["bench", "compare", "--suite", str(path), "--out", str(tmp_path / "o")]) == 0
    assert "| sam |" in capsys.readouterr().out
    assert json.loads((tmp_path / "o" / "tuned.json").read_text()) == {}
    assert (tmp_path / "o" / "tiny-np4.png").exists()
