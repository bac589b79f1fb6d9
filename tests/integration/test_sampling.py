"""The recipe of docs/tutorials/sampling.md for chains that are samples."""

import json
import re
import shlex

import pytest

from tests.helpers.mpis import ROOT, run


@pytest.mark.slow("a minute of training")
def test_the_recipe_s_chains_are_samples(openmpi, tmp_path):
    page = (ROOT / "docs" / "tutorials" / "sampling.md").read_text()
    recipe = re.search(r"## Train, then sample.*?```bash\n(.*?)```", page, re.DOTALL)[1]
    trains, samples, diagnoses = (shlex.split(line.replace("runs/", f"{tmp_path}/")) for line in recipe.splitlines())
    for words in (trains, samples):
        assert words[:4] == ["mpirun", "-n", "2", "lsam"]
        done = run(openmpi.command(2, openmpi.forked, "-m", "lsam_hpc", *words[4:]), 240)
        assert done.returncode == 0, done.stderr
    done = run([openmpi.python, "-m", "lsam_hpc", *diagnoses[1:], "--json"], 120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["samples"] is True, done.stdout  # of exact samples, R-hat exceeds 1.01 in about 1 of 1,000 runs
    # The loss hardly curves at T = 1e-4, so that the kernel alone gives the distribution: an AR(1) process of
    # phi = 1 - lr lambda = 0.8 in each parameter. Its autocorrelation time, over draws 4 steps apart:
    phi = 0.8**4
    tau = 4 * (1 + phi) / (1 - phi)
    for i in (1, 2, 3):
        # Relative standard error sqrt(8 tau / N) = 7 %; allow 4 of them.
        assert result["quantities"][f"component {i}"]["tau_steps"] == pytest.approx(tau, rel=0.28)
    ratio = next(check["value"] for check in result["verdicts"] if check["name"] == "temperature")
    assert ratio == pytest.approx((1 - 0.2 / 2) ** -0.5, rel=0.02)
