"""Trains a small network by Lightning's Trainer and by a plain loop. Its import takes seconds."""

import copy
import logging

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lsam_hpc import SAM
from lsam_hpc.optim import LocalCenter, LocalLSAM
from lsam_hpc.optim.flat import FlatVector
from tests.helpers.frameworks import package

lightning = package("lightning.pytorch")
from lightning.pytorch.plugins.environments import LightningEnvironment  # noqa: E402

from lsam_hpc.adapters.lightning import LSAMCallback  # noqa: E402

STEPS = 12
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8 * STEPS, 6, generator=generator), torch.randint(0, 3, (8 * STEPS,), generator=generator)


def loader(batch=8):
    return DataLoader(TensorDataset(*data()), batch_size=batch)


def sam(model, **options):
    return SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.2, model=model, **options)


def chain(model, **options):
    """Return a chain around a center of its own."""
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    statistics = [model[1].running_mean, model[1].running_var]
    start = FlatVector([*model.parameters(), *statistics], device="cpu").gather([*model.parameters(), *statistics])
    return LocalLSAM(base, LocalCenter(start.clone()), rho=0.2, model=model, pull=0.3, period=3, **options)


class Net(lightning.LightningModule):
    """A user's module; manual optimization computes the gradient in two halves."""

    def __init__(self, make=sam, manual=False, **options):
        super().__init__()
        self.net = network()
        self.make, self.options, self.automatic_optimization = make, options, not manual
        self.seen, self.validated, self.logged = [], [], []

    def configure_optimizers(self):
        self.opt = self.make(self.net, **self.options)
        return [self.opt], [{"scheduler": torch.optim.lr_scheduler.StepLR(self.opt, 4), "interval": "step"}]

    def training_step(self, batch, batch_idx):
        if not self.automatic_optimization:
            return self.manual_step(batch)
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"again": loss})
        return loss

    def manual_step(self, batch):
        opt = self.optimizers()

        def closure():
            opt.zero_grad()
            for x, y in zip(batch[0].split(4), batch[1].split(4), strict=True):
                loss = functional.cross_entropy(self.net(x), y) / 2
                self.manual_backward(loss)
            self.log("loss", loss, on_step=True, on_epoch=True)
            return loss

        opt.step(closure)
        self.lr_schedulers().step()

    def validation_step(self, batch, batch_idx):
        self.validated.append(copy.deepcopy(self.net.state_dict()))

    def on_before_optimizer_step(self, optimizer):
        self.seen.append(torch.cat([p.grad.flatten().clone() for p in self.net.parameters()]))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.logged.append(self.trainer.callback_metrics.get("loss_step"))


def fit(module, tmp_path, *, callback=True, batch=8, ckpt_path=None, validate=False, **options):
    callbacks = [LSAMCallback()] if callback else []
    settings = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": tmp_path,
        "callbacks": callbacks + options.pop("callbacks", []),
        "plugins": [LightningEnvironment(), *options.pop("plugins", [])],
        **options,
    }
    trainer = lightning.Trainer(**settings)
    trainer.fit(module, loader(batch), loader(48) if validate else None, ckpt_path=ckpt_path)
    return trainer


def plain(
    make=sam, *, parts=1, epochs=1, clip=None, dtype=None, scaler=None, whole=8, batch=None, close=True, **options
):
    """Train in a loop of ten lines, with `parts` micro-batches a step; return the model and the losses at x."""
    model = network()
    opt = make(model, **options)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 4)

    def before_descent(*_):
        if clip is not None:
            clip(model.parameters())

    opt.base.register_step_pre_hook(before_descent)
    losses = []
    batches = list(loader(whole))
    for start in range(0, len(batches), parts):
        window, passes = batches[start : start + parts], []

        def closure(window=window, passes=passes):
            opt.zero_grad()
            total = 0
            for x, y in window:
                with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False):
                    loss = functional.cross_entropy(model(x), y) / parts
                (loss if scaler is None else scaler.scale(loss)).backward()
                total += loss.detach()
            passes.append(total)
            return total

        opt.step(closure, scaler)
        losses.append(passes[0])
        if scaler is not None:
            scaler.update()
        schedule.step()
    return model, losses


def assert_same(module, model):
    for (name, left), right in zip(module.net.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def centers(opt):
    return [t.clone() for t in opt.read_center()]


def in_module(module):
    return [*module.net.parameters(), module.net[1].running_mean, module.net[1].running_var]


def assert_equal(tensors, others):
    for left, right in zip(tensors, others, strict=True):
        assert torch.equal(left, right)


class Probe(lightning.Callback):
    """Runs after LSAMCallback; checks the center in the validation, and keeps center and sample of an epoch's end."""

    def on_validation_start(self, trainer, pl_module):
        assert_equal(in_module(pl_module), centers(pl_module.opt))
        self.seen = True

    def on_train_epoch_end(self, trainer, pl_module):
        self.center, self.sample = centers(pl_module.opt), [t.clone() for t in in_module(pl_module)]
        assert not torch.equal(self.center[0], self.sample[0])
