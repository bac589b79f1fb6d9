"""`mpirun -n R lsam bench growth --shard`: memory of a rank, and bytes of an exchange, against the ranks of a chain."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence

import torch
from mpi4py import MPI
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from lsam_hpc import rma
from lsam_hpc.distributed.lsam import LSAM
from lsam_hpc.optim import SAM
from lsam_hpc.tools.bench.base import Report, Row, aim, caption, counted, markdown
from lsam_hpc.tools.bench.memory import PERIOD, RHO, held, require_rollup, return_freed_memory, shortage, train

TITLE = "Growth of sharded models"
WIDTHS = (1024, 2048)  # of the square layers of the model; multiples of the ranks of a chain
LAYERS = 4
BATCH = 4
LARGE = 2_000_000  # parameters of a rank, above which fixed costs are small
MEMORY, LIMIT, BYTES = "a rank, models / G", "limit, models / G", "bytes of an exchange x G / P"


def measure(repeats: int, *, quick: bool) -> list[Row]:
    """Return a row per size of the model and number of ranks in a chain; see `base.Benchmark`.

    * memory: as in `growth`, between steps, in models of 4 bytes per parameter, times G, the ranks of a chain. A rank
      should hold 1/G of parameters, gradients and momentum, of SAM's perturbation, of two staging buffers, and of the
      center its part among C chains: (6 + 1/C) / G models.
    * bytes: that a rank reads and adds in an exchange, times G and divided by P; 8 without shards.

    Memory needs no median: `repeats` has no effect.
    """
    require_rollup("growth --shard")
    return_freed_memory()
    comm = MPI.COMM_WORLD
    sizes = [ranks for ranks in range(1, comm.size + 1) if comm.size % ranks == 0]
    with _torch_ranks(comm):
        meshes = [
            init_device_mesh("cpu", (comm.size // ranks, ranks), mesh_dim_names=("c", "g"))["g"] for ranks in sizes
        ]
        if not quick:
            for mesh in meshes:  # warm-up: loads and connects what is loaded and connected at its first use
                _row(comm, WIDTHS[0], mesh)
        widths = (8 * comm.size, 10**6) if quick else WIDTHS
        rows = [_row(comm, width, mesh) for width, mesh in counted([(w, m) for w in widths for m in meshes])]
    return rows if comm.rank == 0 else []


@contextlib.contextmanager
def _torch_ranks(comm: MPI.Intracomm) -> Iterator[None]:
    """Initialize torch.distributed with gloo on the job's ranks."""
    with tempfile.TemporaryDirectory() as own:
        meeting = f"file://{comm.bcast(own)}/ranks"
        distributed.init_process_group("gloo", init_method=meeting, rank=comm.rank, world_size=comm.size)
        yield
        rma.barrier(comm)
        distributed.destroy_process_group()
        rma.barrier(comm)


def _row(comm: MPI.Intracomm, width: int, mesh: DeviceMesh) -> Row:
    size, ranks = LAYERS * width * width, mesh.size()
    chains = comm.size // ranks
    limit = 6 + 1 / chains
    row: Row = {"parameters": size, "ranks of a chain, G": ranks, "chains, C": chains}
    row |= dict.fromkeys(
        ("SGD", "SAM more", "center more", MEMORY, LIMIT, "bytes of an exchange", BYTES, "skipped"), ""
    )
    share = 4 * size / ranks  # bytes of a rank's part of a model
    if missing := shortage(comm, limit * share + 2 * 4 * width * width):
        return {**row, "skipped": missing}
    empty = held(comm)
    model = _sharded(width, mesh)
    params = list(model.parameters())
    inputs = torch.randn(BATCH, width)

    def closure() -> Tensor:
        model.zero_grad()
        loss: Tensor = model(inputs).square().mean()
        loss.backward()
        return loss

    steps = PERIOD
    sgd = train(comm, params, closure, steps, lambda base: base)
    sam = train(comm, params, closure, steps, lambda base: SAM(base, rho=RHO, model=model))
    lsam = train(comm, params, closure, steps, lambda base: LSAM(base, rho=RHO, period=PERIOD, model=model, comm=comm))

    def models(nbytes: int) -> float:
        total: int = comm.allreduce(nbytes)
        return float(total / comm.size / share)

    moved = {record.bytes for record in lsam.exchanges}
    (each,) = set().union(*comm.allgather(moved))
    return row | {
        "SGD": models(sgd.held - empty),
        "SAM more": models(sam.held - sgd.held),
        "center more": models(lsam.held - sam.held),
        MEMORY: models(lsam.held - empty),
        LIMIT: limit,
        "bytes of an exchange": each,
        BYTES: each * ranks / size,
    }


def _sharded(width: int, mesh: DeviceMesh) -> nn.Module:
    """Return layers whose parameters are spread over the ranks of the mesh; no rank ever holds all of them."""
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(LAYERS)])
    for module in (*model, model):
        fully_shard(module, mesh=mesh)
    model.to_empty(device="cpu")
    for p in model.parameters():
        p.data.fill_(1 / width)
    return model


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/explanation/performance.md; see `base.Benchmark`."""
    text: str = f"""\
Memory of a rank between steps, and bytes of an exchange, of a model of {LAYERS} layers that `fully_shard` has spread
over the G ranks of each of C chains, with gloo. Memory is in models of 4 bytes per parameter, times G: SGD with
momentum holds three, SAM one more, the center two buffers and 1/C. Shared memory is divided among the ranks. The C
library returns freed memory at once here, so that layers which were gathered for a pass are not counted.

"""
    for report in reports:
        text += f"{caption(report)}\n{markdown(report.rows)}\n"
    rows = [row for report in reports for row in report.rows if row["skipped"] == ""]
    large = [row for row in rows if float(row["parameters"]) >= LARGE * float(row["ranks of a chain, G"])]
    if large:
        most = max(float(row[MEMORY]) / float(row[LIMIT]) for row in large)
        text += aim(f"memory : (6 + 1/C) / G models, where a rank has {LARGE:,} parameters or more", most, 1.02)
    if rows:
        equal = all(row[BYTES] == 8 for row in rows)
        text += f"* A rank moves {'exactly' if equal else '**not**'} 1/G of the 8 bytes per parameter of an exchange.\n"
    return text
