"""The Horovod drop-in on all ranks: equality with plain Horovod, and when a model holds the center or the sample."""

import copy
import io

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn
from torch.nn import functional

from lsam_hpc import LSAM, InputError
from lsam_hpc.rma import barrier
from tests.helpers.problems import batches, closure_of, flat, network

pytestmark = pytest.mark.alone  # Horovod's thread ends only with the process


def lsam_horovod():
    import lsam_hpc.horovod as hvd

    hvd.init()
    return hvd


def model_of(hvd, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    hvd.broadcast_parameters(model.state_dict(), 0)
    return model


def data_of(rank, count):
    generator = torch.Generator().manual_seed(100 + rank)
    return [
        (torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(count)
    ]


def backward(model, batch):
    x, y = batch
    loss = functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


def gather(comm, value):
    """Return all ranks' values; a waiting rank must not spin, because other ranks' Horovod needs the core."""
    barrier(comm)
    return comm.allgather(value)


def train(hvd, model, optimizer, data):
    for batch in data:
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()


def sgd(model, **more):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, **more)


@pytest.mark.mpi(np=[2, 4])
def test_allreduces_and_exchanges_do_not_disturb_each_other(comm):
    hvd = lsam_horovod()
    assert (hvd.rank(), hvd.size()) == (comm.rank, comm.size)
    model = network(torch.float32)
    with LSAM(torch.optim.SGD(model.parameters(), lr=0.1), period=1, comm=comm) as opt:
        for i, (x, y) in enumerate(batches(50, torch.float32, seed=comm.rank)):
            opt.step(closure_of(model, opt, x, y))
            total = hvd.allreduce(torch.full((1000,), float(comm.rank)), op=hvd.Sum, name=f"t{i}")
            assert torch.equal(total, torch.full((1000,), sum(range(comm.size)), dtype=torch.float32))
        opt.rendezvous()
        with opt.center(model):
            center = flat(model).numpy()
        assert np.isfinite(center).all()
        assert all(np.array_equal(other, center) for other in comm.allgather(center))


@pytest.mark.mpi(np=[1, 2, 4])
def test_one_group_without_ascent_is_plain_horovod(comm):
    from horovod.torch.optimizer import DistributedOptimizer as Plain

    hvd = lsam_horovod()
    results = []
    for make in (
        Plain,
        # Restart: with pull 1 the center becomes the sample, which does not change; elastic would swap the two.
        lambda *a, **k: hvd.DistributedOptimizer(*a, **k, rho=0.0, pull=1.0, coupling="restart", group_size=comm.size),
    ):
        model = model_of(hvd)
        optimizer = make(
            sgd(model),
            named_parameters=model.named_parameters(),
            gradient_predivide_factor=2.0,
            backward_passes_per_step=2,
        )
        data = iter(data_of(comm.rank, 200))
        for pair in zip(data, data, strict=True):
            optimizer.zero_grad()
            for batch in pair:
                backward(model, batch)
            optimizer.synchronize()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            with optimizer.skip_synchronize():
                optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
        if make is not Plain:
            optimizer.chain.drain()
            assert optimizer.chain.stats()["exchanges"] == 25
            optimizer.close()
    for plain, chain in zip(*results, strict=True):
        torch.testing.assert_close(chain, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.mpi(np=[2, 4])
def test_eval_and_state_dict_hold_the_center(comm):
    hvd = lsam_horovod()
    model = model_of(hvd)
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), rho=0.1, period=2)
    data = data_of(comm.rank, 22)
    train(hvd, model, optimizer, data[:20])
    shared = optimizer.chain.shared
    optimizer.chain.drain()
    barrier(comm)
    center = optimizer.chain.read_center()
    sample = [p.detach().clone() for p in shared]
    barrier(comm)
    everywhere = gather(comm, [c.numpy() for c in center])
    assert all(np.array_equal(a, b) for other in everywhere for a, b in zip(other, everywhere[0], strict=True))
    assert not torch.equal(center[0], sample[0])
    model.eval()
    assert all(torch.equal(a, b) for a, b in zip(shared, center, strict=True))
    state = model.state_dict()
    assert torch.equal(state["0.weight"], center[0])
    assert torch.equal(state["1.running_mean"], center[-2])
    model.train()
    assert all(torch.equal(a, b) for a, b in zip(shared, sample, strict=True))
    # Between the forward pass and the step the parameters are at x + e; `state_dict` still returns the center.
    backward(model, data[20])
    moved = torch.cat([(p.detach() - s).flatten() for p, s in zip(model.parameters(), sample, strict=False)])
    assert moved.norm().item() == pytest.approx(0.1, rel=1e-4)
    assert torch.equal(model.state_dict()["0.weight"], center[0])
    with optimizer.center():
        assert torch.equal(model[0].weight, center[0])
    assert torch.equal(model[0].weight, sample[0])
    optimizer.step()
    # A copy is an ordinary model, and its file contains no class of lsam_hpc.
    twin = copy.deepcopy(model)
    assert torch.equal(twin[0].weight, model[0].weight)
    backward(twin, data[21])
    assert torch.equal(twin[0].weight, model[0].weight)
    file = io.BytesIO()
    torch.save(model, file)
    assert b"lsam" not in file.getvalue()
    optimizer.close()
    final = gather(comm, flat(model).numpy())
    assert all(np.array_equal(final[0], other) for other in final)


@pytest.mark.mpi(np=[2])
def test_eval_center_and_save_center_can_be_switched_off(comm):
    hvd = lsam_horovod()
    model = model_of(hvd)
    optimizer = hvd.DistributedOptimizer(
        sgd(model), model.named_parameters(), eval_center=False, save_center=False, period=1
    )
    train(hvd, model, optimizer, data_of(comm.rank, 5))
    before = flat(model)
    model.eval()
    assert torch.equal(flat(model), before)
    assert torch.equal(model.state_dict()["0.weight"], model[0].weight)
    optimizer.close()


@pytest.mark.mpi(np=[2])
def test_a_stale_step_is_the_base_step_at_the_perturbed_point(comm):
    hvd = lsam_horovod()
    model = nn.Linear(4, 1, bias=False)
    hvd.broadcast_parameters(model.state_dict(), 0)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), rho=0.2, period=10**6
    )
    w, last = model.weight.detach().clone().double(), None
    for x, _ in data_of(comm.rank, 6):
        x = x[:, :4]
        at = w if last is None else w + 0.2 * last / last.norm()
        gradient = 2 * (x.double() @ at.T).T @ x.double() / len(x)
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
        torch.testing.assert_close(model.weight.grad.double(), gradient, rtol=1e-4, atol=1e-6)
        w, last = w - 0.1 * gradient, gradient
        torch.testing.assert_close(model.weight.detach().double(), w, rtol=1e-5, atol=1e-6)
    optimizer.close()


@pytest.mark.mpi(np=[2, 4])
def test_closures_take_two_passes_also_in_groups(comm):
    hvd = lsam_horovod()
    for size in (1, 2):
        model = model_of(hvd)
        optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), rho=0.1, group_size=size, period=3)
        passes = []
        for batch in data_of(comm.rank, 6):

            def closure(batch=batch, model=model, optimizer=optimizer, passes=passes):
                optimizer.zero_grad()
                passes.append(1)
                return backward(model, batch)

            assert torch.isfinite(optimizer.step(closure))
        assert len(passes) == 11  # the first step makes the chain and takes one pass
        samples = gather(comm, [p.detach().numpy() for p in model.parameters()])
        mates = samples[comm.rank // size * size : comm.rank // size * size + size]
        assert all(np.array_equal(a, b) for mate in mates for a, b in zip(mate, mates[0], strict=True))
        optimizer.close()


@pytest.mark.mpi(np=[4])
def test_each_process_set_is_one_chain(comm):
    hvd = lsam_horovod()
    even, odd = hvd.add_process_set([0, 2]), hvd.add_process_set([1, 3])
    model = model_of(hvd)
    optimizer = hvd.DistributedOptimizer(
        sgd(model),
        model.named_parameters(),
        process_set=odd if comm.rank % 2 else even,
        compression=hvd.Compression.fp16,
        period=5,
    )
    train(hvd, model, optimizer, data_of(comm.rank, 23))
    samples = gather(comm, [p.detach().numpy() for p in model.parameters()])
    assert all(np.array_equal(a, b) for a, b in zip(samples[0], samples[2], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(samples[1], samples[3], strict=True))
    assert not np.array_equal(samples[0][0], samples[1][0])
    assert optimizer.chain.communication.links.group.chains == 2
    assert optimizer.chain.pull == pytest.approx(0.45)
    optimizer.close()


@pytest.mark.mpi(np=[2])
def test_broadcasts_during_a_run_restart_the_chains(comm):
    hvd = lsam_horovod()
    model = model_of(hvd)
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), period=2)
    train(hvd, model, optimizer, data_of(comm.rank, 9))
    hvd.broadcast_parameters(model.state_dict(), 0)
    samples = gather(comm, flat(model).numpy())
    assert np.array_equal(samples[0], samples[1])
    train(hvd, model, optimizer, data_of(comm.rank, 5))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float(comm.rank))
    hvd.broadcast_parameters(dict(model.named_parameters()), 1)
    assert bool((flat(model) == 1).all())
    hvd.broadcast_optimizer_state(optimizer, 0)
    train(hvd, model, optimizer, data_of(comm.rank, 3))
    optimizer.close()


@pytest.mark.mpi(np=[2])
def test_elastic_state_commits_and_restores_the_chain(comm):
    hvd = lsam_horovod()
    model = model_of(hvd)
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), period=2)
    state = hvd.elastic.TorchState(model, optimizer, batch=0)
    state.sync()
    data = data_of(comm.rank, 20)
    train(hvd, model, optimizer, data[:9])
    optimizer.chain.drain()
    barrier(comm)
    sample, center = flat(model), optimizer.chain.read_center()
    barrier(comm)
    state.batch = 9
    state.commit()
    train(hvd, model, optimizer, data[9:])
    assert not torch.equal(flat(model), sample)
    state.batch = 20
    state.restore()
    assert state.batch == 9
    assert torch.equal(flat(model), sample)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.chain.read_center(), center, strict=True))
    assert optimizer.chain.local_step == 9
    optimizer.close()


@pytest.mark.mpi(np=[2])
def test_a_grad_scaler_skips_overflows(comm):
    hvd = lsam_horovod()
    model = model_of(hvd)
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), period=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i, (x, y) in enumerate(data_of(comm.rank, 8)):
        before = [p.detach().clone() for p in optimizer.chain.perturbation._copies] if optimizer.chain else None
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(model(x).float(), y)
        scaler.scale(loss).backward()
        if i == 5:
            model[0].weight.grad[0, 0] = torch.inf
            local = optimizer.chain.local_step
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        if i == 5:
            assert optimizer.chain.local_step == local
            assert before is not None
    assert optimizer.chain.local_step == 7
    assert bool(torch.isfinite(flat(model)).all())
    optimizer.close()


@pytest.mark.mpi(np=[2])
def test_schedulers_and_misuse_are_as_with_horovod(comm):
    hvd = lsam_horovod()
    model = model_of(hvd)
    base = sgd(model)
    optimizer = hvd.DistributedOptimizer(base, model.named_parameters())
    assert isinstance(optimizer, torch.optim.SGD)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(hvd, model, optimizer, data_of(comm.rank, 2))
    scheduler.step()
    assert base.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.025
    assert set(optimizer.state_dict()) == {"state", "param_groups"}
    plain = sgd(model_of(hvd))
    plain.load_state_dict(optimizer.state_dict())
    with pytest.raises(InputError, match="expected before the first step, which fixes the center's size"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    optimizer.close()
    grouped = hvd.DistributedOptimizer(sgd(model), model.named_parameters(), group_size=2)
    backward(model, data_of(comm.rank, 1)[0])
    with pytest.raises(AssertionError, match="race condition"):
        grouped.zero_grad()
    grouped.synchronize()
    with pytest.raises(InputError, match="Adasum"):
        hvd.DistributedOptimizer(sgd(model), op=hvd.Adasum)
    with pytest.raises(ValueError, match="must be unique"):
        hvd.DistributedOptimizer(sgd(model), [("a", p) for p in model.parameters()])
    assert MPI.Query_thread() == MPI.THREAD_MULTIPLE


@pytest.mark.mpi(np=[1])
def test_all_names_of_horovod_exist(comm):
    import horovod.torch as real

    hvd = lsam_horovod()
    replaced = {"DistributedOptimizer", "broadcast_optimizer_state", "broadcast_parameters", "init", "shutdown"}
    for name in (n for n in dir(real) if not n.startswith("_")):
        assert (getattr(hvd, name) is getattr(real, name)) == (name not in replaced), name
