"""The mixer: transformer blocks in which clicks and image meet (paper section 3.1, Eq. 3-4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_
from torch.nn.parameter import Parameter

LAYER_NORM_EPS = 1e-6  # released code


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
        # Fused: the N x N matrices never reach memory; they were most of a click's time in the released code.
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return projected


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
    """Adds image and prompt tokens and a learned position, then mixes them in `depth` blocks; no final norm."""

    def __init__(self, width: int, depth: int, num_heads: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.pos_embed = Parameter(trunc_normal_(Tensor(1, grid * grid, width), std=0.02))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))

    def forward(self, fused: Tensor, prompt: Tensor, grid: tuple[int, int]) -> Tensor:
        """fused, prompt: (B, N, C) on a `grid` of (h, w) tokens, N = h * w. Returns (B, N, C)."""
        x = fused + prompt + self.positions(grid)
        for block in self.blocks:
            x = block(x)
        return x

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position embedding at another grid, (1, h * w, C): bicubic, without antialiasing (released code)."""
        if grid == (self.grid, self.grid):
            return self.pos_embed
        image = self.pos_embed.transpose(1, 2).reshape(1, -1, self.grid, self.grid)  # (1, C, G, G)
        return F.interpolate(image, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
