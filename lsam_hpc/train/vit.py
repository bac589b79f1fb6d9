"""A Vision Transformer that can be differentiated twice, as the landscape programs do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lsam_hpc.errors import InputError
from lsam_hpc.train.convnets import Shape
from lsam_hpc.train.transformer import Attention, Layer


class VisionTransformer(nn.Module):
    """A Vision Transformer with learned positions and a class token, without dropout.

    Args:
        shape: of an image; height and width are multiples of `patch`.
        classes: number of outputs.
        patch: side of the square patches, in pixels.
        width: of a token.
        depth: number of layers.
        heads: number of attention heads; it divides `width`.

    Raises:
        InputError: the sides of the images are not multiples of `patch`.

    Source: Dosovitskiy et al. 2021 (arXiv 2010.11929), section 3.1; initialization as in Touvron et al. 2021
        (arXiv 2012.12877).
    """

    def __init__(self, shape: Shape, classes: int, *, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        channels, high, wide = shape
        if high % patch or wide % patch:
            raise InputError(
                f"--model vit: expected images whose sides are multiples of {patch}, found {high} x {wide}"
            )
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (high // patch) * (wide // patch), width))
        self.layers = nn.Sequential(*(Layer(width, Attention(width, heads)) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        for weight in (self.token, self.positions, *(m.weight for m in self.modules() if isinstance(m, nn.Linear))):
            nn.init.trunc_normal_(weight, std=0.02)
        for linear in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes' logits, shape (B, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.layers(tokens))[:, 0])
        return logits


def vit(shape: Shape, classes: int) -> nn.Module:
    """Return a small Vision Transformer for images of about 32 x 32: patches of 4, 5.4 million parameters.

    Its width of 192, 12 layers and 3 heads are those of DeiT-Ti (Touvron et al. 2021, table 1).
    """
    return VisionTransformer(shape, classes, patch=4, width=192, depth=12, heads=3)
