"""Causal transformers that predict the next byte of a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc.errors import InputError
from lsam_hpc.train.transformer import Attention, Layer


class CausalAttention(Attention):
    """Multi-head self-attention of each token with itself and those before it; arguments as of `Attention`."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the heads' means of the values, each of shape (B, heads, tokens, width / heads)."""
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class GPT(nn.Module):
    """A causal transformer of GPT-2's form: pre-norm, learned positions, GELU by tanh, without dropout.

    Unlike GPT-2's, the output layer has weights of its own: tying it to the embedding would save few parameters with a
    vocabulary of bytes, and every parameter belongs to one layer. Second derivatives need the kernel `math` of
    torch.nn.attention.sdpa_kernel.

    Args:
        context: largest number of tokens.
        classes: number of different tokens.
        width: of a token.
        depth: number of layers; they are the modules of `blocks`.
        heads: number of attention heads; it divides `width`.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3: initialization with
        a standard deviation of 0.02, of the layers' last matrices by 1 / sqrt(2 depth) smaller.
    """

    def __init__(self, context: int, classes: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(classes, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Layer(width, CausalAttention(width, heads), "tanh") for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("attention.out.weight", "narrow.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5 if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the token after each one.

        Args:
            tokens: int64, shape (B, T), T at most `context`.

        Returns:
            Shape (B, classes, T), the order that torch's cross_entropy takes with labels of shape (B, T).

        Raises:
            InputError: there are more tokens than positions.
        """
        count, context = tokens.shape[1], self.positions.num_embeddings
        if count > context:
            raise InputError(f"GPT: expected at most {context} tokens, found {count}")
        x = self.tokens(tokens) + self.positions(torch.arange(count, device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits.transpose(1, 2).contiguous()  # FSDP2 warns of views


def gpt_tiny(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a small GPT for windows of `shape[0]` tokens: 0.5 million parameters with 256 classes."""
    return GPT(shape[0], classes, width=96, depth=4, heads=3)


def gpt_small(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a GPT for windows of `shape[0]` tokens: 10.9 million parameters with 256 classes.

    Its width of 384, 6 layers and 6 heads are those of nanoGPT's model of characters (train_shakespeare_char.py).
    """
    return GPT(shape[0], classes, width=384, depth=6, heads=6)
