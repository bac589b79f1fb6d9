"""The script trials.py, on little data."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "jobs/experiments/trials.py"


@pytest.fixture
def trials(monkeypatch):
    spec = importlib.util.spec_from_file_location("trials", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "trials", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


@pytest.fixture
def small(trials, monkeypatch):
    for name, value in {"DATA": "digits", "VALIDATION": 300, "EPOCHS": 12.0, "RANKS": 3, "IMAGES": 8}.items():
        monkeypatch.setattr(trials, name, value)
    return trials


def test_a_predicted_center_moves_on_as_before(small):
    center, read = small.Predicted(torch.zeros(2)), torch.empty(2)
    center.add(torch.tensor([1.0, 2.0]))
    center.turn_of = 1
    center.read(read)
    assert read.tolist() == [2.0, 4.0]
    center.add(torch.tensor([1.0, 0.0]))
    center.read(read)
    assert read.tolist() == [3.0, 2.0]  # 2 (2, 2) - (1, 2)
    center.turn_of = 0
    center.read(read)
    assert read.tolist() == [4.0, 4.0]  # this chain's last read was the start


def test_a_pushed_chain_restarts_at_the_distance_on_its_side(small):
    center, read = small.Pushing(torch.tensor([3.0, 4.0]), distance=0.1), torch.empty(2)
    center.read(read)
    assert read.tolist() == [3.0, 4.0]
    center.turn_of = 2
    center.add(torch.tensor([0.0, -2.0]))
    center.read(read)
    torch.testing.assert_close(read, torch.tensor([3.0, 2.0 - 0.1 * 13**0.5]))


def test_the_quadratic_rule(trials):
    assert [trials.quadratic(0.5, factor) for factor in (1.0, 0.5, 0.25, 0.1, 0.0)] == [1, 1, 4, 16, 16]


@pytest.mark.slow("trains eight small networks")
def test_every_kind_of_trial_learns_and_takes_the_same_passes(small):
    kinds = {trial.name: trial for trial in small.TRIALS}
    total = 2 * 12 * 1047 / 24  # passes of each rank
    for name, passes_of_a_step in (
        ("data-parallel SAM", 2),
        ("the recipe", 1.25),
        ("no ascent", 1),
        ("period max(1, (0.5 / lr factor)^2)", 1.25),
        ("elastic, pull 0.5 that follows lr", 1.25),
        ("exchanges at once", 1.25),
        ("center predicted", 1.25),
        ("chains pushed away by 0.02 of the norm of y", 1.25),
    ):
        config = small.configure(kinds[name], 0, "")
        steps = config.steps / (1 if config.synchronous else 3)
        assert steps * passes_of_a_step == pytest.approx(total, rel=0.01)
        assert small.run(kinds[name], 0, "") < 40, name  # 90 by chance


def test_errors_are_one_line(trials, monkeypatch, capsys, tmp_path):
    def error_line(*words):
        assert trials.main([str(word) for word in words]) == 2
        line = capsys.readouterr().err
        assert line.startswith("trials.py: ")
        assert line.count("\n") == 1
        return line

    assert "data_dir" in error_line()
    assert "expected" in error_line(tmp_path)
    monkeypatch.setattr(trials, "DATA", "digits")
    monkeypatch.setattr(trials, "VALIDATION", 300)
    assert "no/out.csv" in error_line(tmp_path, tmp_path / "no/out.csv")
    assert "directory" in error_line(tmp_path, tmp_path)
