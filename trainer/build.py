"""From the settings of a run to what it trains: model, optimizer, and which parameter belongs to which part."""

import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from trainer import checkpoint
from trainer.data.batch import Rules
from trainer.model.config import SIZES
from trainer.model.vlm import VLM
from trainer.place import Place
from trainer.pretrained import PARTS, initialise, open_source
from trainer.settings import Settings

Parts = dict[str, list[torch.nn.Parameter]]


def build(settings: Settings, manifest: dict[str, Any], tokenizer: bytes, place: Place) -> tuple[VLM, Optimizer, Parts]:
    """A model with fresh or given weights, on its device; its optimizer; and the trained parameters of each part."""
    torch.manual_seed(settings.seed)
    rules = Rules.of(manifest, "all")
    model = VLM(SIZES[settings.model].with_tokens(vocab_size=rules.vocab_size, image_token_id=rules.image_id))
    going_on = settings.resume and checkpoint.folders(settings.out)
    if settings.init and place.rank == 0 and not going_on:  # DDP hands rank 0's weights to the others
        folder = Path(settings.init)
        is_run = folder.is_dir() and checkpoint.folders(folder)
        source = open_source(str(checkpoint.find(folder, "best")) if is_run else settings.init)
        report = initialise(model, source, tokenizer)
        print("\n".join(report.lines()), file=sys.stderr)
    model.set_recompute(encoder=settings.recomputes("encoder"), decoder=settings.recomputes("decoder"))
    model.to(place.device).train()
    parts: Parts = {part: [] for part in PARTS}
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        part = next(part for part, pattern in PARTS.items() if re.match(pattern, name))
        if part in settings.freeze:
            parameter.requires_grad_(False)
            continue
        parts[part].append(parameter)
        # Decay pulls on matrices and kernels alone: not on biases, norms, embeddings and position tables.
        decays = parameter.ndim >= 2 and not re.search(r"embed|rel_pos", name)
        key = (settings.group_lr.get(part, settings.lr), settings.weight_decay if decays else 0.0)
        groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("--freeze leaves nothing to train")
    optimizer = AdamW([{"params": group, "lr": rate, "peak": rate, "weight_decay": decay}
                       for (rate, decay), group in groups.items()], betas=settings.betas, fused=True)
    if settings.compile or (settings.compile is None and place.on_gpu and settings.model != "micro"):
        # Block by block: one compilation serves all blocks of a kind, and the number of images may change.
        for block in (*model.encoder.sam.blocks, *model.encoder.clip.transformer["layers"].children(), *model.decoder.layers):
            block.compile()
    return model, optimizer, parts
