"""Model and data of the landscape programs: `--model` and `--data` mean what they mean in `lsam train`."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.cli import VERBS, main
from lsam_hpc.tools import source
from lsam_hpc.train import data
from lsam_hpc.train.models import build
from lsam_hpc.trajectory import Run, TrajectoryWriter
from tests.helpers.logs import attributes, step_row
from tests.helpers.mpis import ROOT

MODULE = """
from pathlib import Path
import numpy as np
import torch
from torch import nn

def load(directory):
    assert directory is None or isinstance(directory, Path)
    random = np.random.default_rng(0)
    x, y = random.standard_normal((40, 1, 2, 2)).astype(np.float32), np.arange(40) % 3
    return x[:30], y[:30], x[30:], y[30:]

def network(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))

def with_defaults(shape=(1, 2, 2), classes=3):
    return network(shape, classes)

def model():
    return network((1, 2, 2), 3)

def batches():
    return [(torch.ones(2, 1, 2, 2), torch.tensor([0, 1])), (torch.zeros(1, 1, 2, 2), torch.tensor([2]))]
"""
LAYOUT = [("1.weight", (3, 4)), ("1.bias", (3,))]


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A run whose options name no data set and no model."""
    (tmp_path / "my_source.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_source", raising=False)
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text("{}")
    with TrajectoryWriter(path, 0, LAYOUT, attributes(1)) as writer:
        writer.step(**step_row(0))
    return path


def objective(path, *words):
    parser = source.parser("path", "")
    source.add_objective(parser)
    return source.objective(parser.parse_args([str(path), *words]), Run(path))


def test_model_and_data_are_those_of_lsam_train(path):
    f = objective(path, "--data", "my_source:load", "--model", "my_source:network")
    dataset = data.load("my_source:load", None)
    assert torch.equal(f.batches[0][0], dataset.train_x[:])
    assert torch.equal(f.batches[0][1], dataset.train_y)
    x = torch.arange(15.0) / 15
    network = build("my_source:network", "my_source:load", (1, 2, 2), 3)
    torch.nn.utils.vector_to_parameters(x, network.parameters())
    expected = torch.nn.functional.cross_entropy(network(dataset.train_x[:]), dataset.train_y).item()
    assert f(x).loss == pytest.approx(expected)
    assert objective(path, "--data", "my_source:load", "--model", "my_source:with_defaults").layout == LAYOUT
    (path / "config.json").write_text(json.dumps({"subset": 12, "validation": 6}))
    assert objective(path, "--data", "my_source:load", "--model", "my_source:network").samples == 12
    assert (
        objective(path, "--data", "my_source:load", "--make-model", "my_source:model", "--split", "test").samples == 6
    )


def test_functions_without_arguments_make_any_model_and_data(path):
    f = objective(path, "--make-batches", "my_source:batches", "--make-model", "my_source:model")
    assert [len(y) for _, y in f.batches] == [2, 1]
    assert f(torch.zeros(15)).loss == pytest.approx(np.log(3))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--data", "my_source:batches"),
            "--data: expected a function of the directory of the files, as in lsam train, found my_source:batches "
            "without arguments: name it in --make-batches",
        ),
        (
            ("--data", "my_source:load", "--model", "my_source:model"),
            "--model: expected a function of shape and classes, as in lsam train, found my_source:model without "
            "arguments: name it in --make-model",
        ),
        (
            ("--data", "my_source:load", "--model", "bert"),
            "--model: expected one of mlp, cnn, .* or MODULE:FUNCTION, fo",
        ),
        (("--data", "imagenet"), "--data: expected one of digits, mnist, .* or MODULE:FUNCTION, found 'imagenet'"),
        (
            (),
            "--data: expected a data set of lsam train, or one in --make-batches, found none, and none in the run's o",
        ),
        (
            ("--make-batches", "my_source:batches"),
            "--make-model: expected MODULE:FUNCTION with --make-batches, which does not tell the number of classes, fo",
        ),
        (
            ("--make-batches", "my_source:batches", "--model", "cnn"),
            "--make-model: expected MODULE:FUNCTION with --make-",
        ),
        (("--make-batches", "my_source:batches", "--data", "digits"), "--make-batches excludes --data"),
        (("--make-model", "my_source:model", "--model", "cnn"), "--make-model excludes --model"),
        (
            ("--data", "my_source:load", "--make-model", "builtins:dict"),
            "--make-model: expected an nn.Module from builtins:dict, found dict",
        ),
        (
            ("--data", "my_source:load", "--make-model", "my_source:network"),
            "--make-model: expected my_source:network to return, found TypeError: network",
        ),
    ],
)
def test_bad_input(path, words, line):
    with pytest.raises(InputError, match=line):
        objective(path, *words)


def test_from_is_a_share_of_the_run_in_every_verb(path, capsys):
    assert main(["trajectory", str(path), "--from", "sketches"]) == 2
    expected = "lsam trajectory: --from: expected --source sketches, found --from sketches\n"
    assert capsys.readouterr().err == expected
    code = (
        "from lsam_hpc.cli import VERBS, main\nfor verb in VERBS:\n try: main([verb, '-h'])\n except SystemExit: pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=ROOT, check=True
    )
    helps = dict(zip(VERBS, done.stdout.split("usage: ")[1:], strict=True))
    assert [verb for verb, text in helps.items() if re.search(r"^  --from ", text, re.MULTILINE)] == [
        "predict",
        "diagnose",
    ]
