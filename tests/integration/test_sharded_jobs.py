"""`lsam train --shard fsdp2`: the same training as with whole models, resumed by any number of ranks per chain."""

import json
import shutil

import numpy as np
import pytest
import torch

from lsam_hpc.trajectory import Run, verify
from tests.helpers.mpis import run

EVERY = ["--lr-schedule", "constant", "--warmup", "0", "--snapshot-every", "20"]
LOCKSTEP = [*EVERY, "--mode", "lockstep"]
LAYOUTS = {"4x1": (4, 1), "1x4": (4, 4), "whole": (1, 0)}  # ranks, ranks of a chain


def train(mpi, ranks, *words, code=0):
    done = run(mpi.command(ranks, mpi.forked, "-m", "lsam_hpc", "train", "--batch-size", "8", *words), 240)
    assert done.returncode == code, done.stderr
    return done


def sharded(parts):
    return ["--shard", "fsdp2", "--group-size", str(parts)] if parts else []


def center(folder):
    return torch.load(folder / "checkpoints" / "center.pt", weights_only=True)


def distance(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.parametrize("model", ["mlp", "cnn-tiny"])
def test_one_sharded_chain_is_data_parallel_sam(mpi, model, tmp_path):
    # cnn-tiny: its BatchNorm statistics are those of each rank, as without shards.
    common = ["--synchronous", "--steps", "60", "--model", model, "--lr", "0.05", "--snapshot-every", "20"]
    train(mpi, 2, *common, "--group-ascent", "averaged", "--reduce", "mpi", "--out", str(tmp_path / "whole"))
    done = train(mpi, 2, *common, "--shard", "fsdp2", "--out", str(tmp_path / "sharded"))
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:3]][1] == ["chain", "0"]
    weights = [
        {k: v for k, v in center(tmp_path / name).items() if "running" not in k and "num_batches" not in k}
        for name in ("sharded", "whole")
    ]
    assert distance(*weights) < 2e-5
    ours, whole = Run(tmp_path / "sharded"), Run(tmp_path / "whole")
    assert (ours.ranks, whole.ranks) == ([0], [0, 1])
    for name in ("grad_norm", "perturbation_norm", "lr", "rho"):
        np.testing.assert_allclose(ours.steps(0)[name], whole.steps(0)[name], rtol=1e-3, atol=1e-6)
    # The chain's loss is the mean of its ranks'.
    losses = np.mean([whole.steps(rank)["loss"] for rank in (0, 1)], axis=0)
    np.testing.assert_allclose(ours.steps(0)["loss"], losses, rtol=1e-3)
    np.testing.assert_allclose(ours.snapshot(0, -1), whole.snapshot(0, -1), atol=2e-5)


def test_a_resumed_sharded_job_is_the_straight_one(mpi, tmp_path):
    for name in ("straight", "resumed"):
        out = ["--out", str(tmp_path / name)]
        if name == "resumed":
            train(mpi, 4, *sharded(2), *LOCKSTEP, "--steps", "40", *out)
            refused = [*LOCKSTEP, "--steps", "80", *out, "--resume", "must"]
            line = "lsam train: --resume: expected 2 chains in lockstep, as in the checkpoint, found 4"
            assert line in train(mpi, 4, *sharded(1), *refused, code=2).stderr.splitlines()
            out += ["--resume", "must"]
        train(mpi, 4, *sharded(2), *LOCKSTEP, "--steps", "80", *out)
    assert distance(center(tmp_path / "resumed"), center(tmp_path / "straight")) == 0
    runs = [Run(tmp_path / name) for name in ("resumed", "straight")]
    for rank in (0, 1):
        sketch = runs[0].sketcher(runs[0].snapshot(rank, -1, "center"))
        np.testing.assert_allclose(runs[0].log(rank).values("sketch/center")[1][-1], sketch, atol=1e-5)
        for table in ("snapshot/sample", "sketch/center"):
            # A job shows its last state too, so that an iteration may have two rows.
            first = [
                dict(reversed([*zip(rows["iteration"], values, strict=True)]))
                for rows, values in (r.log(rank).values(table) for r in runs)
            ]
            assert first[0].keys() == first[1].keys()
            for iteration, values in first[0].items():
                np.testing.assert_array_equal(values, first[1][iteration])


def test_a_sharded_job_resumes_in_every_layout(mpi, tmp_path):
    first = tmp_path / "first"
    train(mpi, 4, *sharded(2), *EVERY, "--steps", "40", "--out", str(first))
    for name, (ranks, parts) in LAYOUTS.items():
        out = tmp_path / name
        shutil.copytree(first, out)
        again = [*sharded(parts), *EVERY, "--resume", "must", "--out", str(out)]
        # Without a further step: the center and the first chain's sample are those that were saved.
        train(mpi, ranks, *again, "--steps", "40")
        assert distance(center(out), center(first)) == 0
        np.testing.assert_array_equal(Run(out).snapshot(0, -1), Run(first).snapshot(0, -1))
        train(mpi, ranks, *again, "--steps", "80")
        logs = Run(out)
        assert verify(logs) == []
        assert logs.ranks == list(range(ranks // max(parts, 1)))
        numbers = np.concatenate([logs.steps(rank)["total_iteration"] for rank in logs.ranks])
        assert len(set(numbers)) == len(numbers)
        assert {*range(42, 80)} <= {*numbers}  # each chain has claimed a step after the last one
        assert 0 < distance(center(out), center(first)) < 1


def test_a_synchronous_start_resumes_in_every_layout(mpi, tmp_path):
    start = [*EVERY, "--synchronous-start", "1", "--group-ascent", "averaged", "--steps", "80"]
    straight = tmp_path / "straight"
    train(mpi, 4, *sharded(2), *start, "--checkpoint-every", "40", "--out", str(straight))
    for name, (ranks, parts) in {"2x2": (4, 2), "4x1": (4, 1), "1x4": (4, 4)}.items():
        out, chains = tmp_path / name, ranks // parts
        shutil.copytree(straight, out)
        for file in (out / "checkpoints").glob("*80.*"):
            file.unlink()
        train(mpi, ranks, *sharded(parts), *start, "--resume", "must", "--out", str(out))
        run = Run(out)
        assert run.ranks == list(range(chains))
        norms = []
        for chain in run.ranks:
            rows = run.steps(chain)
            resumed = rows["total_iteration"] >= 40
            assert [*rows["total_iteration"][resumed]] == [*range(40, 80, chains)]
            norms.append([*rows["grad_norm"][resumed]])
        # All chains take each step together, with the same averaged gradient in the ascent too.
        assert all(each == norms[0] for each in norms)
    assert distance(center(tmp_path / "2x2"), center(straight)) == 0


def test_what_shards_exclude_is_named_in_one_line(mpi, tmp_path):
    whole = tmp_path / "whole"
    train(mpi, 2, "--steps", "8", "--out", str(whole))
    cases = [
        ("--group-size: expected a divisor of the 2 ranks, found 3", ["--group-size", "3"]),
        ("--optimizer: expected sgd or adamw with --shard fsdp2, found tvlars", ["--optimizer", "tvlars"]),
        ("--channels-last: expected none with --shard fsdp2, found True", ["--channels-last"]),
        ("--shard: expected none, as in the checkpoint, found fsdp2", ["--resume", "must", "--out", str(whole)]),
    ]
    for message, words in cases:
        out = [] if "--out" in words else ["--out", str(tmp_path / "run")]
        command = mpi.command(2, mpi.forked, "-m", "lsam_hpc", "train", "--shard", "fsdp2", *words, *out)
        done = run(command, 120)
        assert done.returncode == 2
        assert done.stderr.splitlines()[0] == f"lsam train: {message}"
        assert not (tmp_path / "run").exists()
    assert json.loads((whole / "config.json").read_text())["shard"] == "none"
