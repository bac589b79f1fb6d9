"""Runs the examples of docs/howto/frameworks.md on all ranks, and compares each adapter with a plain loop in lockstep.

Started by test_ranks.py: mpiexec -n 2 python -m mpi4py -m tests.adapters.on_ranks FOLDER. Prints a line for each check.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from mpi4py import MPI
from torch import distributed, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lsam_hpc import LSAM, InputError
from tests.adapters import test_huggingface
from tests.helpers import lightning_loop
from tests.helpers.mpis import ROOT

comm = MPI.COMM_WORLD
warnings.simplefilter("ignore")
for name in ("lightning.pytorch", "transformers", "accelerate"):
    logging.getLogger(name).setLevel(logging.ERROR)


def equal_everywhere(model: nn.Module) -> bool:
    """Return whether all ranks have the same parameters."""
    mine = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
    return len({values.tobytes() for values in comm.allgather(mine)}) == 1


def page() -> None:
    """Run each section of the page after the code that all use."""
    common, *sections = re.split(r"^## ", (ROOT / "docs/howto/frameworks.md").read_text(), flags=re.MULTILINE)
    for section in sections:
        names: dict[str, Any] = {}
        for block in re.findall(r"^```python\n(.*?)^```", common + section, re.MULTILINE | re.DOTALL):
            exec(compile(block, section.splitlines()[0], "exec"), names)
        if section.startswith("Lightning"):
            assert equal_everywhere(names["module"])
            assert names["trainer"].global_step == 16
        elif section.startswith("Hugging"):
            assert equal_everywhere(names["model"])
            assert names["trainer"].state.global_step == 8
        elif section.startswith("Accelerate"):
            assert names["opt"].local_step == 8
            assert not equal_everywhere(names["model"])  # the samples
        elif section.startswith("timm"):
            assert names["opt"].local_step == 16
            assert [group["lr"] for group in names["opt"].param_groups] == names["scheduler"]._get_lr(1)
        _forget_accelerator()
        print("page:", section.splitlines()[0], flush=True)


def _forget_accelerator() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def lockstep(model: nn.Module, /, **options: Any) -> LSAM:
    """Return an optimizer whose results repeat to the bit."""
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return LSAM(base, rho=0.2, pull=0.3, period=3, mode="lockstep", **options)


def lightning(folder: Path) -> None:
    """A Trainer on each rank takes the steps of a loop on each rank; so does a resumed one."""
    make = lightning_loop.lightning.callbacks.ModelCheckpoint

    def with_statistics(model: nn.Module) -> LSAM:
        return lockstep(model, model=model)

    x, y = lightning_loop.data()
    loader = DataLoader(TensorDataset(x[comm.rank :: 2], y[comm.rank :: 2]), 8)
    lightning_loop.loader = lambda batch=8: loader
    model = lightning_loop.network()
    opt = with_statistics(model)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 4)
    for _ in range(2):
        for features, labels in loader:

            def closure(features=features, labels=labels):
                opt.zero_grad()
                loss = functional.cross_entropy(model(features), labels)
                loss.backward()
                return loss

            opt.step(closure)
            schedule.step()
    opt.rendezvous()
    with opt.center(model):
        center = [t.clone() for t in opt.shared]
    opt.close()
    saves = make(dirpath=folder, filename="{epoch}", save_top_k=-1)
    whole, resumed = lightning_loop.Net(with_statistics), lightning_loop.Net(with_statistics)
    lightning_loop.fit(whole, folder, max_epochs=2, enable_checkpointing=True, callbacks=[saves])
    lightning_loop.fit(resumed, folder, max_epochs=2, ckpt_path=folder / "epoch=0.ckpt")
    for module in (whole, resumed):
        lightning_loop.assert_equal(lightning_loop.in_module(module), center)
        assert equal_everywhere(module)
    trainer = lightning_loop.fit(lightning_loop.Net(with_statistics), folder)
    trainer.save_checkpoint(folder / "final.ckpt", weights_only=True)
    with pytest.raises(InputError, match="expected a call before close"):
        trainer.save_checkpoint(folder / "final.ckpt")
    print("lightning: equal to the loop, also resumed", flush=True)


def huggingface(folder: Path) -> None:
    """The same for Hugging Face's Trainer."""
    import transformers

    from lsam_hpc.adapters import huggingface as adapter

    test_huggingface.text = lambda count, text=test_huggingface.text: text(2 * count)[comm.rank :: 2]
    model, opt, _ = test_huggingface.plain(transformers, lockstep, clip=0.5, parts=2)
    opt.rendezvous()
    with opt.center(model):
        center = [p.detach().clone() for p in model.parameters()]
    opt.close()
    options = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    for again in (None, str(folder / "checkpoint-2")):
        model = test_huggingface.network(transformers)
        trainer = test_huggingface.trainer_of(adapter, transformers, model, lockstep(model), folder, **options)
        trainer.train(resume_from_checkpoint=again)
        assert trainer.state.global_step == 3
        lightning_loop.assert_equal(list(model.parameters()), center)
    _forget_accelerator()
    print("huggingface: equal to the loop, also resumed", flush=True)


def accelerate(folder: Path) -> None:
    """Accelerate adds nothing, and its saved state continues the chain."""
    from accelerate import Accelerator

    from lsam_hpc.adapters.processes import one_process

    def train(accelerator: Any, model: nn.Module, opt: Any, parts: range) -> None:
        generator = torch.Generator().manual_seed(comm.rank)
        for part in range(10):
            x, y = torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)

            def closure(x=x, y=y):
                opt.zero_grad()
                loss = functional.cross_entropy(model(x), y)
                loss.backward() if accelerator is None else accelerator.backward(loss)
                return loss

            if part in parts:
                opt.step(closure)

    ends = []
    for prepared in (False, True):
        model = lightning_loop.network()
        with one_process():
            accelerator = Accelerator(cpu=True) if prepared else None
        opt = chain = lockstep(model)
        if accelerator is not None:
            model, opt = accelerator.prepare(model, opt)
        train(accelerator, model, opt, range(5))
        if accelerator is not None:
            accelerator.save_state(folder)
            chain.close()
            model = lightning_loop.network()
            chain = lockstep(model)
            accelerator._models.clear(), accelerator._optimizers.clear()
            model, opt = accelerator.prepare(model, chain)
            accelerator.load_state(folder)
        train(accelerator, model, opt, range(5, 10))
        ends.append([p.detach().clone() for p in model.parameters()])
        chain.close()
    lightning_loop.assert_equal(*ends)
    _forget_accelerator()
    print("accelerate: equal to the loop, also resumed", flush=True)


def groups() -> None:
    """A group whose gradients DistributedDataParallel averages is one that LSAM averages; one group, as chains race."""
    from lsam_hpc.adapters.torchrun import set_torchrun_environment

    set_torchrun_environment()
    distributed.init_process_group("gloo")
    ends = []
    for wrap in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        generator = torch.Generator().manual_seed(comm.rank)
        average = {"group_average": lambda _: None} if wrap else {"group_ascent": "averaged"}
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        opt = LSAM(base, rho=0.2, pull=0.3, period=3, group_size=2, **average)
        net = nn.parallel.DistributedDataParallel(model) if wrap else model
        for _ in range(8):
            x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
            y = torch.randint(0, 3, (8,), generator=generator)

            def closure(x=x, y=y, net=net, opt=opt):
                opt.zero_grad()
                loss = functional.cross_entropy(net(x), y)
                loss.backward()
                return loss

            opt.step(closure)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        opt.close()
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-7)  # the center is in float32
    assert equal_everywhere(model)
    distributed.destroy_process_group()
    print("torch.distributed: groups with DistributedDataParallel", flush=True)


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    for check in (lightning, huggingface, accelerate):
        check(Path(f"{check.__name__}-{comm.rank}").absolute())
    groups()
    page()
