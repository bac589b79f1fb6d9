"""The documentation's examples run, its commands exist, its links are valid, and its site builds."""

import re
import shlex
import subprocess

import pytest

from lsam_hpc import cli
from lsam_hpc.tools.bench import main as bench
from tests.helpers.mpis import ROOT

PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.md")])
}


def blocks(language):
    """Return the page and the text of each code block in a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(name, block) for name, text in PAGES.items() for block in pattern.findall(text)]


@pytest.mark.parametrize("page", ["docs/optimizers.md", "docs/samples.md", "docs/migration.md"])
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = [block for name, block in blocks("python") if name == page]
    assert examples
    names: dict[str, object] = {}
    for block in examples:
        exec(compile(block, page, "exec"), names)


def test_python_examples_compile():
    assert len(blocks("python")) > 10
    for name, block in blocks("python"):
        compile(block, name, "exec")


def lsam_commands():
    """Yield the page, the verb and the options of each `lsam VERB ...` in a shell block; for bench also its NAME."""
    for name, block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for start in (i for i, word in enumerate(words) if word == "lsam"):
                command = words[start + 1 :]
                command = command[: command.index("--")] if "--" in command else command
                verb = tuple(command[: 1 + (command[0] == "bench")])
                yield name, verb, [word.split("=")[0] for word in command if word.startswith("--")]


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


def test_commands_name_verbs_and_options_that_exist(capsys):
    commands = list(lsam_commands())
    assert len(commands) > 40
    known = {verb: options_of(verb, capsys) for verb in {verb for _, verb, _ in commands}}
    for page, verb, options in commands:
        taken = known[verb]
        if verb == ("simulate",) and "--train" in options:  # it passes unknown options to `lsam train`
            taken = taken | options_of(("train",), capsys)
        assert set(options) <= taken, f"{page}: lsam {' '.join(verb)}"


def test_links_are_valid():
    for name, text in PAGES.items():
        prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#]*[./][^)#]*)\)", prose):
            assert link.startswith("http") or ((ROOT / name).parent / link).exists(), f"{name}: {link}"


@pytest.mark.slow("builds the site")
def test_the_site_builds_and_holds_the_api(tmp_path):
    built = subprocess.run(["bash", ROOT / "docs/build.sh", tmp_path], capture_output=True, text=True, timeout=280)
    assert built.returncode == 0, built.stdout + built.stderr
    for page, words in {
        "index.html": ("Tutorial", "Which page answers what"),
        "results.html": ("figures/equal-seconds.png",),
        "api/lsam_hpc.html": ('id="lsam_hpc.LSAM.rendezvous"', "heartbeat_timeout", 'id="lsam_hpc.SAM.perturb"'),
        "api/optim.html": ('id="lsam_hpc.optim.masks.FSAM"', "ScalarOrSchedule"),
        "api/rma.html": ('id="lsam_hpc.rma.Center.add"', "why_progress_needed"),
        "api/trajectory.html": ('id="lsam_hpc.trajectory.CountSketch"',),
        "api/landscape.html": ('id="lsam_hpc.landscape.diagnose"',),
        "frameworks.html": ("LSAMCallback", "torchrun"),
        "api/adapters.html": ('id="lsam_hpc.adapters.lightning.LSAMCallback"', "one_process"),
        "api/horovod.html": ('id="lsam_hpc.horovod.factory.DistributedOptimizer"',),
    }.items():
        text = (tmp_path / page).read_text()
        assert [word for word in words if word not in text] == [], page
        assert "{options}" not in text, page
        # No page loads anything from another host; links are fine.
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"(.*?)\"|<link[^>]* href=\"(.*?)\"", text)
        assert not [source for pair in loaded for source in pair if source.startswith(("http", "//"))], page
