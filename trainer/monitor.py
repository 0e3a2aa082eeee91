"""Is the model still looking at the pictures? Validation loss, the blind control, and what to do about a collapse.

A vision-language model can settle on treating its vision tokens as a constant: the loss goes on falling, as a language
model's does, and every picture gets one text. It shows in four numbers, most of them long before a score does:

    gap            loss with the pictures exchanged between samples, minus the true loss; near 0: the pictures do not matter
    vf             variance between images / mean square of the features, after the compressor and after the projector
    projected_rms  size of the projected features: a shared part that grows drowns what differs between images
    sam_grad_norm  how much of a gradient still reaches the first part of the encoder

Thresholds are those at which small models were seen to fail; none that fell below STOP_VF recovered while watched.
A quick check reads a few fixed rows (two forward passes and one more of the encoder, about the cost of a step or two).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from trainer.data.batch import Batch, exchange_images
from trainer.model.vlm import VLM

WARN_VF = 1e-3  # at the projector
STOP_VF = 1e-4  # at two checks running
WARN_SAM_GRADIENT = 0.03  # after the warm-up; times the whole gradient's norm where that is below 1, as when all is learned
WARN_GAP = 0.01  # after WARN_GAP_SAMPLES samples
WARN_GAP_SAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at some validation rows gave; None where no batch held two images to compare."""

    loss: float
    by_source: dict[str, float]
    blind_loss: float | None
    gap: float | None  # a target of the samples with images
    vf_compressor: float | None
    vf_projector: float | None
    projected_rms: float | None

    def to_json(self) -> dict[str, Any]:
        """For log.jsonl."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@torch.no_grad()
def look(model: VLM, batches: Iterator[Batch], sources: Sequence[str], autocast: Any) -> Look:
    """Validation losses and feature statistics over this rank's batches, joined over all ranks.

    sources: names to report by, the same on every rank; a sample of another source counts in the whole only. The blind loss
    is that of the same batch with its images exchanged; `gap` is the difference a target of the samples that have images.
    """
    index = {source: at for at, source in enumerate(sources)}
    device = next(model.parameters()).device
    # By source: loss and targets. Then: loss, targets, blind loss, targets of samples with images; number of views, and their
    # vf at the compressor, vf at the projector and mean square, each times that number.
    by_source = torch.zeros(len(sources), 2, dtype=torch.float64)
    sums = torch.zeros(8, dtype=torch.float64)
    was_training = model.training
    model.eval()
    for batch in batches:
        inputs, targets, media = batch
        with autocast():
            losses = model(input_ids=inputs, targets=targets, **media, per_token=True).loss.double().cpu()
            blind = losses
            if media["pixel_values"] is not None:
                exchanged = {**media, "pixel_values": exchange_images(media["pixel_values"])}
                blind = model(input_ids=inputs, targets=targets, **exchanged, per_token=True).loss.double().cpu()
                sums[4:] += _features(model, batch)
        learned = (targets != -1).cpu()
        image = (inputs == model.config.image_token_id).cpu()
        for at, row in enumerate(batch.rows):
            for span in row.samples:
                part = slice(span.start, span.stop)
                found = torch.tensor([float(losses[at, part].sum()), float(learned[at, part].sum())], dtype=torch.float64)
                sums[:2] += found
                sums[2] += float(blind[at, part].sum())
                if span.source in index:
                    by_source[index[span.source]] += found
                if bool(image[at, part].any()):
                    sums[3] += found[1]
    model.train(was_training)
    if dist.is_initialized():
        joined = torch.cat([sums, by_source.flatten()]).to(device)
        dist.all_reduce(joined)
        sums, by_source = joined[:8].cpu(), joined[8:].cpu().view(-1, 2)
    loss, count, blind_loss, image_count, views, vf_compressor, vf_projector, square = sums.tolist()
    return Look(
        loss=loss / max(1.0, count), by_source={source: float(total / number) for source, (total, number) in
                                                zip(sources, by_source.tolist()) if number},
        blind_loss=blind_loss / count if image_count else None,
        gap=(blind_loss - loss) / image_count if image_count else None,
        vf_compressor=vf_compressor / views if views else None, vf_projector=vf_projector / views if views else None,
        projected_rms=(square / views) ** 0.5 if views else None)


def variance_fraction(features: torch.Tensor) -> float:
    """Variance between images, by position and channel, over the mean square: features [N, tokens, C] -> 0 ... 1."""
    x = features.double()
    return float(x.var(0, unbiased=False).mean() / x.square().mean().clamp_min(1e-30))


def _features(model: VLM, batch: Batch) -> torch.Tensor:
    """(views, vf at the compressor * views, vf at the projector * views, mean square * views) of the sizes with two or more."""
    sums = torch.zeros(4, dtype=torch.float64)
    for compressed, projected in model.stages(batch.media["pixel_values"]).values():
        if (views := len(projected)) > 1:
            sums += views * torch.tensor([1.0, variance_fraction(compressed), variance_fraction(projected),
                                          float(projected.double().square().mean())], dtype=torch.float64)
    return sums


@dataclass(kw_only=True)
class Watch:
    """Judges looks one after another; its fields are part of a checkpoint."""

    low: int = 0  # checks running with vf below STOP_VF
    healthy: bool = False  # at the last check
    warned: list[str] = field(default_factory=list)  # kinds of warning now standing, so that each is said once

    def judge(self, seen: Look, *, sam_grad_norm: float | None, grad_norm: float = 1.0, after_warmup: bool,
              samples: int) -> tuple[list[str], bool]:
        """Warnings in plain words that are new since the last check, and whether the model has collapsed."""
        found = {}
        vf = seen.vf_projector
        if vf is not None and vf < WARN_VF:
            found["vf"] = (f"the image features hardly depend on the picture: variance between images is {vf:.1e} of their mean "
                           f"square after the projector (compressor: {seen.vf_compressor:.1e}); below {WARN_VF:g} is a bad sign")
        if after_warmup and sam_grad_norm is not None and sam_grad_norm < WARN_SAM_GRADIENT * min(1.0, grad_norm):
            found["sam"] = (f"almost no gradient reaches SAM: norm {sam_grad_norm:.3g}, below {WARN_SAM_GRADIENT:g}: "
                            "the vision side is no longer learning")
        if samples >= WARN_GAP_SAMPLES and seen.gap is not None and seen.gap < WARN_GAP:
            found["gap"] = (f"after {samples} samples the loss is the same with exchanged pictures (difference {seen.gap:.4f}): "
                            "the model does not look at them")
        new = [text for kind, text in found.items() if kind not in self.warned]
        self.warned = list(found)
        self.low = self.low + 1 if vf is not None and vf < STOP_VF else 0
        self.healthy = vf is not None and not found
        return new, self.low >= 2
