"""Batch scripts: jobs/ holds what the templates render, options reach the script, and the scripts run."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lsam_hpc import InputError
from lsam_hpc.launch import submit
from lsam_hpc.launch.templates import SYSTEMS, render
from lsam_hpc.launch.templates_shapes import SHAPES, shapes
from lsam_hpc.train import config
from lsam_hpc.util import preflight
from tests.helpers.mpis import ROOT

SCRIPTS = [(system, name) for system in SYSTEMS for name in shapes(system)]


@pytest.mark.parametrize(("system", "name"), SCRIPTS)
def test_the_scripts_in_jobs_are_the_rendered_ones(system: str, name: str) -> None:
    """If this fails, run python -m lsam_hpc.launch.templates_shapes jobs and check the differences."""
    path = ROOT / "jobs" / system / f"{name}.sh"
    assert path.read_text() == render(SHAPES[name], system, f"jobs/{system}/{name}.sh")
    assert os.access(path, os.X_OK)


def test_there_are_no_other_scripts() -> None:
    scripts = {(file.parent.name, file.stem) for file in (ROOT / "jobs").glob("*/*.sh") if file.parent.name in SYSTEMS}
    assert scripts == set(SCRIPTS)


@pytest.mark.parametrize(("system", "name"), SCRIPTS)
def test_every_script_is_shell_with_one_marked_block_on_top(system: str, name: str) -> None:
    text = render(SHAPES[name], system)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=30)
    head, rest = text.split("# >>> edit from here >>>\n")
    block, body = rest.split("# <<< to here <<<\n")
    assert all(line.startswith("#") for line in head.splitlines())
    directive = {"slurm": "#SBATCH", "pbs": "#PBS", "lsf": "#BSUB", "flux": "#flux:"}[system]
    assert directive in block
    assert directive not in body
    first = next(i for i, line in enumerate(block.splitlines()) if line and not line.startswith("#"))
    assert not any(
        line.startswith(directive) for line in block.splitlines()[first:]
    )  # schedulers stop reading directives at the first command


def dry(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert submit.main(["--dry-run", *words]) == 0
    return capsys.readouterr().out


def test_options_reach_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    text = dry(
        capsys,
        "--system",
        "slurm",
        "--nodes",
        "3",
        "--gpus-per-node",
        "4",
        "--time",
        "12:00:00",
        "--partition",
        "gpu",
        "--account",
        "p-1",
        "--requeue",
        "7",
        "--warn",
        "90",
        "--directives=--constraint=a100\n--exclusive",
        "--environment",
        "FI_PROVIDER=cxi\nX=a b;c",
        "--launch",
        "srun --mpi=pmi2 --label",
        "--",
        "lsam",
        "train",
        "--lr",
        "1",
    )
    for line in (
        "--nodes=3",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--time=12:00:00",
        "--partition=gpu",
        "--account=p-1",
        "--signal=B:USR1@90",
        "--requeue",
        "--constraint=a100",
        "--exclusive",
    ):
        assert re.search(rf"(?m)^#SBATCH {re.escape(line)}( |$)", text), line
    for line in (
        "export FI_PROVIDER=cxi",
        "export X='a b;c'",
        "launch=(srun --mpi=pmi2 --label)",
        'command=(lsam train --lr 1 --out "$out" --resume auto)',
    ):
        assert line in text.splitlines()
    assert re.search(r"(?m)^requeues=7 ", text)


@pytest.mark.parametrize(
    ("system", "words", "lines"),
    [
        ("slurm", "--time 1-00:00:00 --partition a,b", ["SBATCH --time=1-00:00:00", "SBATCH --partition=a,b"]),
        ("pbs", "--time 1-02:00:00", ["PBS -l walltime=26:00:00"]),
        ("lsf", "--time 1-02:30:00 --partition a,b", ["BSUB -W 26:30", 'BSUB -q "a b"']),
        ("slurm", "--qos long --mem 0", ["SBATCH --qos=long", "SBATCH --mem=0"]),
        ("slurm", "--constraint gpu --exclusive", ["SBATCH --constraint=gpu", "SBATCH --exclusive"]),
        ("slurm", "--constraint gpu&hbm80g", ['SBATCH --constraint="gpu&hbm80g"']),
        ("slurm", "--gpus=--gres=gpu:4 --gpus-per-node 4", ["SBATCH --gres=gpu:4", "SBATCH --ntasks-per-node=4"]),
        (
            "pbs",
            "--select system=x:mpiprocs=4 --exclusive",
            ["PBS -l select=1:system=x:mpiprocs=4", "PBS -l place=scatter:excl"],
        ),
        ("pbs", "--select= --mem 64gb --launch mpiexec", ["PBS -l select=1:mem=64gb"]),
        ("pbs", "--filesystems home:eagle", ["PBS -l filesystems=home:eagle"]),
        ("slurm", "--uenv prgenv-gnu/24.11:v2 --view default", ["SBATCH --uenv=prgenv-gnu/24.11:v2"]),
        ("pbs", "--mem 64gb", ["PBS -l select=1:ncpus=16:mpiprocs=4:mem=64gb"]),
        ("lsf", "--exclusive", ["BSUB -x"]),
    ],
)
def test_options_of_a_system(capsys: pytest.CaptureFixture[str], system: str, words: str, lines: list[str]) -> None:
    text = dry(capsys, "--system", system, *words.split(), "--", "lsam", "train")
    for line in lines:
        assert re.search(rf"(?m)^#{re.escape(line)}( |$)", text), text

    assert "gpu-bind" not in text or "--gpus" not in words


def test_cray_mpich_is_started_by_plain_srun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = "MPI VERSION    : CRAY MPICH version 8.1.30.8 (ANL base 3.4a2)\nMPI BUILD INFO : Mon Jun 17 2024\n"
    monkeypatch.setattr("lsam_hpc.util.preflight.library_version", lambda: version)
    assert "launch=(srun --cpu-bind=cores)" in dry(capsys, "--system", "slurm", "--", "lsam", "train")
    words = ("--nodes", "2", "--cpus-per-rank", "8", "--select", "system=polaris")
    text = dry(capsys, "--system", "pbs", *words, "--", "lsam", "train")
    assert "launch=(mpiexec -n 8 --ppn 4 --depth 8 --cpu-bind depth)" in text
    with pytest.raises(preflight.StartError, match=r"Cray MPICH: start it by plain srun, or by mpiexec under PBS$"):
        preflight.check_world(1, version, {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0"})


@pytest.mark.parametrize("cores", [None, "8"])
def test_cpus_per_task_may_be_removed(capsys: pytest.CaptureFixture[str], cores: str | None) -> None:
    program = "echo ${OMP_NUM_THREADS-unset} ${SRUN_CPUS_PER_TASK-unset}"
    text = dry(capsys, "--system=slurm", "--setup=:", "--launch=sh -c", "--", program)
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    env |= {"SLURM_JOB_ID": "7"} if cores is None else {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": cores}
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, timeout=30, env=env)
    assert done.stdout == ("unset unset\n" if cores is None else "8 8\n")


def test_this_python_and_its_mpi_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; from lsam_hpc.launch.submit import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "--dry-run", "--system", "slurm", "--", "lsam", "train"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )
    from mpi4py import MPI  # tests/conftest.py prevents its start

    flag = {"Open MPI": "pmix"}.get(MPI.get_vendor()[0], "pmi2")
    assert f"launch=(srun --mpi={flag} --cpu-bind=cores)" in done.stdout
    assert f"export PATH={Path(sys.executable).parent}:$PATH" in done.stdout


NASTY = ["a b", "$(touch /tmp/lsam-no)", "`x`", "'", '"', "\\", "#", "*", "!", "\n", ";rm", "", "é"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_words_of_the_command_are_quoted(capsys: pytest.CaptureFixture[str], system: str) -> None:
    text = dry(capsys, "--system", system, "--", "printf", "%s\\0", *NASTY)
    assert all(line.startswith("#") for line in text.split("# >>> edit")[0].splitlines())
    printf = next(i for i, line in enumerate(text.splitlines()) if line.startswith("command=("))
    command = "\n".join(text.splitlines()[printf:]).split("\nrequeues=")[0]
    done = subprocess.run(["bash", "-c", command + '\n"${command[@]}"'], capture_output=True, text=True, timeout=30)
    assert done.stdout.split("\0")[:-1] == NASTY


@pytest.mark.parametrize(
    ("disk", "folder"),
    [
        ("/mnt/bb/$USER", "/mnt/bb/me & you"),
        ("/a b/${USER}s/$USER_", "/a b/me & yous/under"),
        ("$TMPDIR/x", "/scratch/$(touch lsam-no)/x"),  # what a variable holds is text
        *((f"/{text}", f"/{text}") for text in NASTY if "\n" not in text),
        *((f"/{text}", f"/{text}") for text in ("${USER:-x}", "$1", "${", "$", "~", "$((1))", "x}", "*")),
        ("/\\$USER'$USER\"", "/\\me & you'me & you\""),
    ],
)
def test_the_job_expands_variables_of_the_disk(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, disk: str, folder: str
) -> None:
    """And nothing else: no command is run, no pattern is matched."""
    text = dry(capsys, "--system=slurm", "--setup=:", "--pack=e.tar", f"--disk={disk}", "--", "true")
    log = f'printf "%s\\n" "$@" >> {tmp_path}/calls'
    env = programs(tmp_path, sbcast=log, srun="true") | {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1"}
    env |= {"USER": "me & you", "USER_": "under", "TMPDIR": "/scratch/$(touch lsam-no)"}
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, timeout=30, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text() == f"--force\ne.tar\n{folder}/lsam-7.tar\n"
    assert {path.name for path in tmp_path.iterdir()} == {"calls", "sbcast", "srun"}


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "HERE: parameter null or not set"), ("x", "--disk: expected an absolute path, found x")],
)
def test_a_disk_that_the_job_cannot_find(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, value: str | None, message: str
) -> None:
    text = dry(capsys, "--system=slurm", "--setup=:", "--pack=e.tar", "--disk=$HERE", "--", "touch", "ran")
    env = programs(tmp_path, sbcast="true", srun="true") | {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1"}
    env |= {} if value is None else {"HERE": value}
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, timeout=30, cwd=tmp_path, env=env)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "ran").exists()


def test_the_out_option_of_a_training_command_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--out=runs/x y", "--resume", "must"], ["--resume", "must", "--out", "runs/x y"]):
        lines = dry(capsys, "--system", "pbs", "--", "python", "-m", "lsam_hpc", "train", *words).splitlines()
        assert "out='runs/x y'" in lines  # the script asks this directory whether the run is finished
        assert 'command=(python -m lsam_hpc train --resume must --out "$out")' in lines


def test_the_chains_of_chain_per_node_are_the_ranks_of_a_node() -> None:
    job = SHAPES["chain-per-node"]
    options = config.parse(shlex.split(job.command)[2:])
    assert (options.shard, options.parts) == ("fsdp2", job.ranks_per_node)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("lsam train --shard fsdp2 --group-size 4", ""),
        ("lsam train --group-size=2", ""),
        ("lsam train --group-size 3 --group-size 1", ""),
        ("lsam train --group-size 8", "chains span nodes of 4 ranks"),
        ("python -m lsam_hpc train --group-size=6", "chains span nodes of 4 ranks"),
        ("lsam wrap --group-size 5 -- train.py", ""),
    ],
)
def test_chains_that_span_nodes_are_hinted_at(capsys: pytest.CaptureFixture[str], words: str, hint: str) -> None:
    assert submit.main(["--dry-run", "--system=slurm", "--nodes=6", "--", *words.split()]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "--group-size" in line]
    assert len(lines) == bool(hint)
    assert all(hint in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--node", "2", "--", "x"], r"--node: expected a known option such as --nodes, found an unknown one"),
        (["--nodes", "two", "--", "x"], r"--nodes: invalid int value: 'two'"),
        (["--nodes", "0", "--", "x"], r"--nodes: expected 1 or more, found 0"),
        (["--time", "1h", "--", "x"], r"--time: expected \[days-\]hours:minutes:seconds, found '1h'"),
        (["--time", "00:10:00", "--", "x"], r"--warn: expected less than half of --time, 300 s, found 300$"),
        (["--partition", "a,,b", "--", "x"], r"--partition: expected letters"),
        (["--system", "pbs", "--partition", "a,b", "--", "x"], r"--partition: expected letters"),
        (["--system", "lsf", "--qos", "a", "--", "x"], r"--qos: expected slurm, found lsf: use --directives"),
        (["--select", "system=polaris", "--", "x"], r"--select: expected pbs, found slurm"),
        (
            ["--system", "pbs", "--select", "system=x", "--", "x"],
            r"--select: expected mpiprocs=RANKS in it, or --launch",
        ),
        (["--filesystems", "home", "--", "x"], r"--filesystems: expected pbs, found slurm"),
        (["--uenv", "a b", "--", "x"], r"--uenv: expected what slurm can read"),
        (["--modules", "a; rm", "--", "x"], r"--modules: expected names separated by spaces, found 'a; rm'"),
        (["--constraint", "a'b", "--", "x"], r"--constraint: expected what slurm can read"),
        (["--mem", "much", "--", "x"], r"--mem: expected what slurm or pbs can read"),
        (["--partition", "a b", "--", "x"], r"--partition: expected letters"),
        (["--name", "a\nb", "--", "x"], r"--name: expected letters"),
        (["--environment", "1X=2", "--", "x"], r"--environment: expected NAME=VALUE on each line, found '1X=2'"),
        (["--launch", "srun '", "--", "x"], r"--launch: expected words as in a shell"),
        (["--sweep", "rho", "--", "lsam", "train"], r"--sweep: expected OPTION=VALUE"),
        (["--sweep", "rho=1,2", "--", "x"], r"--sweep: expected a command lsam train, found 'x'"),
        (["--sweep", "rho=1,2", "--chain", "2", "--", "lsam", "train"], r"--sweep and --chain exclude each other"),
        (["--sweep", "rho=1,2", "--", "lsam", "train", "--out", "x"], r"--out: expected none with --sweep"),
        (["--gpus-per-node", "4", "--ranks-per-node", "6", "--", "x"], r"--ranks-per-node: expected a multiple of 4"),
        (
            ["--nodes", "4", "--", "lsam", "train", "--group-size", "3"],
            r"--group-size: expected a divisor of the 16 ranks \(--nodes 4 with --ranks-per-node 4\), found 3$",
        ),
        (["--", "lsam", "train", "--group-size=8"], r"--group-size: expected a divisor of the 4 ranks"),
        (["--nodes", "2"], r"command: expected lsam submit .*, found none"),
        (["--system", "torque", "--", "x"], r"--system: expected one of slurm, pbs, lsf, flux, found 'torque'"),
        (["--system", "flux", "--sweep", "rho=1,2", "--", "lsam", "train"], r"--sweep: expected slurm, pbs or lsf"),
        (["--system", "flux", "--qos", "a", "--", "x"], r"--qos: expected slurm, found flux: use --directives"),
        (["--system", "pbs", "--pack", "e.tar", "--", "x"], r"--pack: expected Slurm"),
        (["--pack", "e.tar", "--disk", "scratch", "--", "x"], r"--disk: expected an absolute path, found 'scratch'"),
    ],
)
def test_bad_options_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as error:
        submit.parse(words if "--system" in words else ["--system", "slurm", *words])
    assert "\n" not in str(error.value)


def programs(folder: Path, **texts: str) -> dict[str, str]:
    """Return an environment whose PATH starts with shell programs that replace a batch system's."""
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_chain_waits_for_the_job_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    for system, text, options in (
        ("pbs", "echo 7.server", ["", "-W depend=afterany:7.server", "-W depend=afterany:7.server"]),
        ("lsf", "echo 'Job <7> is submitted to queue <q>.'", ["", "-w ended(7)", "-w ended(7)"]),
        ("slurm", "echo '7;cluster'", ["--parsable", "--parsable", "--parsable"]),
        ("flux", "echo f7", ["batch", "batch --dependency=afterany:f7", "batch --dependency=afterany:f7"]),
    ):
        log.unlink(missing_ok=True)
        name = SYSTEMS[system].submit[0]
        env = programs(tmp_path, **{name: f'cat > {tmp_path}/script\nprintf "%s\\n" "$*" >> {log}\n{text}'})
        monkeypatch.setenv("PATH", env["PATH"])
        assert submit.main(["--system", system, "--chain", "3", "--", "lsam", "train"]) == 0
        assert log.read_text().split("\n")[:-1] == options
        assert capsys.readouterr().out.split() == [{"pbs": "7.server", "flux": "f7"}.get(system, "7")] * 3
        assert (tmp_path / "script").read_text().startswith("#!/bin/bash\n")


def test_a_failing_submission(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path, qsub="echo 'no such\nqueue' >&2; exit 1")["PATH"])
    with pytest.raises(InputError, match="qsub: expected it to accept the job, found: no such queue"):
        submit.main(["--system", "pbs", "--", "lsam", "train"])


# Variables of an imitated batch system.
STAGED = {
    "pbs": {"PBS_JOBID": "7.server", "PBS_JOBNAME": "lsam", "PBS_O_WORKDIR": "{}", "PBS_NODEFILE": "{}/nodes"},
    "lsf": {"LSB_JOBID": "7", "LSB_JOBNAME": "lsam", "LSB_DJOB_NUMPROC": "2", "LSB_DJOB_HOSTFILE": "{}/nodes"},
}


@pytest.mark.parametrize("system", STAGED)
@pytest.mark.parametrize(
    ("code", "requeue", "again"), [(0, 2, False), (2, 2, False), (3, 2, True), (137, 2, True), (3, 0, False)]
)
def test_pbs_and_lsf_scripts_restart_when_they_should(
    system: str, code: int, requeue: int, again: bool, tmp_path: Path
) -> None:
    """bash runs the script; the batch system is imitated."""
    script, env = staged(system, tmp_path, f"sh -c 'exit {code}'", requeue)
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env)
    assert (tmp_path / "mpirun-log").read_text().startswith(f"-n 2 --hostfile {tmp_path}/nodes ")
    if system == "pbs":
        assert done.returncode == code, done.stderr
        assert (tmp_path / "qsub-log").exists() == again
        if again:
            assert (tmp_path / "qsub-log").read_text() == "-v LSAM_ATTEMPT=1,LSAM_OUT=runs/lsam-7\n"
            assert (tmp_path / "qsub-script").read_text() == script.read_text()
    else:
        assert done.returncode == (99 if again else code), done.stderr
    if again:  # not more often than requeues allows
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / "runs" / "lsam-7.attempts").write_text("again\n" * requeue)
        env["LSAM_ATTEMPT"] = str(requeue)
        done = subprocess.run(["bash", str(script)], capture_output=True, timeout=60, cwd=tmp_path, env=env)
        assert done.returncode == code


@pytest.mark.parametrize("system", STAGED)
def test_a_signal_is_forwarded_to_the_ranks_once(system: str, tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        f"file = open({str(tmp_path / 'got')!r}, 'w', buffering=1)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('USR1', file=file))\n"
        "print('ready', file=file)\n"
        f"from pathlib import Path\nwhile not Path({str(tmp_path / 'end')!r}).exists(): time.sleep(0.01)\n"
        "sys.exit(3)\n"
    )
    (tmp_path / "program.py").write_text(program)
    script, env = staged(system, tmp_path, f"{sys.executable} {tmp_path / 'program.py'}", 0)
    with subprocess.Popen(["bash", str(script)], cwd=tmp_path, env=env) as job:
        try:
            for output in ("ready\n", "ready\nUSR1\n"):
                deadline = time.monotonic() + 60
                while not (tmp_path / "got").exists() or (tmp_path / "got").read_text() != output:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                job.send_signal(signal.SIGUSR1)  # the second one must not be forwarded
            (tmp_path / "end").touch()
            assert job.wait(60) == 3
        finally:
            job.kill()
    assert (tmp_path / "got").read_text() == "ready\nUSR1\n"


def staged(system: str, folder: Path, command: str, requeue: int) -> tuple[Path, dict[str, str]]:
    """Return a script that runs a command, and the environment that imitates its batch system."""
    mpirun = f'printf "%s\\n" "$*" > {folder}/mpirun-log\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"'
    env = programs(
        folder,
        mpirun=mpirun,
        qsub=f'printf "%s\\n" "$*" > {folder}/qsub-log; cat > {folder}/qsub-script; echo 8.server',
    )
    env |= {name: value.format(folder) for name, value in STAGED[system].items()}
    (folder / "nodes").write_text("a\na\n")
    _, job, _ = submit.parse(
        ["--system", system, "--requeue", str(requeue), "--setup", ":", "--", "--", *shlex.split(command)]
    )
    script = folder / "script.sh"
    script.write_text(render(job, system))
    return script, env
