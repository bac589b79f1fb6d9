"""`lsam simulate`: its tables, machines, calibration and advice."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from lsam_hpc.cli import main
from lsam_hpc.errors import InputError
from lsam_hpc.simulate import machines
from lsam_hpc.simulate.advise import EFFICIENT, advise
from lsam_hpc.simulate.calibrate import MODEL, calibrate
from lsam_hpc.simulate.describe import Job, check

FAST = ("--ranks", "4", "--parameters", "1000", "--step", "0.1")


def test_a_table_and_its_assumptions(capsys, tmp_path):
    out = tmp_path / "out.json"
    assert main(["simulate", *FAST, "--straggler", "3:4", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "staleness: mean" in text
    assert "synchronous SAM" in text
    assert "rank 3 4 times longer" in text
    report = json.loads(out.read_text())
    own_rates = 3 * 10 + 2.5
    assert report["LSAM"]["own"] == pytest.approx(own_rates)
    assert report["LSAM"]["efficiency"] == pytest.approx(report["LSAM"]["rate"] / own_rates)
    # A million steps: no rank waits in LSAM, all wait for the slow one in synchronous SAM.
    assert report["synchronous SAM"]["rate"] == pytest.approx(4 / 0.4, rel=0.01)
    assert report["synchronous SAM"]["life"]["wall"] == pytest.approx(1e6 / 10, rel=0.01)


def test_shards_are_in_the_table(capsys, tmp_path):
    out = tmp_path / "out.json"
    assert main(["simulate", *FAST, "--group-size", "2", "--fully-shard", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "each rank holds a shard" in text
    assert re.search(r"bytes of an exchange +4 KB ", text)
    assert re.search(r"vectors that a rank holds +13 KB +4 KB", text)  # 6.5 / 2 models; 4 / 4 without exchanges
    assert re.search(r"bytes to the group per step +12 KB +18 KB", text)
    assert json.loads(out.read_text())["LSAM"]["rank_bytes"] == 13_000


def test_options_from_a_file_and_flags_before_it(capsys, tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text("ranks: 2\nparameters: 1000\nstep: 0.5\nperiod: 2\n")
    out = tmp_path / "out.json"
    assert main(["simulate", "--config", str(config), "--step", "0.25", "--json", str(out)]) == 0
    job = json.loads(out.read_text())["job"]
    assert (job["ranks"], job["period"], job["step"]) == (2, 2, 0.25)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--ranks", "0"], "ranks: expected a whole number >= 1, found 0"),
        (["--straggler", "x"], "--straggler: expected RANK:FACTOR, as in 3:4, found x"),
        (["--machine", "moon"], "--machine: expected one of juwels-booster, lumi-g, two-cores, or a file, found moon"),
        (["--calibrate", "none.json"], "none.json: expected a file written by lsam bench exchange --json, found"),
        (["--calibrate", "none"], "none: expected a run directory, found nothing"),
        (["--config", "none.yaml"], "--config: expected a readable file, found none.yaml"),
        (["--seconds", "0.001"], "seconds: expected at least one step"),
    ],
)
def test_bad_input_is_one_line(words, text, capsys):
    assert main(["simulate", *FAST, *words]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert len(error.splitlines()) == 1


def test_machines_have_notes_on_their_sources():
    assert machines.known() == ["juwels-booster", "lumi-g", "two-cores"]
    for name in machines.known():
        machine = machines.load(name)
        check(Job(4, 1000, 1.0), machine)
        assert machine.note
        assert machine.name == name


def test_a_machine_from_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("ranks_per_node: 2\ncores: 4\ncopy: 1e9\nmemory: 2e9\nnic: 1e9\nrank_rate: 1e9\nlatency: 1e-5\n")
    assert machines.load(str(file)).memory == 2e9
    file.write_text("cores: 4\n")
    with pytest.raises(InputError, match="found no ranks_per_node"):
        machines.load(str(file))
    file.write_text("cors: 4\n")
    with pytest.raises(InputError, match="cors: expected a known option such as cores"):
        machines.load(str(file))


def test_calibration_from_an_exchange_benchmark(tmp_path):
    file = tmp_path / "bench.json"
    rows = [
        {"": "memcpy", "alone ms": 7.0, "together ms": 8.0},
        {"": "read", "alone ms": 7.7, "together ms": 9.0},
        {"": "add", "alone ms": 6.3, "together ms": 9.0},
        {"": "training thread held up", "alone ms": "", "together ms": 12.0},
    ]
    file.write_text(json.dumps({"benchmark": "exchange", "machine": {"ranks": "2"}, "rows": rows}))
    job = Job(2, 1000, 0.1)
    same, measured, lines = calibrate(file, job, machines.load("two-cores"))
    assert same == job
    assert measured.copy == pytest.approx(MODEL / 7e-3)
    assert measured.memory == pytest.approx(2 * MODEL / 8e-3)
    assert (measured.read_factor, measured.add_factor, measured.held) == pytest.approx((1.1, 0.9, 1.5))
    assert lines
    file.write_text(json.dumps({"benchmark": "log", "machine": {}, "rows": []}))
    with pytest.raises(InputError, match="expected the benchmark exchange, found log"):
        calibrate(file, job, machines.load("two-cores"))


def test_calibration_from_the_logs_of_a_run(monkeypatch):
    class Log:
        """Steps of 0.1 s, of rank 1 of 0.4 s; an exchange of 12 ms that holds the training thread for 3 ms."""

        ranks, size = (0, 1), 1_000_000

        def __init__(self, path, partial):
            self.draw = np.random.default_rng(0)

        def steps(self, rank):
            lengths = (0.1, 0.4)[rank] * self.draw.lognormal(0, 0.2, 2000)
            return {"time": np.cumsum(lengths), "iteration": np.arange(2000)}

        def exchanges(self, rank):
            return {"seconds": np.full(50, 0.012), "blocked": np.full(50, 0.003)}

    monkeypatch.setattr("lsam_hpc.simulate.calibrate.Run", Log)
    machine = replace(machines.load("two-cores"), copy=4e9, read_factor=1.0, add_factor=1.0)
    from pathlib import Path

    job, measured, _ = calibrate(Path("RUN"), Job(4, 10, 1.0), machine)
    assert job.parameters == 1_000_000
    assert job.distribution == "lognormal"
    assert job.sigma == pytest.approx(0.2, rel=0.08)
    middle = 0.25  # of the two ranks
    assert job.step == pytest.approx(middle * math.exp(0.02), rel=0.03)
    assert job.factors == pytest.approx({0: 0.4, 1: 1.6}, rel=0.03)
    assert measured.arithmetic == pytest.approx(12 - 1 - 1)
    assert measured.held == pytest.approx(3.0)


def test_advice_is_the_smallest_efficient_period():
    machine = replace(machines.load("two-cores"), ranks_per_node=2)
    # Four steps of 0.1 s hide an exchange.
    advice = advise(Job(2, 1000, 0.1), machine)
    assert advice.job.period == 4
    assert advice.pull == pytest.approx(0.45)
    assert advice.result.efficiency >= EFFICIENT
    # Shards stay.
    advice = advise(Job(4, 1000, 0.1, group_size=2, fully_shard=True), machine)
    assert (advice.job.group_size, advice.job.fully_shard, advice.pull) == (2, True, pytest.approx(0.45))
    # A slow network between nodes: a longer period or less traffic, and smaller periods were not enough.
    slow = replace(machine, nic=1e8, rank_rate=1e8)
    advice = advise(Job(8, 11_000_000, 0.1), slow)
    assert advice.result.efficiency >= EFFICIENT
    assert (advice.job.period, advice.job.group_size, advice.job.wire_dtype) != (4, 1, "float32")
    for job, result in advice.tried:
        if (job.group_size, job.wire_dtype) == (advice.job.group_size, advice.job.wire_dtype):
            assert (result.efficiency >= EFFICIENT) == (job.period >= advice.job.period)


def test_advice_in_words(capsys, tmp_path):
    out = tmp_path / "advice.json"
    assert main(["simulate", *FAST, "--advise", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("--period 4 --wire-dtype float32 --pull 0.225\n")
    assert "of the ranks' own rates" in text
    assert json.loads(out.read_text())["pull"] == pytest.approx(0.225)
