"""Builds data, model, base optimizer, budget and learning rate from the options of a run; without MPI."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lsam_hpc.optim import masks
from lsam_hpc.optim.clipping import clip_coordinates
from lsam_hpc.optim.samples import AUSAM, ESAM, ConAdv, Selection, split_batchnorm
from lsam_hpc.optim.tvlars import TVLARS
from lsam_hpc.options.ascent import AscentOptions
from lsam_hpc.options.command_line import flags_in_messages
from lsam_hpc.options.coupling import CouplingOptions
from lsam_hpc.options.option import keywords
from lsam_hpc.options.schedules import late
from lsam_hpc.options.training import check_text
from lsam_hpc.train import data
from lsam_hpc.train.augment import Augment, make_augment
from lsam_hpc.train.batches import Batches
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.models import build

_SELECTION_STREAM = 1 << 30  # XORed into the seed of the mini-batches, as batches.py does for the augmentation


def make_dataset(config: TrainConfig) -> data.Dataset:
    """Return the data set of the options; check that those for images, such as `augment` and `cutout`, fit it."""
    dataset = data.load(config.data, config.data_dir, **{name: getattr(config, name) for name in data.OPTIONS})
    if dataset.is_text:
        with flags_in_messages():
            check_text(config)
    augmentation(config, dataset)
    return dataset


def augmentation(config: TrainConfig, dataset: data.Dataset) -> Augment | None:
    """Return the augmentation of mini-batches, or None."""
    return make_augment(config.augment, config.cutout, dataset.train_x.shape, mirror=dataset.mirror)


def make_model(config: TrainConfig, dataset: data.Dataset) -> nn.Module:
    """Return the model of the options, initialized from the seed."""
    torch.manual_seed(config.seed)
    model = build(config.model, config.data, tuple(dataset.train_x.shape[1:]), dataset.classes)
    if config.adversarial == "conadv":
        split_batchnorm(model)
    make_mask(config, model, dataset, 1)  # raises before the run directory is made if the model does not fit
    return model


def make_base(config: TrainConfig, model: nn.Module) -> Optimizer:
    """Return the base optimizer of the options."""
    options = {"lr": peak_lr(config), "weight_decay": config.weight_decay}
    if config.optimizer in ("sgd", "lars", "tvlars"):
        options["momentum"] = config.momentum
    if config.optimizer == "tvlars":
        options |= {"lambda_": config.tvlars_lambda, "delay": config.tvlars_delay, "floor": config.tvlars_floor}
    base = _optimizer_class(config.optimizer)(model.parameters(), **options)
    if config.clip_coordinates > 0:
        clip_coordinates(base, config.clip_coordinates)
    return base


def _optimizer_class(name: str) -> Callable[..., Optimizer]:
    """Return the class of a name that `--optimizer` accepts."""
    if name in ("lars", "lamb"):
        library = importlib.import_module("pytorch_optimizer")  # optional, and slow to import
        return library.LARS if name == "lars" else library.Lamb  # type: ignore[no-any-return]
    return {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "tvlars": TVLARS}[name]


def make_mask(config: TrainConfig, model: nn.Module, dataset: data.Dataset, chains: int) -> masks.Mask:
    """Return the mask of the options for one of `chains` chains."""
    total = math.ceil(total_steps(config, dataset) / chains)
    return masks.make(config, model, _Samples(dataset.train_x, dataset.train_y), total)


class _Samples:
    """The training images or windows with their labels, one by one."""

    def __init__(self, x: data.Inputs, y: data.Labels) -> None:
        self._x, self._y = x, y

    def __len__(self) -> int:
        return len(self._y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._x[index : index + 1][0], self._y[index : index + 1][0]


def sampler_options(config: TrainConfig, model: nn.Module, dataset: data.Dataset, chains: int) -> dict[str, Any]:
    """Return the keywords of LSAM for ascent, coupling and model, without those of the communication.

    Args:
        config: the job's options.
        model: the chain's, on its device.
        dataset: on the same device.
        chains: number of chains that share the steps.
    """
    options = {**keywords(config, AscentOptions), **keywords(config, CouplingOptions), "model": model}
    if config.rho_from:
        options["rho"] = late(config.rho, math.ceil(config.rho_from * total_steps(config, dataset)))
    return {**options, "mask": make_mask(config, model, dataset, chains)}


def make_selection(config: TrainConfig, seed: int) -> Selection | None:
    """Return the selection of samples, or None; seed: of its random draws, as that of the mini-batches."""
    if config.selection == "ausam":
        generator = torch.Generator().manual_seed(seed ^ _SELECTION_STREAM)
        return AUSAM(config.selection_fraction, generator=generator)
    return ESAM(config.selection_fraction) if config.selection == "esam" else None


def make_adversary(config: TrainConfig, batches: Batches, model: nn.Module, dataset: data.Dataset) -> ConAdv | None:
    """Return the stream of mini-batches with adversarial images, or None; they keep to the images' range of values."""
    if config.adversarial == "none":
        return None
    assert isinstance(dataset.train_x, data.Images)  # check_text refuses others
    low, high = dataset.train_x.limits
    return ConAdv(batches, model, config.adversarial_epsilon, low=low, high=high)


def images_per_step(config: TrainConfig) -> int:
    """Return the number of images per step of a chain, over all ranks of its group."""
    return config.batch_size * config.group_size


def total_steps(config: TrainConfig, dataset: data.Dataset) -> int:
    """Return the budget: steps of all chains together."""
    return config.steps or math.ceil(config.epochs * len(dataset.train_y) / images_per_step(config))


def synchronous_steps(config: TrainConfig, dataset: data.Dataset, chains: int) -> int:
    """Return the number of local steps of the synchronous start; `chains` share the steps after it."""
    return math.ceil(config.synchronous_start * total_steps(config, dataset) / chains)


def peak_lr(config: TrainConfig) -> float:
    """Return the largest learning rate of the run.

    Source: linear scaling: Goyal et al. 2017 (arXiv 1706.02677), section 2.1.
    """
    return config.lr * (images_per_step(config) / 256 if config.lr_scaling == "linear" else 1.0)


def lr_factor(config: TrainConfig, step: int, total: int) -> float:
    """Return the learning rate as a fraction of its peak at a global step: linear warmup, then cosine or constant."""
    default = 0.0 if config.optimizer == "tvlars" else 0.05
    warmup = (default if config.warmup is None else config.warmup) * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.lr_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / (total - warmup), 1)))
