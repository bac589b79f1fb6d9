"""`lsam train --data text`: the table, the log and the landscape programs, against the saved center."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch

from lsam_hpc.cli import main
from lsam_hpc.landscape.states import state
from lsam_hpc.tools import source
from lsam_hpc.train.models import build
from lsam_hpc.trajectory import Run
from tests.helpers.mpis import run

CONTEXT = 32
WORDS = ("--data", "text", "--model", "gpt-tiny", "--context", str(CONTEXT), "--batch-size", "8")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(f"line {number}: {number**2} is the square of {number}\n" for number in range(250)))
    return path


def train(mpi, ranks, file, *words):
    command = mpi.command(ranks, mpi.forked, "-m", "lsam_hpc", "train", *WORDS, "--data-dir", str(file), *words)
    return run(command, 240)


def of_center(out, content):
    """The loss and the error of the saved center on the last tenth of the windows, one byte at a time."""
    model = build("gpt-tiny", "text", (CONTEXT,), 256).eval()
    model.load_state_dict(torch.load(out / "checkpoints" / "center.pt", weights_only=True))
    count = (len(content) - 1) // CONTEXT
    losses, wrong = [], []
    for at in range((count - count // 10) * CONTEXT, count * CONTEXT, CONTEXT):
        with torch.no_grad():
            logits = model(torch.tensor([list(content[at : at + CONTEXT])]))[0].double()
        for place in range(CONTEXT):
            following = content[at + place + 1]
            losses.append(-math.log(math.exp(logits[following, place]) / logits[:, place].exp().sum()))
            wrong.append(int(logits[:, place].argmax()) != following)
    return math.fsum(losses) / len(losses), 100 * sum(wrong) / len(wrong)


def test_the_table_and_the_log_have_the_perplexity_of_the_center(mpi, file, tmp_path, capsys):
    out = tmp_path / "run"
    words = "--steps 40 --optimizer adamw --lr 3e-3 --precision bf16 --curvature-every 15 --curvature-images 2"
    done = train(mpi, 2, file, *words.split(), "--out", str(out))
    assert done.returncode == 0, done.stderr
    loss, error = of_center(out, file.read_bytes())
    assert 2 < math.exp(loss) < 100  # 256 before the first step
    lines = done.stdout.splitlines()
    assert re.match(r"\s*train loss\s+test perplexity\s+steps", lines[0])
    assert float(lines[1].split()[2]) == pytest.approx(math.exp(loss), abs=1e-3)
    results = [Run(out).result(rank) for rank in (0, 1)]
    center = next(result for result in results if not math.isnan(result["center_test_error"]))
    assert center["center_test_perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    assert center["center_test_error"] == pytest.approx(error, abs=1e-6)
    assert all(2 < result["sample_test_perplexity"] < 100 for result in results)
    assert all(np.isfinite(Run(out).log(rank).table("curvature")["eigenvalue"]).all() for rank in (0, 1))
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    assert (
        f"test error {error:.2f} %, test perplexity {center['center_test_perplexity']:.3f}" in capsys.readouterr().out
    )
    assert main(["inspect", "--json", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["center"]["test_perplexity"] == center["center_test_perplexity"]
    # The landscape programs find the same loss and error at the center.
    parser = source.parser("sharpness", "")
    source.add_objective(parser, 0, split="test")
    f = source.objective(parser.parse_args([str(out)]), Run(out))
    value = f(state(Run(out), str(out / "checkpoints" / "center.pt")))
    assert (value.loss, value.error) == pytest.approx((loss, error), rel=1e-5)


def test_a_resumed_job_goes_on_with_the_next_mini_batch(mpi, file, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "resumed"
    words = ("--steps", "12", "--mode", "lockstep", "--checkpoint-every", "5", "--checkpoint-keep", "9")
    assert train(mpi, 1, file, *words, "--out", str(whole)).returncode == 0
    shutil.copytree(whole, out)
    for manifest in (out / "checkpoints").glob("*.json"):
        if json.loads(manifest.read_text())["step"] > 5:
            manifest.unlink()
    done = train(mpi, 1, file, *words, "--resume", "must", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "resuming from step 5 " in done.stderr
    ours, theirs = (torch.load(run / "checkpoints" / "center.pt", weights_only=True) for run in (out, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_simulated_order(file, tmp_path, capsys):
    out = tmp_path / "out.json"
    simulated = ["simulate", "--ranks", "2", "--period", "2", "--json", str(out), "--train"]
    assert (
        main([*simulated, *WORDS, "--data-dir", str(file), "--steps", "30", "--optimizer", "adamw", "--lr", "3e-3"])
        == 0
    )
    trained = json.loads(out.read_text())["trained"]
    assert trained["chains"] == 2
    assert trained["center_train_loss"] < 4.5  # log 256 = 5.5 before the first step


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--context 100000", r"lines.txt: expected at least 100001 bytes, with --context 100000, found \d+"),
        (
            "--model resnet18",
            "--model: expected one of gpt-tiny, gpt-small or MODULE:FUNCTION for windows of text, found resnet18",
        ),
        ("--cutout 3", "--cutout: expected 0 with text, found 3"),
        ("--data digits", "--model: expected one of mlp, .* for images, found gpt-tiny"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(file, tmp_path, words, message, capfd):
    out = tmp_path / "run"
    assert main(["train", *WORDS, "--data-dir", str(file), *words.split(), "--out", str(out)]) == 2
    error = capfd.readouterr().err.strip()
    assert re.fullmatch(f"lsam train: .*{message}", error)
    assert not out.exists()
