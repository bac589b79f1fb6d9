"""torch.distributed.checkpoint saves and loads SAM's whole state: training then continues bit for bit."""

import copy
import itertools

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint import state_dict as dcp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lsam_hpc import SAM, InputError
from lsam_hpc.optim import LocalCenter, LocalLSAM, masks
from tests.helpers import gloo
from tests.helpers.problems import batches, flat, network, step_on

ASCENTS = ["sam", "dp-sat", "asyncsam", "sampa", "gam"]
MASKS = [masks.Mask, lambda: masks.Random(0.5, 3), lambda: masks.SSAMD(20, 0.5, 3)]
BASES = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
}


def make(base, ascent, wrap=lambda model: model, seed=0, mask=masks.Mask):
    model = wrap(network(seed=seed))
    return model, SAM(BASES[base](model.parameters()), lambda t: 0.02 * t, ascent=ascent, mask=mask(), model=model)


def go(model, opt, first, last):
    for x, y in list(batches(20))[first:last]:
        step_on(model, opt, x, y)
    opt.zero_grad()


def save(path, model, opt, options=None):
    model_state, opt_state = dcp.get_state_dict(model, opt, options=options)
    checkpoint.save({"model": model_state, "opt": opt_state}, checkpoint_id=path)


def load(path, model, opt, options=None):
    model_state, opt_state = dcp.get_state_dict(model, opt, options=options)
    state = {"model": model_state, "opt": opt_state}
    checkpoint.load(state, checkpoint_id=path)
    dcp.set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["opt"], options=options)


def whole(model):
    """Return the parameters as one vector, of which the ranks may hold parts."""
    tensors = (p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters())
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def resumes(path, taken, *kind, options=None, **more):
    """Check that a run saved after `taken` steps and loaded continues as the uninterrupted one."""
    model, opt = make(*kind, **more)
    go(model, opt, 0, taken)
    save(path, model, opt, options)
    if opt.ascent == "sampa":  # its last mini-batch is not saved: it begins anew
        opt.forget_last()
    go(model, opt, taken, taken + 7)
    again, other = make(*kind, seed=5, **more)
    load(path, again, other, options)
    assert other.local_step == other.global_step == taken
    go(again, other, taken, taken + 7)
    assert torch.equal(whole(again), whole(model)), (taken, kind, more)


@pytest.mark.filterwarnings("ignore")  # torch: saving on a single process
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", [*itertools.product(BASES, ASCENTS)])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, kind, mask):
    for taken in (0, 5):
        resumes(tmp_path / str(taken), taken, *kind, mask=mask)


@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("taken", [0, 5])
def test_reading_the_state_changes_nothing(ascent, taken):
    results = []
    for read in (False, True):
        model, opt = make("momentum", ascent)
        go(model, opt, 0, taken)
        if read:
            dcp.get_optimizer_state_dict(model, opt)
        go(model, opt, taken, taken + 5)
        results.append(flat(model))
    assert torch.equal(*results)


def shard(model):
    fully_shard(model[0])
    return fully_shard(model)


def on_ranks(folder):
    for (name, wrap), base, ascent in itertools.product(
        [("ddp", DistributedDataParallel), ("fsdp2", shard)], ["momentum", "adamw"], ASCENTS
    ):
        for taken in (0, 5):
            resumes(folder / f"{name}-{base}-{ascent}-{taken}", taken, base, ascent, wrap=wrap)
    whole_state = dcp.StateDictOptions(full_state_dict=True)
    for options in (whole_state, dcp.StateDictOptions(cpu_offload=True)):
        model, opt = make("adamw", "dp-sat", shard)
        go(model, opt, 0, 5)
        states = copy.deepcopy(dcp.get_state_dict(model, opt, options=options))  # they may share memory
        go(model, opt, 5, 10)
        again, other = make("adamw", "dp-sat", shard, seed=5)
        dcp.set_state_dict(again, other, model_state_dict=states[0], optim_state_dict=states[1], options=options)
        go(again, other, 5, 10)
        assert torch.equal(whole(again), whole(model))


def test_ranks_resume_exactly(tmp_path):
    gloo.run(on_ranks, tmp_path)


def test_the_base_optimizers_state_is_right_too():
    results = []
    for read in (False, True):
        model, opt = network(), None
        opt = SAM(BASES["adamw"](model.parameters()), 0.1)
        go(model, opt, 0, 5)
        if read:
            states = dcp.get_state_dict(model, opt.base)
            model = network(seed=5)
            opt = SAM(BASES["adamw"](model.parameters()), 0.1)
            dcp.set_state_dict(model, opt.base, model_state_dict=states[0], optim_state_dict=states[1])
        go(model, opt, 5, 10)
        results.append(flat(model))
    assert torch.equal(*results)


def test_a_state_without_sams_part_is_refused():
    model, opt = make("adamw", "dp-sat")
    go(model, opt, 0, 3)
    before = opt.state_dict()
    flattened = dcp.StateDictOptions(flatten_optimizer_state_dict=True)
    for source, options in ((opt, flattened), (opt.base, flattened), (opt.base, None)):
        state = dcp.get_optimizer_state_dict(model, source, options=options)
        with pytest.raises(InputError, match="state_dict: expected the state of a SAM"):
            dcp.set_optimizer_state_dict(model, opt, state, options=options)
    assert opt.state_dict()["sam"]["last"].keys() == before["sam"]["last"].keys()


def local_chain(seed=0, temperature=1e-4):
    model = network(seed=seed)
    center = LocalCenter(flat(model))
    return model, LocalLSAM(BASES["momentum"](model.parameters()), center, temperature=temperature, period=3)


@pytest.mark.filterwarnings("ignore")  # torch: saving on a single process; noise with momentum
def test_a_chain_in_memory_resumes_exactly(tmp_path):
    model, opt = local_chain()
    go(model, opt, 0, 5)
    save(tmp_path, model, opt)
    y = opt.read_center()
    go(model, opt, 5, 12)
    again, other = local_chain(seed=5)
    load(tmp_path, again, other)
    other._coupler.center.vector.copy_(torch.cat([t.reshape(-1) for t in y]))  # all chains share it
    go(again, other, 5, 12)
    assert torch.equal(flat(again), flat(model))
    assert other.stats() == opt.stats()


def test_a_chain_refuses_a_state_without_its_part():
    model, opt = local_chain()
    go(model, opt, 0, 3)
    plain = SAM(BASES["momentum"](model.parameters()))
    state = dcp.get_optimizer_state_dict(model, plain)
    with pytest.raises(InputError, match="state_dict: expected the state of a chain of 83 elements, found none"):
        dcp.set_optimizer_state_dict(model, opt, state)


@pytest.mark.parametrize(("lr", "gradient"), [(0.1, 0.0), (0.0, 1.0)])
def test_other_steps_without_a_closure_are_refused(lr, gradient):
    model, opt = make("momentum", "sam")
    opt.param_groups[0]["lr"] = lr
    for p in model.parameters():
        p.grad = torch.full_like(p, gradient)
    with pytest.raises(InputError, match="step: expected a closure"):
        opt.step()


def test_a_plain_optimizer_loads_the_state():
    model, opt = make("adamw", "dp-sat")
    go(model, opt, 0, 3)
    base = BASES["adamw"](network().parameters())
    models = base.param_groups[0]["params"], opt.parameters
    base.load_state_dict(opt.state_dict())
    assert all(torch.equal(base.state[a]["exp_avg"], opt.state[b]["exp_avg"]) for a, b in zip(*models, strict=True))
