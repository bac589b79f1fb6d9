"""`lsam simulate --train` at the command line."""

import json

import pytest

from lsam_hpc.cli import main

FEW = ["simulate", "--ranks", "3", "--period", "2", "--distribution", "lognormal"]


def test_trains_in_the_simulated_order(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main([*FEW, "--json", str(out), "--train", "--steps", "90", "--batch-size", "16"]) == 0
    shown = capsys.readouterr().out
    trained = json.loads(out.read_text())["trained"]
    assert trained["chains"] == 3
    assert trained["steps_of_the_slowest"] <= 30 <= trained["steps_of_the_fastest"]
    assert 0 <= trained["center_test_error_%"] < 60  # chance is at 90
    # 90 steps of 0.1 s on three ranks, slightly longer with exchanges.
    assert 2.5 < trained["simulated_seconds"] < 6
    assert f"{trained['center_test_error_%']:.4g}" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", "--period", "3"], "--period: expected before --train, where it is simulated too, found after it"),
        (["--train", "--coupling=kernel"], "--coupling: expected before --train, where it is simulated too"),
        (["--train", "--recipe", "large-batch"], "--period 1: expected before --train too, where it is simulated"),
        (["--train", "--ascent", "gam"], "--ascent: expected one of one or two passes in a simulated order, found gam"),
        (["--train", "--topology", "gossip"], "--topology: expected center in a simulated order, found gossip"),
        (["--train", "--stepz", "3"], "--stepz: expected a known option"),
        (["--topology", "gossip", "--train"], "topology: expected center in a simulated order, found gossip"),
    ],
)
def test_bad_input(words, message, capsys):
    assert main([*FEW, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lsam simulate: {message}")
    assert error.count("\n") == 1
