"""How many floating-point operations a batch needs, and how many a device could do: for MFU.

Counted from the dimensions: two per weight of every matrix and position, plus scores and values of attention over what a
position may see (a sample's own past, a window, an image). A trained part costs three times its forward pass; a part that
stays frozen, with nothing trained before it, costs one. Activation checkpointing does not count as work.

Worked example, one Llama layer of width C, feed-forward M, over a sample of n tokens:
2 n (2 C^2 + 2 C C_kv + 3 C M) + 2 n^2 C, half of the n^2 scores being masked.
"""

from collections.abc import Collection, Iterable

from shards.geometry import COMPRESSION, PATCH
from trainer.data.batch import RowInfo
from trainer.model.config import VLMConfig
from trainer.pixels import count_views

PEAK = {  # dense bf16 operations a second, from the vendors' data sheets; matched against the device's name, in this order
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "H20": 148e12, "A100": 312e12, "L40S": 362e12,
    "A10G": 70e12, "A40": 150e12, "L4": 121e12, "RTX 5090": 210e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12,
}


def peak_of(device_name: str) -> float | None:
    """Peak of a device by its name; None for one that is not listed, and for a CPU."""
    return next((peak for name, peak in PEAK.items() if name in device_name), None)


def encoder_view(config: VLMConfig, side: int) -> tuple[float, float]:
    """Forward operations of one view of that side: (SAM with neck and compressor, CLIP with projector)."""
    sam, width = config.sam, config.sam.compressor[1]
    grid = side // PATCH
    n = grid * grid
    block = 4 * sam.width**2 + 2 * sam.width * sam.mlp
    seen = [min(n, sam.window**2) if i not in sam.global_blocks else n for i in range(sam.layers)]
    total = 2.0 * n * (3 * PATCH**2 * sam.width + sam.layers * block) + sum(4.0 * n * keys * sam.width for keys in seen)
    total += 2.0 * n * (sam.width * sam.neck + 9 * sam.neck**2)
    total += 2.0 * n / 4 * 9 * sam.neck * sam.compressor[0] + 2.0 * n / 16 * 9 * sam.compressor[0] * width
    tokens = (grid // COMPRESSION) ** 2 + 1
    clip = config.clip.layers * (2.0 * tokens * (4 * width**2 + 2 * width * config.clip.mlp) + 4.0 * tokens**2 * width)
    return total, clip + 2.0 * tokens * 2 * width * config.decoder.width


def decoder_samples(config: VLMConfig, lengths: Iterable[int], targets: int) -> float:
    """Forward operations of the decoder over samples of those lengths, with scores at `targets` positions."""
    decoder = config.decoder
    kv = decoder.width * decoder.kv_heads // decoder.heads
    layer = 2 * decoder.width**2 + 2 * decoder.width * kv + 3 * decoder.width * decoder.mlp
    work = sum(decoder.layers * (2.0 * n * layer + 2.0 * n * n * decoder.width) for n in lengths)
    return work + 2.0 * targets * decoder.width * decoder.vocab_size


def batch_flops(config: VLMConfig, rows: Iterable[RowInfo], targets: int, frozen: Collection[str] = ()) -> float:
    """Operations of one training step over these rows."""
    sam = clip = 0.0
    lengths = []
    for row in rows:
        lengths += [span.stop - span.start for span in row.samples]
        for side, count in count_views(row.images).items():
            first, second = encoder_view(config, side)
            sam, clip = sam + count * first, clip + count * second
    below = {"sam", "compressor"} <= set(frozen)
    whole = below and {"clip", "projector"} <= set(frozen)
    return sam * (1 if below else 3) + clip * (1 if whole else 3) + decoder_samples(config, lengths, targets) * 3
