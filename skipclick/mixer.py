"""The mixer: transformer blocks in which clicks and image meet (paper section 3.1, Eq. 3-4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_
from torch.nn.parameter import Parameter

LAYER_NORM_EPS = 1e-6  # released code
SCORES_IN_CACHE = 1 << 21  # attention scores held at a time by the blocked kernel: 4 MB of bfloat16


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, C) -> (B, N, C)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, C / heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, C / heads)
        projected: Tensor = self.proj(attend(query, key, value).transpose(1, 2).flatten(2))
        return projected


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(D)) value over (B, heads, N, D): fused, so that no N x N matrix reaches memory.

    PyTorch's fused kernel multiplies bfloat16 on a CPU at a fraction of the speed of its matrix products; there blocks
    of one head's scores that fit the processor's cache take less than half the time.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        return _attend_by_blocks(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def _attend_by_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    batch, heads, tokens, width = query.shape
    rows = max(1, SCORES_IN_CACHE // tokens)
    query = query * width**-0.5
    mixed = query.new_empty(batch, tokens, heads, width).transpose(1, 2)  # what the projection reads, token by token
    for sample in range(batch):
        for head in range(heads):
            transposed = key[sample, head].T
            for first in range(0, tokens, rows):
                scores = query[sample, head, first : first + rows] @ transposed  # (rows, N)
                mixed[sample, head, first : first + rows] = scores.softmax(dim=-1) @ value[sample, head]
    return mixed


class Mlp(nn.Module):
    """Two-layer perceptron with exact GELU, hidden width 4 C."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return hidden


class Block(nn.Module):
    """Pre-norm transformer block without LayerScale or dropout."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class Mixer(nn.Module):
    """Adds prompt tokens to image tokens, then mixes them in `depth` blocks; no final norm."""

    def __init__(self, width: int, depth: int, num_heads: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.pos_embed = Parameter(trunc_normal_(torch.empty(1, grid * grid, width), std=0.02))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))

    def forward(self, tokens: Tensor, prompt: Tensor) -> Tensor:
        """tokens: image tokens plus `positions`, (B, N, C); prompt: (B, N, C). Returns (B, N, C)."""
        x = tokens + prompt
        for block in self.blocks:
            x = block(x)
        return x

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding at another grid, (1, h * w, C): bicubic, without antialiasing (released code)."""
        if grid == (self.grid, self.grid):
            return self.pos_embed
        image = self.pos_embed.transpose(1, 2).reshape(1, -1, self.grid, self.grid)  # (1, C, G, G)
        return F.interpolate(image, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
