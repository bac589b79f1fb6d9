"""Convolutional networks for images of about 32 x 32: ResNet-18, Wide ResNet, VGG-16."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, ...]  # of an input: channels, height and width of an image; bytes of a window of text


class _Block(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def resnet18(shape: Shape, classes: int) -> nn.Module:
    """Return ResNet-18 for images of about 32 x 32: a 3 x 3 stem and no pooling after it.

    Source: He et al. 2016 (arXiv 1512.03385), with the stem that is usual for CIFAR.
    """
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Block(inputs, width, stride), _Block(width, width, 1)]
        inputs = width
    return nn.Sequential(*layers, *_head(inputs, classes))


class _WideBlock(nn.Module):
    """BatchNorm and ReLU precede each convolution; where sizes change, the shortcut starts after the first ReLU."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.bn1(x))
        out: Tensor = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(shape: Shape, classes: int, depth: int, factor: int) -> nn.Module:
    """Return WRN-depth-factor without dropout.

    Args:
        shape: of an image.
        classes: outputs.
        depth: 6 n + 4 convolutional layers, n blocks in each of three groups.
        factor: widths are 16, 32 and 64 times this.

    Source: Zagoruyko and Komodakis 2016 (arXiv 1605.07146), table 1.
    """
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False)]
    inputs = 16
    for width, stride in ((16 * factor, 1), (32 * factor, 2), (64 * factor, 2)):
        for block in range((depth - 4) // 6):
            layers.append(_WideBlock(inputs, width, stride if block == 0 else 1))
            inputs = width
    return nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), *_head(inputs, classes))


def wrn16_8(shape: Shape, classes: int) -> nn.Module:
    """Return WRN-16-8, which is shallow and wide: 11.0 million parameters."""
    return wide_resnet(shape, classes, 16, 8)


def vgg16(shape: Shape, classes: int) -> nn.Module:
    """Return VGG-16 with BatchNorm and one linear layer, as is usual for CIFAR: 14.7 million parameters.

    Source: Simonyan and Zisserman 2015 (arXiv 1409.1556), column D of table 1.
    """
    layers: list[nn.Module] = []
    inputs = shape[0]
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):  # no bias: BatchNorm subtracts it
            layers += [nn.Conv2d(inputs, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))  # ceil_mode: five poolings would reduce 28 x 28 to nothing
    return nn.Sequential(*layers, *_head(inputs, classes))


def _head(inputs: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
