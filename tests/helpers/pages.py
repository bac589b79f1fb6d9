"""The documentation's code blocks, and a folder in which they run on tiny settings."""

from __future__ import annotations

import math
import pickle
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.trajectory import CountSketch, Snapshots, TrajectoryWriter
from lsam_hpc.trajectory.sketch import layer_groups
from tests.helpers.logs import attributes
from tests.helpers.mpis import ROOT, Mpi, environment

# What a block's text is replaced by before it runs: fewer steps, small data.
TINY = (
    (r"opt\.steps\([\d_]+\)", "opt.steps(20)"),
    (r"range\(200\)", "range(3)"),
    (r"draws=200", "draws=20, chains=2"),
    (r"linspace\(-1, 1, 25\)", "linspace(-1, 1, 3)"),
    (r"=-1:1:51", "=-1:1:3"),
    (r"mpirun -n [3-9]", "mpirun -n 2"),
    (r" (?:RUN|runs/first-JOB)\b", " runs/first"),
    (r"/data/cifar|\bDIR\b", "data"),
    (r"/data/books", "books"),
    (r" lsam train \.\.\.", " lsam train"),
    (r"--steps \d+", "--steps 400"),  # diagnose needs 20 sketches of the second half
    (r"--checkpoint-every \d+", "--checkpoint-every 24"),
    (r"--epochs \d+", "--epochs 1"),
    (r"--(subset|validation) \d+", r"--\1 40"),
    (r"--images \d+", "--images 40"),
    (r"--surface [1-9]\d*", "--surface 3"),
    (r"--ranks 1024", "--ranks 4"),
)
# Options that are added behind those of a command, so that argparse takes these.
MORE = {
    "train": "",
    "trajectory": "--quiet",
    "surface": "--quiet --images 40",
    "path": "--quiet --images 40 --curve-steps 3",
    "spectrum": "--quiet --images 40 --eigenvalues 1 --steps 4 --repeats 2 --products 6 --flow-gradients 40",
    "sharpness": "--quiet --images 40 --m 40 --steps 2 --restarts 1",
    "learning-coefficient": "--quiet --images 40 --chains 2 --draws 20 --warmup 20 --leapfrog 2",
    "outliers": "--quiet --images 40",
    "predict": "--quiet --images 40",
}
LAYOUT = [("0.weight", (16, 8)), ("0.bias", (16,)), ("2.weight", (4, 16)), ("2.bias", (4,))]  # of own-model.md's model
MINE = """
import torch
from torch.nn import functional

def load(directory):
    x, y = torch.randint(0, 255, (80, 3, 8, 8), dtype=torch.uint8), torch.arange(80) % 4
    return x.numpy(), y.numpy(), x.numpy(), y.numpy()

def network(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], classes))

def squared(outputs, targets):
    return ((outputs - functional.one_hot(targets, outputs.shape[1])) ** 2).mean()
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, if its first line is a comment that begins with one."""
        name = re.match(r"# ([\w-]+\.(?:py|toml|yaml))\b", self.text)
        return name[1] if name else None

    def lines(self) -> list[str]:
        """Return a shell block's commands, without comments."""
        stripped = (re.sub(r"(^|\s)#.*", "", line).strip() for line in self.text.replace("\\\n", " ").splitlines())
        return [line for line in stripped if line]


@cache
def pages() -> dict[str, str]:
    """Return the text of each page by its path from the top."""
    paths = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


@cache
def blocks(language: str) -> tuple[Block, ...]:
    """Return the blocks in a language, in the order of the pages."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return tuple(Block(page, language, text) for page, whole in pages().items() for text in pattern.findall(whole))


def tiny(text: str) -> str:
    """Return a block's text with tiny settings."""
    for pattern, replacement in TINY:
        text = re.sub(pattern, replacement, text)
    return text


def write_files(page: str, folder: Path) -> None:
    """Write the blocks of a page that are files."""
    for language in ("python", "toml", "yaml"):
        for block in blocks(language):
            if block.page == page and block.file:
                (folder / block.file).write_text(tiny(block.text))


def execute(page: str, names: dict[str, Any]) -> None:
    """Run a page's Python blocks in order in one namespace."""
    for block in blocks("python"):
        if block.page == page:
            exec(compile(tiny(block.text), page, "exec"), names)


def lsam_words(line: str) -> list[str] | None:
    """Return the words after `lsam` of a command, up to a "--"; None if it starts another program."""
    words = shlex.split(line)
    if "lsam" not in words:
        return None
    words = words[words.index("lsam") + 1 :]
    return words[: words.index("--")] if "--" in words else words


class Sandbox:
    """A folder with the repository's folders, a run of two ranks, CIFAR-10's files with few images, and the programs.

    `lsam` and `python` are forked processes that have torch imported.
    """

    def __init__(self, folder: Path, mpi: Mpi) -> None:
        self.folder, self.programs = folder, folder / "programs"
        self.programs.mkdir()
        for name in ("jobs", "tools", "tests"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "docs").mkdir()
        (folder / "docs" / "figures").symlink_to(ROOT / "docs" / "figures")
        (folder / "mine.py").write_text(MINE)
        _write_cifar(folder / "data" / "cifar-10-batches-py")
        (folder / "books").mkdir()
        (folder / "books" / "one.txt").write_text("It was a dark and stormy night. " * 40)
        for name, command in {
            "python": [mpi.forked],
            "lsam": [mpi.forked, "-m", "lsam_hpc"],
            "mpirun": [*mpi.mpiexec],
        }.items():
            (self.programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
            (self.programs / name).chmod(0o755)
        self.run("mpirun -n 2 lsam train --steps 240 --period 1 --snapshot-every log --out runs/first")
        shutil.copytree(folder / "runs" / "first", folder / "runs" / "quickstart")
        write_run(folder / "runs" / "own", LAYOUT)
        self.kept = folder / "kept"
        shutil.copytree(folder / "runs", self.kept)

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script by bash; the test fails if a command fails."""
        env = environment(PYTHONPATH=f"{ROOT}:{self.folder}", HOME=str(self.folder))
        env["PATH"] = f"{self.programs}:{env['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done

    def fresh(self) -> None:
        """Restore the runs and mine.py."""
        (self.folder / "mine.py").write_text(MINE)
        shutil.rmtree(self.folder / "runs")
        shutil.copytree(self.kept, self.folder / "runs")


def small(line: str, overwrite: bool) -> str:
    """Return a command with tiny settings; a how-to's commands may overwrite files, because they are alternatives."""
    line = tiny(line)
    words = lsam_words(line)
    if not words or words[0] not in MORE:
        return line
    more = MORE[words[0]]
    if words[0] == "train" and "--steps" not in words and "--epochs" not in words:
        more += " --steps 24"
    if "cifar10" in words and "--model" not in words:
        more += " --model cnn-tiny --batch-size 8"
    if "text" in words:
        more += " --model gpt-tiny --context 16 --batch-size 4 --subset 40"
    if words[0] == "surface" and not {"--x"} & {word.split("=")[0] for word in words}:
        more += " --x=-1:1:3"
    if overwrite and words[0] != "basins" and "--resume" not in words:
        more += " --overwrite"
    return f"{line} {more}"


def _write_cifar(folder: Path) -> None:
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        images = draws.integers(0, 256, (40, 3072), dtype=np.uint8)
        batch = {b"data": images, b"labels": [i % 10 for i in range(40)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_run(path: Path, layout: list[tuple[str, tuple[int, ...]]]) -> None:
    """Write the logs of two ranks, with sketches and snapshots of random walks."""
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    size = sum(math.prod(shape) for _, shape in layout)
    sketch = CountSketch(size, layer_groups(layout), buckets=64)
    for rank in range(2):
        walk = np.random.default_rng(rank).standard_normal((44, size)).cumsum(0).astype(np.float32) / 30
        more = {"snapshots": Snapshots(), "sketch": sketch}
        with TrajectoryWriter(path, rank, layout, attributes(2), **more) as writer:
            for i, x in enumerate(walk):
                writer.step(iteration=i, total_iteration=2 * i + rank, loss=1 / (1 + i))
                numbers = {"version_read": i, "version_added": i, "staleness": 0, "accepted": 1}
                writer.exchange(began=float(i), iteration=i, center_distance=0.5, **numbers)
                for state, values in (("sample", x), ("center", x / 2)):
                    writer.sketch(state, writer.sketcher(values), i, i)
                    if i % 11 == 10:
                        writer.snapshot(state, values, i, i)
