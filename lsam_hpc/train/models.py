"""The models of `lsam train`: built in, or the user's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lsam_hpc.errors import InputError
from lsam_hpc.options import training
from lsam_hpc.train.convnets import Shape, resnet18, vgg16, wrn16_8
from lsam_hpc.train.formats import one_line
from lsam_hpc.train.gpt import gpt_small, gpt_tiny
from lsam_hpc.train.user_code import call_function
from lsam_hpc.train.vit import vit

__all__ = ["DEFAULT_MODEL", "MODELS", "TEXT_MODELS", "Shape", "build", "cnn", "mlp", "resnet18"]


def mlp(shape: Shape, classes: int) -> nn.Module:
    """Return a multilayer perceptron with two hidden layers of 128."""
    inputs = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, classes)
    )


def cnn(shape: Shape, classes: int) -> nn.Module:
    """Return a small convolutional network: 32, 64 and 64 channels, BatchNorm, global average pooling."""
    return _convolutions(shape, classes, (32, 64, 64), 1)


def cnn_tiny(shape: Shape, classes: int) -> nn.Module:
    """Return a network with a tenth of the operations of `cnn`: 16, 32 and 64 channels, strides in place of pooling."""
    return _convolutions(shape, classes, (16, 32, 64), 2)


def _convolutions(shape: Shape, classes: int, widths: tuple[int, ...], stride: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = shape[0]
    for width in widths:
        layers += [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        if stride == 1:
            layers.append(nn.MaxPool2d(2))
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


MODELS: dict[str, Callable[[Shape, int], nn.Module]] = dict(
    zip(training.MODELS, (mlp, cnn, cnn_tiny, resnet18, wrn16_8, vgg16, vit), strict=True)
)
TEXT_MODELS: dict[str, Callable[[Shape, int], nn.Module]] = dict(
    zip(training.TEXT_MODELS, (gpt_tiny, gpt_small), strict=True)
)
DEFAULT_MODEL = {  # cnn for the user's own data
    "digits": "mlp",
    "mnist": "cnn",
    "fashion-mnist": "cnn",
    "cifar10": "resnet18",
    "cifar100": "resnet18",
    "svhn": "resnet18",
    "folder": "resnet18",
    "text": "gpt-tiny",
}


def build(name: str | None, data: str, shape: Shape, classes: int) -> nn.Module:
    """Return a model, after a trial forward pass on inputs of zeros.

    Args:
        name: of `MODELS` or, for text, of `TEXT_MODELS`, or MODULE:FUNCTION: called with shape and classes, it returns
            an nn.Module whose outputs are the logits: (B, classes), for text (B, classes, context). Default:
            `DEFAULT_MODEL` of the data set, cnn for others.
        data: name of the data set.
        shape: of an image, or (context,) for text.
        classes: number of classes.

    Raises:
        InputError: the user's function fails, or the model does not fit the data.
    """
    name = name or DEFAULT_MODEL.get(data, "cnn")
    is_text = len(shape) == 1
    known, kind = (TEXT_MODELS, "windows of text") if is_text else (MODELS, "images")
    if ":" not in name and name not in known:
        raise InputError(f"--model: expected one of {', '.join(known)} or MODULE:FUNCTION for {kind}, found {name}")
    model = call_function("--model", name, shape, classes) if ":" in name else known[name](shape, classes)
    if not isinstance(model, nn.Module):
        raise InputError(f"--model: expected an nn.Module from {name}, found {type(model).__name__}")
    inputs = torch.zeros(2, *shape, dtype=torch.int64 if is_text else torch.float32)
    outputs = _trial_outputs(model, inputs, f"--model {name}: expected one for {kind} of {shape}")
    expected = (2, classes, *shape) if is_text else (2, classes)
    if not isinstance(outputs, Tensor) or outputs.shape != expected:
        actual = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(f"--model {name}: expected outputs of shape {expected} for two {kind}, found {actual}")
    return model


@torch.no_grad()
def _trial_outputs(model: nn.Module, inputs: Tensor, expected: str) -> object:
    training = model.training
    try:
        with torch.random.fork_rng(devices=[]):
            return model.eval()(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{expected}, found {one_line(error)}") from error
    finally:
        model.train(training)
