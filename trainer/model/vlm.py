"""The whole model: pictures and text in, a loss or logits out; and its directory on disk.

    model = VLM(SIZES["nano"].with_tokens(vocab_size=..., image_token_id=...))
    loss, targets = model(input_ids=inputs, targets=labels, pixel_values=media["pixel_values"],
                        position_ids=position_ids, segment_ids=segment_ids)
    (loss / global_count).backward()

DeepEncoder: pixels -> SAM and compressor -> CLIP; the features [CLIP, SAM] of every 64x64-pixel square go through one
linear projector. Each row of an image's grid is followed by the learned newline, each image ends in the learned view
separator; gundam's stitched tile map comes before the global view. These vectors replace the embeddings at the
placeholder positions.

The loss is a SUM over targets, to be divided by the global number of targets: so it does not depend on ranks, on
accumulation or on how rows were dealt. Scores are made in chunks, at positions that have a target only, and made again
in the backward pass: scores of a whole batch (8 rows of 8192 at a vocabulary of 49 k: 13 GB) never exist.

A directory of weights (`save_pretrained`, `load_pretrained`): model.safetensors (float32; a tied output head is not
stored twice), tokenizer.json, and config.json = {"format_version": 1, "model": VLMConfig, "mode": ..., "specials":
{name: id}, ...}. Nothing is ever unpickled.
"""

# Calling a torch module returns Any, as torch declares it.
# mypy: disable-error-code="no-any-return"

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shards.geometry import COMPRESSION, PATCH, TILE
from shards.masks import IGNORE
from trainer.model.clip import Clip
from trainer.model.config import VLMConfig
from trainer.model.decoder import Decoder, packed_mask
from trainer.model.sam import Attention, Sam
from trainer.pixels import PixelValues

FORMAT_VERSION = 1
SQUARE = PATCH * COMPRESSION  # pixels a side of what one visual token covers
LOSS_CHUNK = 4096  # target positions whose scores exist at one time
CPU_LOSS_CHUNK = 1024  # the same without a GPU, for the sake of the caches: a tenth of a micro step at a vocabulary of 8 k


class Loss(NamedTuple):
    """Cross entropy summed over targets (float32 scalar), or [B, T] if asked per token, and the number of targets (int64)."""

    loss: Tensor
    targets: Tensor


class DeepEncoder(nn.Module):
    """Views uint8 [N, 3, side, side] -> features [N, (side / 64)^2, 2 * width]: CLIP's, then SAM's, of every square."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.sam = Sam(config.sam)
        self.clip = Clip(config.sam.compressor[1], config.clip)

    def forward(self, views: Tensor) -> Tensor:
        compressed = self.sam(views.to(self.sam.pos_embed.dtype) / 127.5 - 1)  # mean and deviation .5
        return torch.cat([self.clip(compressed), compressed.flatten(2).transpose(1, 2)], -1)


class _TakePart(torch.autograd.Function):
    """x unchanged, with parameters in its graph that get zeros: a rank without images then reduces gradients like the
    others, at the price of writing zeros. (DDP's search for unused parameters walks the graph at every step.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


class VLM(nn.Module):
    """DeepEncoder, projector and decoder. Linear weights start as truncated normals of .02 (see `initialise`)."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        if config.decoder.vocab_size <= config.image_token_id or config.image_token_id < 0:
            raise ValueError("the config has no vocabulary yet: call config.with_tokens(...)")
        self.config = config
        self.encoder = DeepEncoder(config)
        self.projector = nn.Linear(2 * config.sam.compressor[1], config.decoder.width)
        self.image_newline = nn.Parameter(torch.zeros(config.decoder.width))
        self.view_separator = nn.Parameter(torch.zeros(config.decoder.width))
        self.decoder = Decoder(config.decoder)
        self.initialise()

    def initialise(self, std: float = 0.02) -> None:
        """Linears truncated normal, embeddings, newline, separator and CLS normal, all of `std`; SAM's relative positions
        zero as published. Convolutions keep torch's fan-in rule. Embeddings of deviation 1 made every trial run blind."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, Attention):
                nn.init.zeros_(module.rel_pos_h)
                nn.init.zeros_(module.rel_pos_w)
        sam, embeddings = self.encoder.sam, self.encoder.clip.embeddings
        for vector in (self.image_newline, self.view_separator, sam.pos_embed, embeddings.class_embedding):
            nn.init.normal_(vector, std=std)

    def set_recompute(self, *, encoder: bool, decoder: bool) -> None:
        """Activation checkpointing: keep only block borders and compute the inside again in the backward pass."""
        self.encoder.sam.recompute = self.encoder.clip.recompute = encoder
        self.decoder.recompute = decoder

    def stages(self, pixel_values: PixelValues) -> dict[int, tuple[Tensor, Tensor]]:
        """What the encoder makes of the views of each side: features [N, tokens, C] after the compressor, for monitoring, and
        [N, tokens, D] after the projector. Differentiable."""
        features = {side: self.encoder(views) for side, views in pixel_values.views.items()}
        width = self.config.sam.compressor[1]
        return {side: (x[..., width:], self.projector(x)) for side, x in features.items()}

    def encode_images(self, pixel_values: PixelValues) -> list[Tensor]:
        """The vectors of each image's placeholders [n, C], in the order of `pixel_values.images`."""
        maps = {side: iter(projected.view(len(projected), side // SQUARE, side // SQUARE, -1))
                for side, (_, projected) in self.stages(pixel_values).items()}
        images = []
        for side, w, h in pixel_values.images:
            parts = []
            if w * h:
                rows = [torch.cat([next(maps[TILE]) for _ in range(w)], 1) for _ in range(h)]
                parts.append(self._with_newlines(torch.cat(rows)))
            parts.append(self._with_newlines(next(maps[side])))
            images.append(torch.cat([*parts, self.view_separator.to(parts[0].dtype)[None]]))
        return images

    def _with_newlines(self, grid: Tensor) -> Tensor:
        """[rows, columns, C] -> [rows * (columns + 1), C], the newline after each row."""
        newline = self.image_newline.to(grid.dtype).expand(grid.shape[0], 1, -1)
        return torch.cat([grid, newline], 1).flatten(0, 1)

    def embed(self, input_ids: Tensor, pixel_values: PixelValues | None) -> Tensor:
        """Token embeddings [B, T, C] with the images' vectors in the place of the placeholders."""
        x: Tensor = self.decoder.embed_tokens(input_ids)
        if pixel_values is None:
            if not self.training:
                return x
            vision = (*self.encoder.parameters(), *self.projector.parameters(), self.image_newline, self.view_separator)
            take_part: Any = _TakePart.apply
            return take_part(x, *(parameter for parameter in vision if parameter.requires_grad))
        vectors = torch.cat(self.encode_images(pixel_values)).to(x.dtype)
        positions = pixel_values.positions
        if positions is None:
            positions = (input_ids.flatten() == self.config.image_token_id).nonzero()[:, 0]
        if len(positions) != len(vectors):
            raise ValueError(f"{len(positions)} placeholders (token {self.config.image_token_id}) in a batch whose "
                             f"{len(pixel_values.images)} images fill {len(vectors)}")
        return x.flatten(0, 1).index_copy(0, positions, vectors).view_as(x)

    def forward(self, input_ids: Tensor, targets: Tensor | None = None, pixel_values: PixelValues | None = None, *,
                position_ids: Tensor | None = None, segment_ids: Tensor | None = None, target_positions: Tensor | None = None,
                per_token: bool = False) -> Loss | Tensor:
        """Loss of the targets, or logits float [B, T, vocab_size] without targets.

        input_ids: int64 [B, T]. targets: int64 [B, T], already shifted, IGNORE (-1) where nothing is learned.
        pixel_values: all images of the batch, or None for a text-only batch.
        position_ids: int64 [B, T], restarting at 0 with each sample; None counts from 0.
        segment_ids: int32 [B, T], one value a sample, padding -1; None makes each row one sample.
        target_positions: int64 [n], flat positions of all targets other than IGNORE; None finds them, which on CUDA waits
            for the device.
        per_token: return the loss as float32 [B, T], zero where there is no target, instead of its sum.
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        mask = None if segment_ids is None else packed_mask(segment_ids)
        hidden = self.decoder(self.embed(input_ids, pixel_values), position_ids, mask)
        if targets is None:
            return self.decoder.logits(hidden)
        labels = targets.flatten()
        if target_positions is None:
            target_positions = (labels != IGNORE).nonzero()[:, 0]
        hidden, chosen = hidden.flatten(0, 1)[target_positions], labels[target_positions]
        size = LOSS_CHUNK if hidden.is_cuda else CPU_LOSS_CHUNK
        # No target at all gives one empty chunk, which keeps the graph whole.
        losses = [checkpoint(self._cross_entropy, *chunk, use_reentrant=False)
                  for chunk in zip(torch.split(hidden, size), torch.split(chosen, size))]
        count = torch.tensor(len(chosen), device=labels.device)
        if not per_token:
            return Loss(torch.stack([loss.sum() for loss in losses]).sum(), count)
        spread = torch.zeros(labels.shape, device=labels.device).index_copy(0, target_positions, torch.cat(losses))
        return Loss(spread.view_as(targets), count)

    def _cross_entropy(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.decoder.logits(hidden).float(), labels, reduction="none")


def save_pretrained(model: VLM, folder: Path, tokenizer_json: bytes, extra: dict[str, Any]) -> None:
    """Write the weights, the tokenizer and config.json into an existing folder, flushed to disk.

    extra goes into config.json beside the model's dimensions; it holds at least "mode" (the image mode that inference
    uses) and "specials" ({name: token id}). Making the folder appear as a whole is the caller's part.
    """
    if missing := {"mode", "specials"} - set(extra):
        raise ValueError(f"a checkpoint's extra fields lack {sorted(missing)}")
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"format_version": FORMAT_VERSION, "model": model.config.to_dict(), **extra}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())


def load_pretrained(folder: Path) -> tuple[VLM, dict[str, Any]]:
    """A model in evaluation mode on the CPU, and config.json without its "model" entry; ValueError if it is not one."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a checkpoint: it has no {name}")
    try:
        meta = json.loads((folder / "config.json").read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is damaged: {error}") from None
    if not isinstance(meta, dict) or meta.get("format_version") != FORMAT_VERSION or "model" not in meta:
        raise ValueError(f"{folder / 'config.json'} is not of checkpoint format {FORMAT_VERSION}")
    config = VLMConfig.from_dict(meta.pop("model"))
    with torch.device("meta"):
        model = VLM(config)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged or of another model: {error}") from error
    return model.eval(), meta
