"""The layers that the transformers of `lsam train` share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head self-attention of every token with every token, which can be differentiated twice.

    Args:
        width: of a token.
        heads: number of attention heads; it divides `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens' new values, shape (B, tokens, width)."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.out(self.mix(q, k, v).transpose(1, 2).reshape(batch, tokens, width))
        return mixed

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the heads' means of the values, each of shape (B, heads, tokens, width / heads)."""
        # The fast kernels of torch's scaled_dot_product_attention have no second derivative.
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        mixed: Tensor = weights @ v
        return mixed


class Layer(nn.Module):
    """A layer with normalisation before attention and before the two linear maps (pre-norm).

    Args:
        width: of a token.
        attention: maps (B, tokens, width) to the same shape.
        gelu: "none" for the exact function, "tanh" for its approximation. Default "none".
    """

    def __init__(self, width: int, attention: nn.Module, gelu: str = "none") -> None:
        super().__init__()
        self.gelu = gelu
        self.norm1, self.attention = nn.LayerNorm(width), attention
        self.norm2, self.wide, self.narrow = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens' new values, shape (B, tokens, width)."""
        x = x + self.attention(self.norm1(x))
        change: Tensor = self.narrow(functional.gelu(self.wide(self.norm2(x)), approximate=self.gelu))
        return x + change
