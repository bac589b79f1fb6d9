"""The documentation's examples and commands run, its links are valid, and its site builds and can be searched."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from functools import partial
from glob import glob
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from lsam_hpc import cli
from lsam_hpc.compare.suite_file import read_suite
from lsam_hpc.simulate.machines import load
from lsam_hpc.tools.bench import main as bench
from lsam_hpc.train.config import parse
from tests.helpers.browser import chromium, wait
from tests.helpers.mpis import ROOT
from tests.helpers.pages import LAYOUT, Sandbox, blocks, execute, lsam_words, pages, small, tiny, write_files, write_run

PYTHON = sorted({block.page for block in blocks("python")})
ON_RANKS = [
    "README.md",
    "docs/explanation/algorithm.md",
    "docs/explanation/exchange.md",
    "docs/howto/fsdp.md",
    "docs/reference/logs.md",
    "docs/tutorials/own-loop.md",
]
# Pages whose Python blocks other tests run, and which.
ELSEWHERE = {
    "docs/howto/frameworks.md": "tests/adapters/test_ranks.py: each section on two ranks",
    "docs/howto/horovod.md": "tests/horovod",
    "docs/tutorials/horovod.md": "test_commands_run: hv.py under mpirun",
}
# Commands that test_commands_run leaves out: a regular expression, and why.
NOT_RUN = {
    r"(LSAM_MPI=system )?bash jobs/quickstart\.sh": "tests/integration/test_train.py runs it",
    r"bash tests/run\.sh": "it runs this test",
    r"bash tools/install_horovod\.sh": "it builds Horovod, and tests/run.sh runs it",
    r"bash jobs/experiments/": "an experiment: minutes to hours; tests/compare",
    r"python jobs/experiments/trials\.py": "an experiment: tests/compare/test_trials.py",
    r"mpirun .*--data text .*--epochs 8 ": "an experiment: five minutes; tests/integration/test_text.py",
    r"mpirun .* docs/examples/|python docs/examples/": "tests/examples",
    r"source ": "an environment that the sandbox does not have",
    r"python docs/figures/sampler\.py": "two minutes of sampling",
    r"python -m tests\.simulate\.two_hosts": "it needs root",
    r"python plot_2D\.py": "a script of loss-landscape; tests/landscape/formats",
    r"podman |apptainer ": "tests/launch/test_container.py",
    r"srun |sbatch |scancel |squeue ": "tests/slurm",
    r"mpirun .* (podman|apptainer) ": "tests/launch/test_container.py",
    r"cp |vi ": "tests/launch/test_submit.py",
    r"ssh ": "another machine",
    r"kill -USR1 ": "tests/integration/test_resume.py",
    r"lsam report .*--live": "it serves until Ctrl-C: tests/integration/test_live_jobs.py",
    r"mpirun .*--(with-ft|enable-recovery) ": "tests/integration/test_ulfm.py",
    r"mpirun .*--track wandb": "seconds of imports: tests/train/test_tracking.py",
    r"mpirun .*lsam wrap .*-- train\.py": "a script of the reader's; docs/tutorials/horovod.md has one that runs",
    r"lsam inspect runs/train-": "the run of that script",
    r"lsam bench |mpirun .*lsam bench ": "minutes: tests/tools/bench",
    r"lsam submit (?!.*--dry-run).*-- lsam train": "no batch system here: tests/launch/test_submit.py",
    r"lsam submit --dry-run \.\.\.$": "the command's words are left out",
    r"lsam simulate --calibrate": "it needs the numbers of a benchmark: tests/simulate",
    r"lsam completion": "it writes into the home directory: tests/shell",
}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow("the curvature of a network")] if "own-model" in page else [])
        for page in PYTHON
        if page not in {*ON_RANKS, *ELSEWHERE}
    ],
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("first", "own"):
        write_run(tmp_path / "runs" / name, LAYOUT)
    write_files(page, tmp_path)
    execute(page, {})


@pytest.mark.mpi(np=[2])
def test_python_blocks_run_on_ranks(comm, tmp_path):
    import lsam_hpc

    os.chdir(tmp_path)  # fixtures such as monkeypatch do not exist on ranks
    made = []

    def make(_, **options):
        base = torch.optim.SGD(torch.nn.Linear(8, 4).parameters(), lr=0.1)
        made.append(lsam_hpc.LSAM(base, **options))
        return made[-1]

    for page in ON_RANKS:
        model = torch.nn.Linear(8, 4)
        base = torch.optim.SGD(model.parameters(), lr=0.1)

        def closure(model=model, base=base):
            base.zero_grad()
            loss = model(torch.ones(4, 8)).square().mean()
            loss.backward()
            return loss

        names = {"LSAM": make, "model": model, "torch": torch, "base": base, "closure": closure}
        names["my_model"] = lambda model=model: model
        names["my_batches"] = lambda: iter([(torch.randn(4, 8), torch.randint(0, 4, (4,)))] * 1000)
        names["evaluate"] = lambda model: None
        execute(page, names)
        for opt in made:
            opt.close()
        made.clear()


def test_every_python_block_is_a_program():
    for block in blocks("python"):
        compile(block.text, block.page, "exec")
    assert {*ON_RANKS, *ELSEWHERE} <= set(PYTHON)


def options_of(verb, capsys):
    """Return the options that a verb's help lists."""
    assert verb[0] in cli.VERBS, f"lsam {verb[0]}"
    if verb[0] == "bench":
        assert verb[1] in {**bench.BENCHMARKS, **bench.OTHERS}, f"lsam bench {verb[1]}"
        verb = verb if verb[1] in bench.OTHERS else verb[:1]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*verb, "--help"])
    rows = re.findall(r"^ +(-\S.*)$", capsys.readouterr().out, re.MULTILINE)
    return {option for row in rows for option in re.findall(r"--[\w-]+", row.split("  ")[0])}


def commands():
    """Yield the page and each command of the shell blocks."""
    for block in blocks("bash"):
        for line in block.lines():
            yield block.page, line


def test_commands_name_verbs_and_options_that_exist(capsys):
    lsam = [(page, words) for page, line in commands() if (words := lsam_words(line))]
    assert len(lsam) > 40
    known = {}
    for page, words in lsam:
        verb = tuple(words[: 1 + (words[0] == "bench")])
        if verb not in known:
            known[verb] = options_of(verb, capsys)
        taken = known[verb]
        if verb == ("simulate",) and "--train" in words:  # it passes unknown options to `lsam train`
            taken = taken | options_of(("train",), capsys)
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options <= taken, f"{page}: lsam {shlex.join(words)}"


def test_other_programs_are_files_here_or_named_with_a_reason():
    for page, line in commands():
        words = shlex.split(line)
        named = any(re.match(pattern, line) for pattern in NOT_RUN)
        assert named or {"lsam", "python"} & set(words), f"{page}: {line}: neither run nor in NOT_RUN"
        scripts = [word for word in words if re.fullmatch(r"(bash|docs|jobs|tests|tools)/\S+\.(sh|py)", word)]
        assert all((ROOT / script).exists() for script in scripts), f"{page}: {line}"
    unused = [pattern for pattern in NOT_RUN if not any(re.match(pattern, line) for _, line in commands())]
    assert not unused, unused


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory):
    from tests.helpers.mpis import available

    return Sandbox(tmp_path_factory.mktemp("docs"), next(iter(available().values())))


def _once():
    """Return the commands to run by page; a verb with the same options runs once, in a tutorial if one has it."""
    seen, lines = set(), {}
    for page, line in sorted(commands(), key=lambda command: "tutorials" not in command[0]):
        if any(re.match(pattern, line) for pattern in NOT_RUN):
            continue
        words = lsam_words(line)
        options = {word.split("=")[0] for word in words or () if word.startswith("--")}
        kind = line if words is None else (words[0], *sorted(options))
        if kind not in seen or kind[0] in ("train", "wrap"):
            lines.setdefault(page, []).append(line)
        seen.add(kind)
    return lines


SHELL = _once()


@pytest.mark.slow("starts a program for each command of a page")
@pytest.mark.parametrize("page", SHELL)
def test_commands_run(page, sandbox, openmpi, monkeypatch, torch_threads):
    sandbox.fresh()
    write_files(page, sandbox.folder)
    monkeypatch.chdir(sandbox.folder)
    monkeypatch.syspath_prepend(str(sandbox.folder))
    for line in SHELL[page]:
        line = small(line, overwrite="tutorials" not in page)
        program, *words = shlex.split(line)
        if program == "lsam" and words[0] not in ("train", "wrap"):  # here: its imports take longer than its work
            sys.modules.pop("mine", None)
            assert cli.main([path for word in words for path in (sorted(glob(word)) or [word])]) == 0, line
        else:
            sandbox.run(line)


def test_files_are_read_by_their_readers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def submit(path):
        assert cli.main(["submit", "--site", path, "--nodes", "8", "--dry-run", "--", "lsam", "train"]) == 0
        assert "#SBATCH --account=p-1234" in capsys.readouterr().out

    readers = {
        "site.toml": submit,
        "run.toml": lambda path: parse(["--config", path]),
        "mine.yaml": load,
        "docs/results.md": lambda path: read_suite(tmp_path / path, str(tmp_path)),
    }
    read = set()
    for language in ("toml", "yaml", "json"):
        for block in blocks(language):
            name = block.file or block.page
            (tmp_path / f"file.{language}").write_text(block.text)
            readers[name](f"file.{language}")
            read.add(name)
    assert read == {*readers}


def test_every_verb_has_its_row():
    rows = re.findall(r"^\| `([\w-]+)` \| (.*?) \| \[", pages()["docs/reference/verbs.md"], re.MULTILINE)
    assert dict(rows) == {verb: about for verb, (_, about) in cli.VERBS.items()}


def test_links_are_valid():
    for name, text in pages().items():
        prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#]*[./][^)#]*)\)", prose):
            assert link.startswith("http") or ((ROOT / name).parent / link).exists(), f"{name}: {link}"


def test_pages_to_learn_and_to_do_begin_with_a_picture():
    for name, text in pages().items():
        if re.match(r"docs/(tutorials|howto)/", name):
            assert re.match(r"# .*\n\n!\[.{20,}\]\(\S+\.png\)\n", text), name
    assert len(pages()["docs/index.md"].splitlines()) <= 40


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(["bash", ROOT / "docs/build.sh", folder], capture_output=True, text=True, timeout=280)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.slow("builds the site")
def test_the_site_builds_and_holds_the_api(site):
    for page, words in {
        "index.html": ("A first run", "I want to"),
        "results.html": ("figures/equal-seconds.png",),
        "reference/api/lsam_hpc.html": ('id="lsam_hpc.LSAM.rendezvous"', 'id="lsam_hpc.SAM.perturb"'),
        "reference/api/optim.html": ('id="lsam_hpc.optim.masks.FSAM"', "ScalarOrSchedule"),
        "reference/api/rma.html": ('id="lsam_hpc.rma.Center.add"', "why_progress_needed"),
        "reference/api/trajectory.html": ('id="lsam_hpc.trajectory.CountSketch"',),
        "reference/api/landscape.html": ('id="lsam_hpc.landscape.diagnose"',),
        "howto/frameworks.html": ("LSAMCallback", "torchrun"),
        "reference/api/adapters.html": ('id="lsam_hpc.adapters.lightning.LSAMCallback"', "one_process"),
        "reference/api/horovod.html": ('id="lsam_hpc.horovod.factory.DistributedOptimizer"',),
    }.items():
        text = (site / page).read_text()
        assert [word for word in words if word not in text] == [], page
        assert "{options}" not in text, page
        # No page loads anything from another host; links are fine.
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"(.*?)\"|<link[^>]* href=\"(.*?)\"", text)
        assert not [source for pair in loaded for source in pair if source.startswith(("http", "//"))], page


@pytest.mark.slow("builds the site, and starts a browser")
def test_the_search_finds_every_page_and_the_browser_shows_it(site, tmp_path):
    index = json.loads((site / "search" / "search_index.json").read_text())
    indexed = {entry["location"].partition("#")[0] for entry in index["docs"]}
    expected = {name.removeprefix("docs/").replace(".md", ".html") for name in pages() if name.startswith("docs/")}
    expected = {page for page in expected if not page.startswith(("results/", "benchmarks/"))}
    assert expected <= indexed
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium(tmp_path / "profile") as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for query, page in {"barrier": "howto/surfaces.html", "SIGTERM": "howto/resume.html"}.items():
            driver.get(f"http://127.0.0.1:{server.server_port}/index.html")
            box = driver.find_element("name", "q")
            box.send_keys(query)
            box.submit()
            shown = "[...document.querySelectorAll('#mkdocs-search-results a')]"
            wait(driver, f"return {shown}.some(link => link.href.includes('{page}'))")
        server.shutdown()


def test_tiny_settings_change_what_they_should():
    assert tiny("mpirun -n 8 lsam surface RUN --images 5000") == "mpirun -n 2 lsam surface runs/first --images 40"
