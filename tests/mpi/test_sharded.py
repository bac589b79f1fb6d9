"""Chains whose ranks hold shards of the model: equal to chains that hold it whole."""

import contextlib
import itertools
from unittest import mock

import pytest
import torch
from mpi4py import MPI
from torch import distributed
from torch.distributed import checkpoint, init_device_mesh
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from lsam_hpc import LSAM, InputError
from lsam_hpc.rma import barrier
from tests.helpers.problems import batches, closure_of, flat, network

RANKS = 2  # of a chain
KINDS = [
    {"ascent": ascent, "metric": metric, "coupling": coupling}
    for (ascent, metric), coupling in itertools.product(
        [("sam", "l2"), ("dp-sat", "l2"), ("sam", "adaptive")], ["elastic", "kernel", "restart"]
    )
]
KINDS += [{"ascent": "center"}, {"center_momentum": 0.5}, {"max_delta_ratio": 1.5}]
KINDS += [
    {"synchronous_steps": 23},
    {"synchronous_steps": 23, "coupling": "kernel", "center_momentum": 0.5, "group_ascent": "averaged"},
    {"synchronous_steps": 24, "coupling": "restart", "ascent": "dp-sat"},
]


@contextlib.contextmanager
def torch_ranks(comm, folder):
    """Initialize torch.distributed on the job's ranks."""
    store = distributed.FileStore(str(folder / "store"), comm.size)
    distributed.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)
    yield
    barrier(comm)
    distributed.destroy_process_group()


def chain_mesh(comm):
    """Return the device mesh of this rank's chain."""
    return init_device_mesh("cpu", (comm.size // RANKS, RANKS), mesh_dim_names=("chains", "shards"))["shards"]


def sharded(comm, model=None):
    """Return the network with its parameters over the ranks of this rank's chain."""
    model = network() if model is None else model
    mesh = chain_mesh(comm)
    for module in model:
        if list(module.parameters()):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(model):
    return torch.cat([p.full_tensor().detach().reshape(-1) for p in model.parameters()])


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


@pytest.mark.mpi(np=[4])
def test_two_chains_of_two_ranks_are_two_chains_of_one(comm, tmp_path):
    with torch_ranks(comm, tmp_path):
        pair = comm.Split(comm.rank % RANKS, comm.rank)  # a rank of each chain
        for kind in KINDS:
            compare(comm, pair, {"rho": 0.1, "mode": "lockstep", "period": 3, "stiffness": 0.5, **kind})
        pair.Free()


def compare(comm, pair, options):
    """Train two sharded chains, and on each rank of a pair a whole one, with the same batches."""
    chain, index = divmod(comm.rank, RANKS)
    model, other = sharded(comm), network()
    with contextlib.ExitStack() as stack:
        opt = stack.enter_context(LSAM(sgd(model), model=model, comm=comm, **options))
        # torch.distributed has all ranks.
        with mock.patch("lsam_hpc.distributed.groups.Group._backend", return_value=None):
            single = stack.enter_context(LSAM(sgd(other), model=other, comm=pair, **options))
        assert opt.pull == single.pull
        for step, (x, y) in enumerate(batches(50, seed=chain)):
            half = slice(index * len(x) // RANKS, (index + 1) * len(x) // RANKS)
            opt.step(closure_of(model, opt, x[half], y[half]))
            single.step(closure_of(other, single, x, y))
            if step % 10 == 9:
                assert float((whole(model) - flat(other)).abs().max()) < 1e-10, options
        assert opt.center_distance == pytest.approx(single.center_distance, abs=1e-10)
        assert opt.stats() == single.stats(), options
        with opt.center(model), single.center(other):
            torch.testing.assert_close(whole(model), flat(other), rtol=0, atol=1e-10)
        torch.testing.assert_close(whole(model), flat(other), rtol=0, atol=1e-10)


@pytest.mark.mpi(np=[4])
def test_a_rank_moves_its_shard_only(comm, tmp_path):
    with torch_ranks(comm, tmp_path):
        model, records = sharded(comm), []
        held = sum(p.to_local().numel() for p in model.parameters())
        with LSAM(sgd(model), rho=0.1, model=model, period=4, comm=comm, on_exchange=records.append) as opt:
            for x, y in batches(8, seed=comm.rank):
                opt.step(closure_of(model, opt, x, y))
            opt.drain()
            assert [r.bytes for r in records] == [2 * 8 * held] * 2  # a read and an add of float64
        assert comm.allreduce(held) == 2 * 83


@pytest.mark.mpi(np=[4])
def test_passes_use_what_an_exchange_wrote(comm, tmp_path):
    # A pass without backward leaves parameters gathered, which an exchange must not leave behind.
    with torch_ranks(comm, tmp_path):
        for coupling in ("elastic", "restart"):
            # Not its modules too: the root's parameters stay gathered after a pass.
            model, other = fully_shard(network(), mesh=chain_mesh(comm)), network()
            with LSAM(sgd(model), rho=0.1, coupling=coupling, period=100, model=model, comm=comm) as opt:
                for inputs, y in batches(3, seed=comm.rank):
                    opt.step(closure_of(model, opt, inputs, y))

                state = opt.state_dict()
                sample = checked(opt, model, other)
                opt.exchange()
                assert not torch.equal(checked(opt, model, other), sample)
                with opt.center(model):
                    checked(opt, model, other)
                checked(opt, model, other)
                opt.load_state_dict(state)
                assert torch.equal(checked(opt, model, other), sample)


def checked(opt, model, other):
    """Check that a pass uses the present parameters, and return them."""
    values = torch.cat([p.full_tensor().detach().reshape(-1) for p in opt.parameters])
    torch.nn.utils.vector_to_parameters(values, other.parameters())
    x = next(batches(1))[0]
    with torch.no_grad():
        assert torch.equal(model(x), other(x))
    return values


@pytest.mark.mpi(np=[4])
def test_a_loaded_state_continues_as_the_saved_run(comm, tmp_path):
    chain = comm.rank // RANKS
    with torch_ranks(comm, tmp_path):
        start = {"synchronous_steps": 7}  # in it a chain that joins takes the state of the first chain
        for kind, joins in (({}, False), ({"coupling": "kernel"}, False), (start, False), (start, True)):
            results = []
            for load in (False, True):
                options = {"rho": 0.1, "mode": "lockstep", "period": 2, "comm": comm, **kind}
                model = sharded(comm, network(seed=int(load)))
                with LSAM(sgd(model), model=model, temperature=1e-4, **options) as opt:
                    if load:
                        saved = torch.load(tmp_path / f"{comm.rank}.pt", weights_only=False)
                        opt.load_state_dict(opt.state_dict() if joins and chain == 1 else saved)
                    for step, (x, y) in enumerate(batches(9, seed=chain)):
                        if load and step < 5:
                            continue
                        if not load and step == 5:
                            torch.save(opt.state_dict(), tmp_path / f"{comm.rank}.pt")
                        opt.step(closure_of(model, opt, x, y))
                    opt.exchange()
                    with opt.center(model):
                        results.append(whole(model))
                    results.append(whole(model))
            assert all(torch.equal(a, b) for a, b in zip(results[:2], results[2:], strict=True))


def state_of(model, opt):
    states = get_state_dict(model, opt)
    return dict(zip(("model", "opt"), states, strict=True))


def load(path, model, opt, **options):
    state = state_of(model, opt)
    checkpoint.load(state, checkpoint_id=path, **options)
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["opt"])


@pytest.mark.mpi(np=[4])
def test_torchs_checkpoint_resumes_with_other_chains_and_in_one_process(comm, tmp_path):
    # Data: chain 0 of two continues on the same batches whatever the layout.
    chain = comm.rank // RANKS
    options = {"rho": 0.1, "coupling": "kernel", "mode": "lockstep", "period": 2, "center_momentum": 0.5}
    with torch_ranks(comm, tmp_path):
        model = sharded(comm)
        with LSAM(adam(model), model=model, comm=comm, **options) as opt:
            train(model, opt, 0, 5, chain)
            group = chain_mesh(comm).get_group()
            checkpoint.save(state_of(model, opt), checkpoint_id=tmp_path / f"chain-{chain}", process_group=group)
            with opt.center(model):
                y = whole(model)
            saved = comm.bcast(whole(model).numpy()), comm.bcast(whole(model).numpy(), RANKS)
            barrier(comm)
            train(model, opt, 5, 11, chain)
            end = whole(model)

        again = sharded(comm, network(seed=5))
        with LSAM(adam(again), model=again, comm=comm, **options) as opt:
            load(tmp_path / f"chain-{chain}", again, opt, process_group=group)
            assert opt.exchanges == 2
            train(again, opt, 5, 11, chain)
            assert torch.equal(whole(again), end)

        for width in (1, 4):  # four chains of one rank, one of four
            mesh = init_device_mesh("cpu", (4 // width, width), mesh_dim_names=("chains", "shards"))["shards"]
            other = fully_shard(network(seed=5), mesh=mesh)
            with LSAM(adam(other), model=other, comm=comm, **options) as opt:
                source = comm.rank // width % 2
                load(tmp_path / f"chain-{source}", other, opt, process_group=mesh.get_group())
                values = torch.cat([p.full_tensor().detach().reshape(-1) for p in opt.parameters])
                assert values.tolist() == saved[source].tolist()
                with opt.center(other):
                    assert torch.equal(torch.cat([p.full_tensor().detach().reshape(-1) for p in opt.parameters]), y)
                barrier(comm)  # before a chain moves the center
                moments = [opt.state[p]["exp_avg"].full_tensor() for p in opt.parameters]
                assert [m.shape for m in moments] == [p.shape for p in opt.parameters]
                train(other, opt, 5, 7, source)

        alone = network(seed=5)
        with LSAM(adam(alone), model=alone, comm=MPI.COMM_SELF, **options) as opt:
            load(tmp_path / "chain-1", alone, opt, no_dist=True)
            assert flat(alone).tolist() == saved[1].tolist()
            with opt.center(alone):
                assert torch.equal(flat(alone), y)
            train(alone, opt, 5, 7, 1)


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def train(model, opt, first, last, seed):
    for x, y in list(batches(last, seed=seed))[first:]:
        opt.step(closure_of(model, opt, x, y))


@pytest.mark.mpi(np=[4])
def test_what_sharded_chains_exclude_is_named_on_all_ranks(comm, tmp_path):
    def refused(text, model=None, **options):
        model = sharded(comm) if model is None else model
        with pytest.raises(InputError) as caught:
            LSAM(sgd(model), model=model, comm=comm, **options)
        assert str(caught.value) == text

    with torch_ranks(comm, tmp_path):
        refused("group_size: expected 2, the ranks of the model's device mesh, or 1, found 4", group_size=4)
        refused("topology: expected center with sharded parameters, found gossip", topology="gossip")
        refused("publish: expected none with sharded parameters, found sample", publish="sample")
        refused("group_ranks: expected none with sharded parameters, found [0]", group_ranks=[0])
        part = network()
        fully_shard(part[0], mesh=chain_mesh(comm))
        refused("model: expected fully_shard on the whole model, found 2 of 4 unsharded", part)
        replicated = fully_shard(network(), mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b")))
        with pytest.raises(InputError, match=r"^model's device mesh: expected one dimension, over which all"):
            LSAM(sgd(replicated), model=replicated, comm=comm)
        pair = comm.Split(comm.rank % 2, comm.rank)
        with pytest.raises(InputError, match=r"torch\.distributed: expected the ranks of MPI, found rank"):
            LSAM(sgd(part := sharded(comm)), model=part, comm=pair)
        pair.Free()
