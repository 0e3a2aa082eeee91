"""CLIP's transformer without its patch stem: it reads the compressor's map instead of pixels.

A CLS token goes in front, positions are added (bicubic, antialiased for other grids), one LayerNorm comes before the
layers and none after. The patch convolution of CLIP is left out: it would never run, and DDP waits for the gradients
of every parameter. Module names are those of the official checkpoints (`pre_layrnorm` is how they spell it).
"""

# Calling a torch module returns Any, as torch declares it.
# mypy: disable-error-code="no-any-return"

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.model.config import ClipConfig
from trainer.model.sam import resize_grid


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv_proj(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).reshape(batch, tokens, width))


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Layer(nn.Module):
    def __init__(self, width: int, config: ClipConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = Attention(width, config.heads)
        self.layer_norm2 = nn.LayerNorm(width)
        fc1, fc2 = nn.Linear(width, config.mlp), nn.Linear(config.mlp, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, gelu=QuickGELU(), fc2=fc2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    """The map [B, C, h, w] -> [B, 1 + h * w, C] with CLS first and positions added."""

    def __init__(self, width: int, config: ClipConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.position_embedding = nn.Embedding(config.grid**2 + 1, width)

    def forward(self, features: Tensor) -> Tensor:
        batch, width, rows, columns = features.shape
        table = self.position_embedding.weight
        positions = resize_grid(table[1:].view(self.grid, self.grid, width), rows, columns).reshape(-1, width)
        x = features.flatten(2).transpose(1, 2) + positions.to(features.dtype)
        cls = (self.class_embedding + table[0]).to(x.dtype).expand(batch, 1, width)
        return torch.cat([cls, x], 1)


class Clip(nn.Module):
    """The compressor's map [B, C, h, w] -> tokens without CLS [B, h * w, C]."""

    def __init__(self, width: int, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(width, config)
        self.pre_layrnorm = nn.LayerNorm(width)
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(Layer(width, config) for _ in range(config.layers))})
        self.recompute = False  # activation checkpointing, one layer at a time

    def forward(self, features: Tensor) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(features))
        for layer in self.transformer["layers"].children():
            x = checkpoint(layer, x, use_reentrant=False) if self.recompute and self.training else layer(x)
        return x[:, 1:]
