"""Completion and help of every verb, against what its own --help lists, in a real bash."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lsam_hpc import cli
from lsam_hpc.shell import completion, manual, words
from lsam_hpc.util.arguments import Parser

BASH = shutil.which("bash") or "bash"


@pytest.fixture(scope="module")
def known() -> list[words.Verb]:
    return words.verbs()


@pytest.fixture(scope="module")
def script(known: list[words.Verb], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "lsam.bash"
    path.write_text(completion.bash(known))
    return path


def completed(script: Path, *lines: Sequence[str]) -> list[list[str]]:
    """Return what bash offers for the last word of each line, which is split as bash splits it."""
    asked = "\n".join(
        f"COMP_WORDS=({' '.join(repr(word) for word in ('lsam', *line))}); COMP_CWORD={len(line)}; _lsam; "
        'printf "%s " "${COMPREPLY[@]}"; echo'
        for line in lines
    )
    command = [BASH, "--norc", "-uc", f"source {script}\n{asked}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def listed(parser: Parser) -> set[str]:
    """Return the long options that a verb's help lists."""
    lines = re.findall(r"^  (-.*?)(?:  |$)", parser.format_help(), re.MULTILINE)
    return {flag for line in lines for flag in re.findall(r"--[a-z0-9][a-z0-9-]*", line)}


def test_every_verb_and_each_of_its_options(known: list[words.Verb], script: Path) -> None:
    offered, *flags = completed(script, [""], *([verb.name, "--"] for verb in known))
    assert offered == [*cli.VERBS, "--help", "--version"]
    for verb, found in zip(known, flags, strict=True):
        assert set(found) == listed(words.load(verb.name)), verb.name
        assert "--help" in found
    for shell in (completion.zsh, completion.fish):
        text = shell(known)
        for verb in known:
            for option in verb.options:
                for flag in option.flags:
                    assert (f"-l {flag[2:]} " if shell is completion.fish and flag[:2] == "--" else flag) in text


def test_values_of_options(script: Path) -> None:
    lines = [
        ["train", "--mode", "l"],
        ["train", "--mode", "=", "as"],
        ["train", "--mode", "="],
        ["surface", "run", "--format", ""],
        ["bench", "exch"],
        ["help", "insp"],
        ["completion", ""],
        ["train", "--lr", "--"],
        ["wrap", "--mode", "async", "--", "--m"],
        ["inspect", "ru"],
        ["fly", "--x"],
        ["inspect", "--json", "--v"],
    ]
    values = completed(script, *lines)
    assert values[:3] == [["lockstep"], ["async"], ["async", "lockstep"]]
    assert values[3] == ["png", "svg", "pdf"]
    assert values[4] == [name for name in words.load("bench")._actions[1].choices or [] if name.startswith("exch")]
    assert values[5:] == [["inspect"], ["bash", "zsh", "fish"], [], [], [], [], ["--verify"]]


def test_a_tab_in_an_interactive_bash(script: Path, tmp_path: Path) -> None:
    (tmp_path / "some-run").mkdir()
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execve(
            BASH, [BASH, "--norc", "--noprofile", "-i"], {"PS1": "$ ", "TERM": "dumb", "PATH": os.environ["PATH"]}
        )
    try:
        os.write(terminal, f"source {script}\n".encode())
        for typed, expected in (
            (b"echo lsam; lsam insp\t--js\t", "lsam inspect --json "),
            (b"\x15lsam report so\t", "lsam report some-run/"),
        ):
            os.write(terminal, typed)
            said, deadline = "", time.monotonic() + 30
            while expected not in said and time.monotonic() < deadline:
                if select.select([terminal], [], [], 1)[0]:
                    said += os.read(terminal, 4096).decode()
            assert expected in said
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)


def test_every_verb_has_a_manual_page(known: list[words.Verb], capsys: pytest.CaptureFixture[str]) -> None:
    for verb in known:
        assert cli.main(["help", verb.name]) == 0
        page = capsys.readouterr().out
        heads = re.findall(r"^[A-Z].*", page, re.MULTILINE)
        assert heads[:2] == ["NAME", "SYNOPSIS"], verb.name
        assert heads[-2:] == ["EXIT STATUS", "SEE ALSO"]
        assert max(map(len, page.splitlines())) <= manual.WIDTH + 4
        assert f"    lsam {verb.name} - {verb.help}\n" in page
        listed_flags = set(re.findall(r"^    (?:-\w, )?(--[a-z0-9-]+)", page, re.MULTILINE))
        assert listed_flags >= {next(f for f in option.flags if f.startswith("--")) for option in verb.options}
    assert cli.main(["help"]) == 0
    assert capsys.readouterr().out.count("\n  ") > len(cli.VERBS)


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "fly"]) == 2
    assert capsys.readouterr().err.startswith("lsam help: VERB: invalid choice: 'fly'")
    assert cli.main(["completion", "tcsh"]) == 2
    assert capsys.readouterr().err.startswith("lsam completion: SHELL: invalid choice: 'tcsh'")
    assert cli.main(["completion"]) == 2


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_accept_their_script(known: list[words.Verb], shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed, which would read its completion")
    path = tmp_path / f"lsam.{shell}"
    path.write_text(completion.SHELLS[shell](known))
    subprocess.run([program, "--no-execute", str(path)], check=True, timeout=60)
