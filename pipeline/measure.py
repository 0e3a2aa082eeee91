"""How fast this machine fits images and encodes text: a second of real work, for the hours that a plan estimates.

    python -m pipeline.measure      # prints seconds an image (fixed, and per MB of its file) and per MB of text

Images are two PNG pages drawn on the spot, small and large, fitted as the build does; the cost is taken as linear in
the file's bytes. Text is encoded with a small byte-level BPE: the vocabulary's size hardly changes the speed. The rest
of a build (reading, packing, writing) was below a tenth of these on every recipe tried, and is added as such.
"""

import io
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.images import fit_image

OVERHEAD = 1.1
SECONDS_EACH = 0.15     # how long one thing is repeated


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Seconds of one core. An image of n MB in mode m costs image_fixed[m] + n * image_per_mb[m]."""

    image_fixed: dict[str, float]
    image_per_mb: dict[str, float]
    text_per_mb: float

    def seconds(self, images: int, image_bytes: int, mode: str, text_bytes: int) -> float:
        """Core seconds to build samples with so many images of so many bytes, and so much text."""
        pictures = images * self.image_fixed[mode] + image_bytes / 1e6 * self.image_per_mb[mode]
        return OVERHEAD * (pictures + text_bytes / 1e6 * self.text_per_mb)


def page(width: int, height: int) -> bytes:
    """A PNG page of dense words."""
    rng = random.Random(0)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for y in range(8, height - 8, 13):
        draw.text((8, y), " ".join("".join(rng.choices("aeioustrnlm", k=rng.randint(2, 9))) for _ in range(width // 38)),
                  fill=(rng.randrange(90),) * 3)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def per_call(call: Callable[[], object]) -> float:
    """Seconds of the quickest of a few calls."""
    best, until = float("inf"), time.perf_counter() + SECONDS_EACH
    while True:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > until:
            return best


def measure(modes: Iterable[str]) -> Speed:
    """Measures this machine now, for the given image modes; about half a second a mode."""
    small, large = page(320, 240), page(1240, 1754)
    fixed, per_mb = {}, {}
    for mode in sorted(set(modes)):
        low, high = per_call(partial(fit_image, small, mode)), per_call(partial(fit_image, large, mode))
        per_mb[mode] = max(0.0, (high - low) / ((len(large) - len(small)) / 1e6))
        fixed[mode] = max(0.0, low - per_mb[mode] * len(small) / 1e6)
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(2000)]
    text = " ".join(rng.choices(words, k=40_000))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator([text[:50_000]], trainers.BpeTrainer(vocab_size=1000, show_progress=False))
    lines = [text[i:i + 500] for i in range(0, len(text), 500)]
    seconds = per_call(lambda: [bpe.encode(line) for line in lines])
    return Speed(image_fixed=fixed, image_per_mb=per_mb, text_per_mb=seconds / (len(text) / 1e6))


if __name__ == "__main__":
    print(measure(["tiny", "small", "base", "large", "gundam"]))
