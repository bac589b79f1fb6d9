"""Renders the scripts in jobs/: `python -m lsam_hpc.launch.templates_shapes jobs`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from lsam_hpc.launch.templates import SYSTEMS, render
from lsam_hpc.launch.templates_job import Job

_SETUP = """\
# module load gcc openmpi
source .venv/bin/activate"""
_CPU = Job(
    command='lsam train --data digits --out "$out" --resume auto',
    setup=_SETUP,
    about="One node without GPUs: one chain per rank.",
)
_GPU = replace(
    _CPU,
    command='lsam train --data cifar10 --data-dir data --epochs 200 --out "$out" --resume auto',
    about="One node with GPUs: one chain per GPU.",
    cpus_per_rank=8,
    gpus_per_node=4,
    time="04:00:00",
)
_MANY = replace(_GPU, about="Several nodes with GPUs: one chain per GPU.", nodes=4, pack="", requeue=3)
SHAPES = {
    "cpu-node": _CPU,
    "gpu-node": _GPU,
    "many-nodes": _MANY,
    "chain-per-node": replace(
        _MANY,
        about="Several nodes with GPUs: one chain per node, whose ranks hold the model together (docs/howto/fsdp.md).\n"
        "--group-size is the number of ranks per node.",
        command="lsam train --data text --data-dir data --model gpt-small --optimizer adamw --lr 1e-3 --shard fsdp2 "
        f'--group-size {_MANY.ranks_per_node} --epochs 1 --out "$out" --resume auto',
    ),
    "sweep": replace(_CPU, about="An array job: one run for each value of an option.", sweep="rho=0.01,0.02,0.05,0.1"),
    "preemptible": replace(
        _CPU,
        about="For a preemptible queue: after each preemption the run resumes from its last checkpoint.",
        nodes=2,
        requeue=20,
    ),
    "chained": replace(
        _CPU,
        about="A run longer than the queue's time limit: several jobs of one name, each of which resumes runs/NAME\n"
        "where the job before it stopped. When the run is done, the remaining jobs end at once.",
        chain=5,
    ),
    "horovod": replace(
        _GPU,
        about="An unchanged Horovod script with LSAM in place of DistributedOptimizer: docs/howto/horovod.md.",
        command="lsam wrap -- train.py --epochs 90",
        nodes=2,
    ),
}


def shapes(system: str) -> dict[str, Job]:
    """Return the jobs that a system can run, by the names of their scripts."""
    return {name: job for name, job in SHAPES.items() if job.sweep is None or SYSTEMS[system].index}


def main(folder: Path) -> None:
    """Write all scripts to a folder."""
    for system in SYSTEMS:
        for name, job in shapes(system).items():
            path = folder / system / f"{name}.sh"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(render(job, system, f"jobs/{system}/{name}.sh"))
            path.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
