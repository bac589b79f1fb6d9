"""SAM with a model that FSDP2 shards over two ranks equals SAM in one process on the whole batch."""

import itertools
import json
from functools import partial

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn import functional

from lsam_hpc import SAM, InputError
from lsam_hpc.optim import LocalCenter, LocalLSAM, masks
from lsam_hpc.optim.flat import FlatVector
from tests.helpers import gloo
from tests.helpers.problems import batches, closure_of, step_on

ASCENTS = ["sam", "dp-sat", "asyncsam", "sampa", "msam", "gam"]
METRICS = ["l2", "adaptive"]
STEPS = 12


def network(seed=0):
    """Return a model of which the second of two ranks has no row of some parameters."""
    torch.manual_seed(seed)
    layers = nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 1), nn.Tanh(), nn.Linear(1, 3)
    return nn.Sequential(*layers).double()


def shard(model, mesh=None, modules=(0, 3)):
    """Shard some of the modules one by one, and the rest together."""
    for i in modules:
        fully_shard(model[i], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sgd(params, **options):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-2, **options)


def two_groups(model):
    params = list(model.parameters())
    return [{"params": params[:3]}, {"params": params[3:], "rho": 0.05}]


def halves(count):
    """Yield mini-batches, and this rank's half of each."""
    part = slice(8 * distributed.get_rank(), 8 * distributed.get_rank() + 8)
    for x, y in batches(count):
        yield (x, y), (x[part], y[part])


def whole(model):
    """Return the parameters as one vector, of which the ranks hold parts."""
    tensors = (p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters())
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def train(model, opt, other, single, finish=lambda: None):
    """Take steps on the ranks' halves and in one process on the whole; return the largest difference."""
    largest = 0.0
    for (x, y), half in halves(STEPS):

        def closure(batch):
            opt.zero_grad()
            loss = functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            finish()
            return loss

        opt.step(closure, batch=half)
        step_on(other, single, x, y)
        norms = ("grad_norm", "perturbation_norm")
        pairs = [(whole(model), whole(other)), *((getattr(opt, n), getattr(single, n)) for n in norms)]
        largest = max(largest, *(float((a - b).detach().abs().max()) for a, b in pairs if a.isfinite().all()))
    assert float((whole(other) - whole(network())).abs().max()) > 0.1
    return largest


def compare(make, groups=lambda model: model.parameters(), prepare=shard, finish=lambda model: None, **options):
    model, other = prepare(network()), network()
    opts = [SAM(make(groups(m)), 0.2, model=m, **options) for m in (model, other)]
    return train(model, opts[0], other, opts[1], partial(finish, model))


def plain_rest(model):
    """Shard two modules only."""
    for i in (0, 3):
        fully_shard(model[i])
    return model


def average_plain(model):
    """Average the gradients that fully_shard does not."""
    for p in model.parameters():
        if not isinstance(p, DTensor):
            distributed.all_reduce(p.grad)
            p.grad /= 2


def differences(folder):
    found = {}
    for ascent, metric in itertools.product(ASCENTS, METRICS):
        # With a part of the mini-batch each rank would take its own.
        options = {"ascent": ascent, "metric": metric, "ascent_fraction": 1.0}
        found[f"{ascent} {metric}"] = compare(sgd, **options)
        found[f"{ascent} {metric}, two radii"] = compare(sgd, two_groups, **options)
        found[f"{ascent} {metric}, AdamW"] = compare(partial(torch.optim.AdamW, lr=0.05), **options)
        found[f"{ascent} {metric}, some plain"] = compare(
            partial(sgd, nesterov=True), prepare=plain_rest, finish=average_plain, **options
        )
    for shape in ((2, 1), (1, 2)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards"))
        found[f"mesh {shape}"] = compare(sgd, prepare=partial(shard, mesh=mesh))
    (folder / f"{distributed.get_rank()}.json").write_text(json.dumps(found))


def test_two_ranks_equal_one_process(tmp_path):
    gloo.run(differences, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {name: value for name, value in found.items() if not value <= 1e-12} == {}


def partly_masked():
    """Yield the difference for each mask that works on DTensors."""
    for name, mask in {"norm": masks.Norm, "layers": lambda model: masks.Layers(model, ["0.*", "5.bias"])}.items():
        model, other = shard(network()), network()
        opts = [SAM(sgd(m.parameters()), 0.2, mask=mask(m), model=m) for m in (model, other)]
        yield name, train(model, opts[0], other, opts[1])


def tensor_parallel(metric, rho):
    """Return the difference with a model whose layers the ranks compute together, on the whole batch."""
    plan = {
        "0": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(0)),
        "1": SequenceParallel(sequence_dim=0),  # its gradients are sums that are not taken yet
        "3": ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()),
    }

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()

    model, other = parallelize_module(build(), init_device_mesh("cpu", (2,)), plan), build()
    opts = [SAM(sgd(m.parameters()), rho, metric=metric, model=m) for m in (model, other)]
    for x, y in batches(STEPS):
        for m, opt in zip((model, other), opts, strict=True):
            opt.step(closure_of(m, opt, x, y))
    assert opts[0].grad_norm.item() == pytest.approx(opts[1].grad_norm.item(), abs=1e-12)
    return float((whole(model) - whole(other)).abs().max())


def scaled():
    """Return the difference with mixed precision's scaler; a step in which a pass overflows on one rank is skipped."""
    model, other = shard(network()), network()
    opt, single = (SAM(sgd(m.parameters()), 0.2, model=m) for m in (model, other))
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)
    calls, overflowing = [], {4: 1, 11: 0}  # call -> rank; the passes of steps 2 and 5
    for step, ((x, y), (a, b)) in enumerate(halves(STEPS)):

        def closure(a=a, b=b):
            opt.zero_grad()
            loss = functional.cross_entropy(model(a), b)
            rank = overflowing.get(len(calls))
            scaler.scale(loss * (torch.inf if rank == distributed.get_rank() else 1.0)).backward()
            calls.append(1)
            return loss

        before = whole(model)
        opt.step(closure, scaler)
        scaler.update()
        if step in (2, 5):
            assert torch.equal(whole(model), before)
        else:
            single.step(closure_of(other, single, x, y))
    assert scaler.get_scale() == 2.0**8
    return float((whole(model) - whole(other)).abs().max())


def gathered_parameters():
    """Check that no pass uses parameters that an earlier pass without backward gathered."""
    (x, y), _ = next(halves(1))
    model, other = shard(network()), network()
    opt, single = (SAM(sgd(m.parameters()), 0.2, ascent="dp-sat", model=m) for m in (model, other))
    for _ in range(4):
        for m, o in ((model, opt), (other, single)):
            with torch.no_grad():
                m(x)  # a validation
            o.step(closure_of(m, o, x, y))
    torch.testing.assert_close(whole(model), whole(other), rtol=0, atol=1e-12)

    class StopError(Exception):
        pass

    def closure():
        model(x)
        raise StopError

    with pytest.raises(StopError):
        opt.step(closure)
    torch.testing.assert_close(model(x).detach(), other(x).detach(), rtol=0, atol=1e-12)


def refused(message, make):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def refusals():
    model = shard(network())
    base = partial(sgd, list(model.parameters()))
    for mask in (masks.Random(), masks.FSAM(model), masks.Tensors(), masks.SLSAM(model), "random"):
        refused("mask: expected plain parameters, found DTensors", partial(SAM, base(), mask=mask, model=model))
    early = masks.Norm(network())
    refused("mask: expected one made after fully_shard", partial(SAM, base(), mask=early, model=model))
    refused("model: expected plain parameters, found DTensors: pass model=", partial(SAM, base()))
    refused("average: expected plain parameters", partial(SAM, base(), average=object(), model=model))
    pair = {"pair": distributed.group.WORLD, "ascent": "sampa"}
    refused("pair: expected plain parameters", partial(SAM, base(), model=model, **pair))
    center = LocalCenter(torch.zeros(98, dtype=torch.float64))
    refused("base: expected plain parameters, found DTensors", partial(LocalLSAM, base(), center, model=model))
    refused("base: expected plain parameters, found DTensors", partial(FlatVector, list(model.parameters())))
    plain = network()
    opt = SAM(sgd(plain.parameters()), mask="random")
    group = {"params": list(model.parameters())}
    refused("mask: expected plain parameters, found DTensors", partial(opt.add_param_group, group))
    for use_orig_params in (False, True):
        flat = FullyShardedDataParallel(network(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
        refused("base: expected .*, found FSDP1's .*: shard .*fully_shard$", partial(SAM, sgd(flat.parameters())))
        group = {"params": list(flat.parameters())}
        refused("base: expected .*, found FSDP1's", partial(SAM(sgd(network().parameters())).add_param_group, group))


def details(folder):
    found = dict(partly_masked())
    found |= {f"tensor parallel {kind}": tensor_parallel(*kind) for kind in itertools.product(METRICS, (0.2, 0.0))}
    found["scaled"] = scaled()
    gathered_parameters()
    refusals()
    (folder / f"{distributed.get_rank()}.json").write_text(json.dumps(found))


def test_masks_scalers_and_tensor_parallelism(tmp_path):
    gloo.run(details, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {name: value for name, value in found.items() if not value <= 1e-12} == {}
