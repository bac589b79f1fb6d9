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


def test_deltas_count_by_their_age(trials):
    center = trials.ByAge(torch.zeros(2))
    read = torch.empty(2)
    for center.turn_of in (0, 1):
        center.read(read)
    center.turn_of = 0
    center.add(torch.tensor([1.0, 0.0]))  # staleness 0: times four
    center.turn_of = 1
    center.add(torch.tensor([0.0, 1.0]))  # staleness 1: times two
    assert center.vector.tolist() == [4.0, 2.0]


def test_every_kind_of_trial_learns(trials, monkeypatch):
    for name, value in {"DATA": "digits", "SUBSET": 1000, "EPOCHS": 20}.items():
        monkeypatch.setattr(trials, name, value)
    kinds = (
        "SAM",
        "nothing turned",
        "synchronous for the first 30 %",
        "average of the last quarter's centers",
        "a slow chain, restart, deltas over their staleness",
        "pull from 0.05 to 0.6",
    )
    for trial in trials.TRIALS:
        if trial.name in kinds:
            assert trials.run(trial, 0, "") < 40, trial.name  # 90 by chance


@pytest.mark.parametrize("before", [0, 2])
def test_chains_have_their_own_radius_and_the_momentum_so_far(trials, monkeypatch, before):
    monkeypatch.setattr(trials, "DATA", "digits")
    monkeypatch.setattr(trials, "SUBSET", 1000)
    config = trials.configure(trials.TRIALS[1], 0, "")
    dataset = trials.make_dataset(config)
    model = trials.make_model(config, dataset)
    base = trials.make_base(config, model)
    sam = trials.SAM(base, rho=trials.RADIUS)
    images = trials.Batches(dataset.train_x, dataset.train_y, trials.IMAGES, 0)
    for step in range(before):
        trials.one_step(sam, model, images, config, step=step, total=100)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    chains = list(trials.make_chains(config, dataset, model, base, center=trials.LocalCenter(start), pull=0.2))
    assert len(chains) == trials.CHAINS
    for opt, replica, _ in chains:
        assert [group["rho"] for group in opt.param_groups] == [config.rho] != [trials.RADIUS]
        assert torch.equal(torch.nn.utils.parameters_to_vector(replica.parameters()), start)
        for p, replica_p in zip(model.parameters(), replica.parameters(), strict=True):
            assert ("momentum_buffer" in opt.state[replica_p]) == (before > 0)
            if before:
                assert torch.equal(opt.state[replica_p]["momentum_buffer"], base.state[p]["momentum_buffer"])


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
    monkeypatch.setattr(trials, "SUBSET", 1000)
    assert "no/out.csv" in error_line(tmp_path, tmp_path / "no/out.csv")
    assert "directory" in error_line(tmp_path, tmp_path)
