"""`lsam wrap`: the environment of a script, its failures, and dry runs."""

import json
import re
import subprocess
import sys
import time

import pytest

from lsam_hpc.errors import InputError
from lsam_hpc.launch.scan import scan
from lsam_hpc.launch.wrap import main, parse
from tests.helpers.mpis import ROOT, available, environment, run

SCRIPTS = ROOT / "tests" / "launch" / "scripts"
SHAPE = "tests/launch/scripts/shape.py"


def python(*words):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment()
    )


def forked(*words):
    return run([next(iter(available().values())).forked, *words], timeout=120)


@pytest.mark.parametrize("words", [(), pytest.param(("0",), marks=pytest.mark.slow("as with 3")), ("3",), ("raise",)])
def test_a_script_sees_the_same_as_under_python(words):
    alone, ours = python(SHAPE, *words), python("-m", "lsam_hpc", "wrap", "--", SHAPE, *words)
    seen = [json.loads(done.stdout.splitlines()[0]) for done in (alone, ours)]
    seen[0].pop("threads"), seen[1].pop("threads")
    assert seen[1] == seen[0]
    assert ours.returncode == alone.returncode
    if words == ("raise",):
        assert ours.stderr.split("Traceback")[1].splitlines()[:5] == alone.stderr.split("Traceback")[1].splitlines()[:5]
        assert "lsam_hpc" not in ours.stderr
    if words == ():
        assert "never called hvd.DistributedOptimizer" in ours.stderr


@pytest.mark.parametrize("route", ["wrap", "drop-in"])
def test_one_failing_rank_ends_the_job(mpi, route, tmp_path):
    script = SCRIPTS / "fails.py"
    wrap = ["-m", "lsam_hpc", "wrap", "--out", str(tmp_path / "run"), "--", str(script)]
    words = wrap if route == "wrap" else [str(script), "--drop-in"]
    done = run(mpi.command(2, mpi.forked, *words), 60)
    ended = time.time()
    assert done.returncode != 0
    assert ended - float(re.search(r"failing at ([\d.]+)", done.stdout)[1]) < 40
    assert "RuntimeError: rank 1 on purpose" in done.stderr
    line = 1 + [text.strip()[:5] for text in script.read_text().splitlines()].index("raise")
    assert f'fails.py", line {line}' in done.stderr


def test_options_and_words():
    options, dry, script, words = parse(["--rho", "0.1", "--no-overlap", "--", "a.py", "--rho", "7", "--", "x"])
    assert (options, dry, script, words) == ({"rho": 0.1, "overlap": False}, False, "a.py", ["--rho", "7", "--", "x"])
    assert parse(["--dry-run", "a.py", "-n", "1"]) == ({}, True, "a.py", ["-n", "1"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rhoo", "0.1", "--", "a.py"], "--rhoo: expected a known option such as --rho, found an unknown one"),
        ([], "script: expected lsam wrap [options] -- script.py args..., found none"),
        (["--period", "x", "a.py"], "--period: invalid int value: 'x'"),
    ],
)
def test_bad_options(argv, message):
    with pytest.raises(InputError) as error:
        parse(argv)
    assert str(error.value) == message


def test_missing_and_invalid_scripts(tmp_path, capsys):
    with pytest.raises(InputError, match=r"expected a readable Python file, found none\.py"):
        main(["--dry-run", "none.py"])
    bad = tmp_path / "bad.py"
    bad.write_text("x = 1\nif:\n")
    with pytest.raises(InputError, match=r"bad.py: expected Python, found: invalid syntax in line 2"):
        main(["--dry-run", str(bad)])


def test_a_dry_run_names_the_lines():
    script = "tests/horovod/scripts/mnist.py"
    done = forked("-m", "lsam_hpc", "wrap", "--dry-run", "--rho", "0.1", "--", script)
    assert done.returncode == 0
    source = (ROOT / script).read_text().splitlines()
    lines = dict(re.findall(r"mnist\.py:(\d+): (\w+)", done.stdout))
    for number, word in lines.items():
        assert word in source[int(number) - 1] or word == "op"
    assert {"DistributedOptimizer", "broadcast_parameters"} <= {*re.findall(r": (\w+): LSAM's", done.stdout)}
    assert "options: rho 0.1" in done.stdout


@pytest.mark.parametrize(
    "source",
    [
        "import horovod.tensorflow as hvd",
        "import horovod.tensorflow.keras",
        "from horovod import mxnet",
        "from horovod.keras import callbacks",
    ],
)
def test_other_frameworks_are_refused(source, tmp_path):
    with pytest.raises(InputError, match="expected a PyTorch script"):
        scan(source)
    script = tmp_path / "script.py"
    script.write_text(source)
    done = forked("-m", "lsam_hpc", "wrap", "--", str(script))
    assert done.returncode == 2
    assert re.fullmatch(r"lsam wrap: horovod\.\S+: expected a PyTorch script .*line 1\)\n", done.stderr)


@pytest.mark.parametrize(
    "source",
    [
        "import horovod.torch as hvd; f = hvd.DistributedOptimizer",
        "from horovod import torch; f = torch.DistributedOptimizer",
        "from horovod.torch import DistributedOptimizer as f",
        "import horovod.torch.optimizer; f = horovod.torch.optimizer.DistributedOptimizer",
        "from horovod.torch.optimizer import DistributedOptimizer as f",
        "import importlib; f = importlib.import_module('horovod.torch').DistributedOptimizer",
    ],
)
def test_every_form_of_import_gets_the_replacement(source, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(source + "\nprint(f.__code__.co_filename)\n")
    done = forked("-m", "lsam_hpc", "wrap", "--", str(script))
    assert done.stdout.strip().endswith("lsam_hpc/horovod/factory.py"), done.stderr
