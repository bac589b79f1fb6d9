"""The models of `lsam train`: built in, or the user's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lsam_hpc.errors import InputError
from lsam_hpc.options import training
from lsam_hpc.train.convnets import Shape, resnet18, vgg16, wrn16_8
from lsam_hpc.train.formats import one_line
from lsam_hpc.train.user_code import call_function
from lsam_hpc.train.vit import vit

__all__ = ["DEFAULT_MODEL", "MODELS", "Shape", "build", "cnn", "cnn_tiny", "mlp", "resnet18", "vgg16", "vit", "wrn16_8"]


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
DEFAULT_MODEL = {  # cnn for the user's own data
    "digits": "mlp",
    "mnist": "cnn",
    "fashion-mnist": "cnn",
    "cifar10": "resnet18",
    "cifar100": "resnet18",
    "svhn": "resnet18",
    "folder": "resnet18",
}


def build(name: str | None, data: str, shape: Shape, classes: int) -> nn.Module:
    """Return a model, after a trial forward pass on images of zeros.

    Args:
        name: of `MODELS`, or MODULE:FUNCTION: called with shape and classes, it returns an nn.Module whose outputs are
            the logits, (B, classes). Default: `DEFAULT_MODEL` of the data set, cnn for others.
        data: name of the data set.
        shape: of an image.
        classes: number of classes.

    Raises:
        InputError: the user's function fails, or the model does not fit the images.
    """
    name = name or DEFAULT_MODEL.get(data, "cnn")
    model = call_function("--model", name, shape, classes) if ":" in name else MODELS[name](shape, classes)
    if not isinstance(model, nn.Module):
        raise InputError(f"--model: expected an nn.Module from {name}, found {type(model).__name__}")
    outputs = _trial_outputs(name, model, shape)
    if not isinstance(outputs, Tensor) or outputs.shape != (2, classes):
        actual = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(f"--model {name}: expected outputs of shape (2, {classes}) for two images, found {actual}")
    return model


@torch.no_grad()
def _trial_outputs(name: str, model: nn.Module, shape: Shape) -> object:
    training = model.training
    try:
        with torch.random.fork_rng(devices=[]):
            return model.eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"--model {name}: expected one for images of {shape}, found {one_line(error)}") from error
    finally:
        model.train(training)
