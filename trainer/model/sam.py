"""SAM's image encoder with the 16x convolutional compressor: pixels -> a small feature map.

Windowed attention keeps the many patches affordable, four (published size) global blocks join the windows, and two
strided convolutions turn 16x16-pixel patches into one token per 64x64 pixels. Module names are those of the official
checkpoints (`blocks.0.attn.qkv`, `neck.0`, `net_2`), so loading one needs no table.

Decomposed relative positions add to the score of query q and key k the number h[q, row of k] + w[q, column of k].
Written out that is a bias of N x N numbers a head (400 MB a block for one 1024-pixel image in bf16, and its gradient).
Here both terms become coordinates instead: the query is extended by its row terms h[q, :] and column terms w[q, :], the
key by one-hot vectors of its row and column, and their dot product is the same sum. Values are filled up with zeros to
the same length, which flash attention asks for; nothing of size N x N is ever stored.
"""

# Calling a torch module returns Any, as torch declares it.
# mypy: disable-error-code="no-any-return"

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shards.geometry import PATCH
from trainer.model.config import SamConfig


def resize_grid(table: Tensor, height: int, width: int) -> Tensor:
    """A position table [H, W, C] for another grid [height, width, C]: bicubic, antialiased, as published."""
    if table.shape[:2] == (height, width):
        return table
    grid = table.permute(2, 0, 1)[None].float()
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return grid[0].permute(1, 2, 0)


def relative_rows(table: Tensor, size: int) -> Tensor:
    """The relative position table [2 * made_for - 1, C] as [size, size, C]: entry (q, k) belongs to distance q - k.

    Worked example, size 2: rows of the table stand for distances -1, 0, 1, so the result indexes [[1, 0], [2, 1]].
    """
    if table.shape[0] != 2 * size - 1:
        table = F.interpolate(table.T[None].float(), size=2 * size - 1, mode="linear")[0].T
    steps = torch.arange(size, device=table.device)
    return table[steps[:, None] - steps[None, :] + size - 1]


class Attention(nn.Module):
    """Multi-head attention over a grid [B, H, W, C] with decomposed relative positions."""

    def __init__(self, config: SamConfig, grid: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, config.width // config.heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, config.width // config.heads))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        tokens, size = height * width, channels // self.heads
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        grid = q.reshape(batch, self.heads, height, width, size)
        rows = torch.einsum("bnhwc,hkc->bnhwk", grid, relative_rows(self.rel_pos_h, height).to(q.dtype))
        columns = torch.einsum("bnhwc,wkc->bnhwk", grid, relative_rows(self.rel_pos_w, width).to(q.dtype))
        row_of = torch.eye(height, dtype=q.dtype, device=x.device).repeat_interleave(width, 0)
        column_of = torch.eye(width, dtype=q.dtype, device=x.device).repeat(height, 1)
        place = torch.cat([row_of, column_of], 1).expand(batch, self.heads, -1, -1)
        q = torch.cat([q * size**-0.5, rows.flatten(2, 3), columns.flatten(2, 3)], -1)
        k = torch.cat([k, place], -1)
        v = F.pad(v, (0, q.shape[-1] - size))
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :size]
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, channels))


class Block(nn.Module):
    """One pre-norm block; `window` 0 means global attention."""

    def __init__(self, config: SamConfig, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config, window or config.side // PATCH)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        lin1, lin2 = nn.Linear(config.width, config.mlp), nn.Linear(config.mlp, config.width)
        self.mlp = nn.Sequential(OrderedDict(lin1=lin1, gelu=nn.GELU(), lin2=lin2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + (self.windowed(y) if self.window else self.attn(y))
        return x + self.mlp(self.norm2(x))

    def windowed(self, x: Tensor) -> Tensor:
        """Attention inside windows; the grid is padded with zeros, which take part as SAM's do, and cut again."""
        batch, height, width, channels = x.shape
        side = self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        x = x.view(batch, rows, side, columns, side, channels).transpose(2, 3)
        x = self.attn(x.reshape(-1, side, side, channels))
        x = x.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        return x.reshape(batch, rows * side, columns * side, channels)[:, :height, :width]


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Sam(nn.Module):
    """Normalised pixels [B, 3, H, W] -> compressed map [B, compressor[1], H / 64, W / 64]."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        grid = config.side // PATCH
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, config.width, kernel_size=PATCH, stride=PATCH)})
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, config.width))
        windows = [0 if index in config.global_blocks else config.window for index in range(config.layers)]
        self.blocks = nn.ModuleList(Block(config, window) for window in windows)
        self.neck = nn.Sequential(
            nn.Conv2d(config.width, config.neck, kernel_size=1, bias=False),
            LayerNorm2d(config.neck, eps=1e-6),
            nn.Conv2d(config.neck, config.neck, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(config.neck, eps=1e-6),
        )
        self.net_2 = nn.Conv2d(config.neck, config.compressor[0], kernel_size=3, stride=2, padding=1, bias=False)
        self.net_3 = nn.Conv2d(*config.compressor, kernel_size=3, stride=2, padding=1, bias=False)
        self.recompute = False  # activation checkpointing, one block at a time

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels).permute(0, 2, 3, 1)
        x = x + resize_grid(self.pos_embed[0], x.shape[1], x.shape[2]).to(x.dtype)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute and self.training else block(x)
        return self.net_3(self.net_2(self.neck(x.permute(0, 3, 1, 2))))
