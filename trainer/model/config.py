"""The model's dimensions: one frozen dataclass a part, three sizes, JSON both ways.

    config = SIZES["nano"].with_tokens(vocab_size=49163, image_token_id=49161)
    VLMConfig.from_dict(config.to_dict()) == config

`micro` is for tests and the demo (about 3 M parameters, seconds on a CPU), `nano` the whole model in at most 30 M
parameters beside the embeddings, `full` the published DeepEncoder (SAM-B, compressor, CLIP-L) with a decoder of
SmolLM2-135M's dimensions: the compact decoder of stage 1, whose public weights can start it.

The encoder's tables are made for images of `SamConfig.side` pixels and are interpolated for every other mode. nano and
micro use windows of 8 and 4 patches, which divide the grid of every mode, so that no window is filled up with padding
(14 patches, as published, pad a 256-pixel image's 16x16 grid to 28x28).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from shards.geometry import COMPRESSION, PATCH


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """SAM's image encoder, its neck and the 16x compressor. Lengths are channels unless said."""

    side: int  # pixels; the absolute and the global blocks' relative position tables are made for it
    width: int
    layers: int
    heads: int
    mlp: int
    window: int  # patches
    global_blocks: tuple[int, ...]
    neck: int
    compressor: tuple[int, int]  # the last is also CLIP's width


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """CLIP's transformer over the compressor's map: quick-GELU, one LayerNorm before the layers, none after."""

    layers: int
    heads: int
    mlp: int
    grid: int  # visual tokens a side of the position table


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A Llama decoder: RoPE, RMSNorm, SwiGLU, grouped-query attention."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tied: bool = True
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_positions: int = 8192  # written into an export; RoPE itself has no table
    vocab_size: int = 0  # with_tokens sets it

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class VLMConfig:
    """Everything a model is built from; `with_tokens` must have been called on an entry of SIZES."""

    sam: SamConfig
    clip: ClipConfig
    decoder: DecoderConfig
    image_token_id: int = -1

    def with_tokens(self, *, vocab_size: int, image_token_id: int) -> "VLMConfig":
        """The same dimensions for a tokenizer of `vocab_size` ids whose placeholder is `image_token_id`."""
        if not 0 <= image_token_id < vocab_size:
            raise ValueError(f"image token id {image_token_id} is not inside the vocabulary of {vocab_size}")
        decoder = dataclasses.replace(self.decoder, vocab_size=vocab_size)
        return dataclasses.replace(self, decoder=decoder, image_token_id=image_token_id)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dicts and lists, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "VLMConfig":
        """The inverse of to_dict, also after JSON; ValueError names a missing or unknown field."""
        try:
            sam = SamConfig(**{**data["sam"], **{name: tuple(data["sam"][name]) for name in ("global_blocks", "compressor")}})
            return cls(sam=sam, clip=ClipConfig(**data["clip"]), decoder=DecoderConfig(**data["decoder"]),
                       image_token_id=data["image_token_id"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a model config of this version: {error}") from error

    def __post_init__(self) -> None:
        for name, width, heads in (("sam", self.sam.width, self.sam.heads), ("clip", self.sam.compressor[1], self.clip.heads),
                                   ("decoder", self.decoder.width, self.decoder.heads),
                                   ("decoder kv", self.decoder.heads, self.decoder.kv_heads)):
            if heads < 1 or width % heads:
                raise ValueError(f"{name}: {width} does not divide by {heads} heads")
        if self.decoder.head_dim % 2:
            raise ValueError(f"decoder: rotary positions need an even head size, not {self.decoder.head_dim}")
        if self.sam.side % (PATCH * COMPRESSION):
            raise ValueError(f"sam: side {self.sam.side} is not a multiple of {PATCH * COMPRESSION} pixels")


SIZES: dict[str, VLMConfig] = {
    "micro": VLMConfig(
        sam=SamConfig(side=256, width=64, layers=3, heads=2, mlp=256, window=4, global_blocks=(1,), neck=64,
                      compressor=(128, 192)),
        clip=ClipConfig(layers=2, heads=6, mlp=768, grid=4),
        decoder=DecoderConfig(width=192, layers=3, heads=6, kv_heads=2, mlp=512),
    ),
    "nano": VLMConfig(
        sam=SamConfig(side=640, width=256, layers=6, heads=4, mlp=1024, window=8, global_blocks=(2, 5), neck=128,
                      compressor=(256, 384)),
        clip=ClipConfig(layers=4, heads=6, mlp=1536, grid=10),
        decoder=DecoderConfig(width=384, layers=8, heads=6, kv_heads=2, mlp=1024),
    ),
    "full": VLMConfig(
        sam=SamConfig(side=1024, width=768, layers=12, heads=12, mlp=3072, window=14, global_blocks=(2, 5, 8, 11), neck=256,
                      compressor=(512, 1024)),
        clip=ClipConfig(layers=24, heads=16, mlp=4096, grid=16),
        decoder=DecoderConfig(width=576, layers=30, heads=9, kv_heads=3, mlp=1536, rope_theta=100000.0),
    ),
}  # fmt: skip
