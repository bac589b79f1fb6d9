"""What a rank of a sharded chain holds and moves: 1/G of what a chain of one rank does."""

import gc

import pytest
import torch
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from lsam_hpc import LSAM
from lsam_hpc.rma import barrier
from lsam_hpc.simulate.costs import Costs
from lsam_hpc.simulate.describe import Job
from lsam_hpc.simulate.machines import load
from tests.mpi.test_sharded import torch_ranks

WIDTH = 64  # of the square layers, a multiple of the ranks
SIZE = 3 * WIDTH * WIDTH  # elements of the model


def layers(comm, width):
    """Return a model over chains of `width` ranks, without buffers."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3)])
    mesh = init_device_mesh("cpu", (comm.size // width, width), mesh_dim_names=("chains", "shards"))["shards"]
    for module in (*model, model):
        fully_shard(module, mesh=mesh)
    return model


def held():
    """Return the bytes of all vectors' storages; a DTensor's is that of its part, and views share one."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.is_floating_point()]
    storages = [(getattr(t, "_local_tensor", t)).untyped_storage() for t in tensors if t.numel() > 1]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@pytest.mark.mpi(np=[1, 2, 4])
def test_a_rank_holds_and_moves_its_part_of_each_vector(comm, tmp_path):
    with torch_ranks(comm, tmp_path):
        for width in [width for width in (1, 2, 4) if comm.size % width == 0]:
            part = 4 * SIZE // width  # bytes
            # Parameters, gradients, momentum; e; the staged samples and the center as read. No gathered parameters.
            for options, copies in (
                ({}, 3 + 1 + 2),
                ({"max_delay": 2}, 3 + 1 + 3),
                ({"coupling": "kernel"}, 3 + 1 + 2 + 1),  # the center on the device
                ({"coupling": "restart"}, 3 + 1 + 2 + 1),  # x - y
            ):
                before, model, records = held(), layers(comm, width), []
                sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
                options = {"period": 2, **options}
                with LSAM(sgd, rho=0.1, model=model, comm=comm, on_exchange=records.append, **options) as opt:
                    for _ in range(4):
                        opt.step(lambda m=model, o=opt: step(m, o))
                    opt.drain()
                    window = opt.communication.links.windows._window.tomemory().nbytes
                    assert held() - before == copies * part
                    assert window == part // (comm.size // width)  # the rank's share of the center
                    assert [r.bytes for r in records] == [2 * part] * 2
                job = Job(comm.size, SIZE, 1.0, group_size=width, fully_shard=True, **options)
                costs = Costs(job, load("two-cores"))
                assert costs.rank_bytes() == copies * part + window
                assert costs.exchange_bytes() == 2 * part
                del model, sgd, opt


def step(model, opt):
    opt.zero_grad()
    loss = model(torch.ones(4, WIDTH)).square().mean()
    loss.backward()
    return loss.detach()


@pytest.mark.mpi(np=[2, 4])
def test_a_step_gathers_the_parameters_twice_a_pass(comm, tmp_path):
    with torch_ranks(comm, tmp_path):
        model = layers(comm, comm.size)
        with LSAM(torch.optim.SGD(model.parameters(), lr=0.01), rho=0.1, model=model, comm=comm) as opt:
            for passes in (2, 2, 1):
                opt.param_groups[0]["rho"] = 0.1 * (passes - 1)
                with Sent(comm.size) as sent:
                    opt.step(lambda: step(model, opt))
                costs = Costs(Job(comm.size, SIZE, 1.0, group_size=comm.size, fully_shard=True), load("two-cores"))
                part = (comm.size - 1) / comm.size * 4 * SIZE
                assert sent.bytes == {"_allgather_base_": passes * 2 * part, "_reduce_scatter_base_": passes * part}
                assert costs.group_bytes(passes) == sum(sent.bytes.values())


class Sent(TorchDispatchMode):
    """Counts the bytes that a rank sends in torch's collectives of whole parameters, by rings."""

    def __init__(self, ranks):
        super().__init__()
        self.ranks, self.bytes = ranks, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("c10d::")
        if name in ("_allgather_base_", "_reduce_scatter_base_"):
            whole = max(args[0].nbytes, args[1].nbytes)  # of output and input
            self.bytes[name] = self.bytes.get(name, 0) + (self.ranks - 1) / self.ranks * whole
        return func(*args, **(kwargs or {}))


@pytest.mark.mpi(np=[4])
def test_adds_of_all_ranks_at_once_are_exact(comm, tmp_path):
    # Integers below 2^24 are exact in float32, so that a lost add shows, whatever the order.
    with torch_ranks(comm, tmp_path):
        for width in (1, 2, 4):
            model, adds, chain = layers(comm, width), 500, comm.rank // width
            sgd = torch.optim.SGD(model.parameters(), lr=0.01)
            with LSAM(sgd, rho=0.1, model=model, comm=comm) as opt:
                center = opt.communication.center
                size = SIZE // width
                start = torch.empty(size)
                center.read(start)
                barrier(comm)
                if chain == 0:
                    center.add(-start)
                barrier(comm)
                element = (torch.arange(size) % 7).float()
                for i in range(adds):
                    center.add((1 + chain) * (1 + i % 3) * (element + comm.rank % width))
                barrier(comm)
                y = torch.empty(size)
                center.read(y)
                chains = comm.size // width
                factor = sum(1 + i % 3 for i in range(adds)) * chains * (chains + 1) // 2
                assert torch.equal(y, factor * (element + comm.rank % width))
