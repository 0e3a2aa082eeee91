"""The decoder: a Llama (RoPE, RMSNorm, SwiGLU, grouped-query attention), over packed rows or with a cache.

A row holds several samples. `packed_mask` turns their segment ids into what attention needs: on CUDA a block mask for
flex attention, which skips whole blocks of other samples and of the future, elsewhere where each sample begins, for causal
SDPA sample by sample. So scores between samples are never computed. Module names are Llama's own
(`layers.0.self_attn.q_proj`), so public checkpoints load without a table.
"""

# Calling a torch module returns Any, as torch declares it.
# mypy: disable-error-code="no-any-return"

from functools import lru_cache
from itertools import pairwise, repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from trainer.model.config import DecoderConfig


@lru_cache
def _compiled(function: Any) -> Any:
    """Uncompiled, flex attention and its mask write out T x T scores. Made on first use: the compiler takes 2 s to import."""
    return torch.compile(function, dynamic=False)


def flex_mask(segment_ids: Tensor, *, compiled: bool = True) -> BlockMask:
    """Flex attention's block mask of packed rows; see packed_mask."""
    batch, length = segment_ids.shape

    def same_sample(b: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (segment_ids[b, q] == segment_ids[b, k])

    make: Any = _compiled(create_block_mask) if compiled else create_block_mask
    return make(same_sample, batch, None, length, length, device=str(segment_ids.device))


Lengths = list[int]
"""Of the samples of all rows, one row after the other; padding counts as a sample, so they add up to B * T."""

Mask = BlockMask | Lengths | Tensor | None
"""What `attend` takes. A Tensor is a boolean mask for SDPA, [B, 1, T, S] (generation has one)."""


def packed_mask(segment_ids: Tensor) -> BlockMask | Lengths:
    """Who may look at whom: earlier positions of the same sample and oneself.

    segment_ids: int32 [B, T], one value a sample, whose positions stand together; padding has a value of its own (-1).
    Returns a BlockMask on CUDA, else Lengths. Worked example: [[0, 0, 1, -1], [0, 0, 0, 0]] gives [2, 1, 1, 4].
    """
    if segment_ids.is_cuda:
        return flex_mask(segment_ids)
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    bounds = [*begins.flatten().nonzero()[:, 0].tolist(), segment_ids.numel()]
    return [stop - start for start, stop in pairwise(bounds)]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Grouped-query attention of q [B, H, T, d] over k, v [B, G, S, d]; without a mask causal, T being S."""
    if isinstance(mask, BlockMask):
        # A layer that is being compiled takes the kernel in; compiling it twice would not help.
        plain = torch.compiler.is_compiling() or not q.is_cuda
        kernel: Any = flex_attention if plain else _compiled(flex_attention)
        return kernel(q, k, v, block_mask=mask, enable_gqa=True)
    if isinstance(mask, list):
        # [B, H, T, d] as [1, H, B * T, d]: then a sample is a slice, whatever row it stands in.
        samples = zip(*(torch.split(x.transpose(0, 1).flatten(1, 2)[None], mask, 2) for x in (q, k, v)))
        done = [F.scaled_dot_product_attention(q_, k_, v_, is_causal=True, enable_gqa=True) for q_, k_, v_ in samples]
        return torch.cat(done, 2).view(q.shape[1], q.shape[0], *q.shape[2:]).transpose(0, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


class LayerCache:
    """Keys and values of one layer, [B, G, capacity, d]; `length` positions are filled. Allocated by the first `extend`."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new positions and return all so far."""
        end = self.length + k.shape[2]
        assert end <= self.capacity
        if not self.length:
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.keys, self.values = k.new_zeros(shape), v.new_zeros(shape)
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = k, v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows of the batch but those: finished texts cost nothing more."""
        self.keys, self.values = self.keys[rows], self.values[rows]


Rope = tuple[Tensor, Tensor]
"""cos and sin of every position, [B, 1, T, d], in float32."""


def rotary_angles(position_ids: Tensor, config: DecoderConfig) -> Rope:
    """Of int64 positions [B, T]."""
    steps = torch.arange(0, config.head_dim, 2, device=position_ids.device, dtype=torch.float32)
    frequencies = 1.0 / config.rope_theta ** (steps / config.head_dim)
    angles = (position_ids[..., None].float() * frequencies).repeat(1, 1, 2)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Queries or keys [B, H, T, d], turned by their positions."""
    (first, second), (cos, sin) = x.chunk(2, -1), rope
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, rope: Rope, mask: Mask, cache: LayerCache | None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (project(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
                   for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, rope), rotate(k, rope)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).reshape(batch, length, width))


class Mlp(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp, bias=False)
        self.down_proj = nn.Linear(config.mlp, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, rope: Rope, mask: Mask, cache: LayerCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings [B, T, C] -> hidden states [B, T, C]; `logits` reads the vocabulary off them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.lm_head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        self.recompute = False  # activation checkpointing, one layer at a time

    def forward(self, x: Tensor, position_ids: Tensor, mask: Mask, caches: list[LayerCache] | None = None) -> Tensor:
        rope = rotary_angles(position_ids, self.config)
        for layer, cache in zip(self.layers, caches or repeat(None)):
            more = (rope, mask, cache)
            x = checkpoint(layer, x, *more, use_reentrant=False) if self.recompute and self.training else layer(x, *more)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., vocab_size] of hidden states [..., C]."""
        return F.linear(hidden, self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight)
