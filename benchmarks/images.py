"""Fitted images against the naive way, on the images of real parquet files: CPU time and bytes.

    python benchmarks/images.py                          every image below ../shared/data/hub, base mode
    python benchmarks/images.py --hub DIR --mode gundam  other data, another mode
    python benchmarks/images.py --resize                 the ways to scale, against Pillow's BICUBIC and LANCZOS

Naive is what a data set of pictures usually does: decode to PIL, `ImageOps.pad` to 1024 x 1024, encode as JPEG with Pillow's
defaults. The two run in turns (A B A B ...), medians of CPU time per set are printed, single-threaded.
"""

import argparse
import io
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.images import fit_image
from pipeline.images.resize import resample
from shards.geometry import stored_size

HUB = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "hub"


def images_by_set(hub: Path) -> dict[str, list[bytes]]:
    """Encoded images of every parquet file that has an `images` column, by the name of its folder."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(hub.rglob("*.parquet")):
        if "images" not in pq.read_schema(path).names:
            continue
        for row in pq.read_table(path, columns=["images"])["images"].to_pylist():
            found.setdefault(path.parent.name, []).extend(image["bytes"] for image in row or [])
    return {name: images for name, images in found.items() if images}


def naive(data: bytes) -> int:
    """Bytes that the naive way stores."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    out = io.BytesIO()
    ImageOps.pad(image, (1024, 1024), color=(127, 127, 127)).save(out, "JPEG")
    return len(out.getvalue())


def fitted(data: bytes, mode: str) -> int:
    """Bytes that fit_image stores."""
    result = fit_image(data, mode)
    return len(result.data) + len(result.tiles_data or b"")


def cpu(work: Callable[[bytes], int], images: list[bytes]) -> tuple[float, int]:
    """CPU milliseconds an image, and bytes of all."""
    start = time.process_time()
    total = sum(work(data) for data in images)
    return (time.process_time() - start) * 1e3 / len(images), total


def against_naive(hub: Path, mode: str, rounds: int) -> None:
    print(f"{'set':24}{'images':>8}{'naive ms':>10}{'ours ms':>10}{'ratio':>8}{'raw MB':>10}{'naive':>8}{'ours':>8}")
    sums = np.zeros(5)
    for name, images in images_by_set(hub).items():
        runs = [(cpu(naive, images), cpu(lambda data: fitted(data, mode), images)) for _ in range(rounds)]
        slow, fast = (statistics.median(run[side][0] for run in runs) for side in (0, 1))
        raw, naive_bytes, our_bytes = sum(map(len, images)), runs[0][0][1], runs[0][1][1]
        sums += np.array([slow * len(images), fast * len(images), raw, naive_bytes, our_bytes])
        print(f"{name:24}{len(images):8}{slow:10.2f}{fast:10.2f}{slow / fast:8.1f}{raw / 1e6:10.2f}{naive_bytes / raw:8.2f}"
              f"{our_bytes / raw:8.2f}", flush=True)
    slow, fast, raw, naive_bytes, our_bytes = sums
    count = sum(map(len, images_by_set(hub).values()))
    print(f"{'all':24}{count:8}{slow / count:10.2f}{fast / count:10.2f}{slow / fast:8.1f}{raw / 1e6:10.2f}{naive_bytes / raw:8.2f}"
          f"{our_bytes / raw:8.2f}")


def psnr(reference: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Decibels; 99 for equal pixels."""
    error = float(np.mean((reference.astype(np.float32) - other) ** 2))
    return 10 * float(np.log10(255 ** 2 / error)) if error else 99.0


def ssim(reference: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean structural similarity of the luminance, Gaussian window of 11 pixels."""
    a, b = (image.astype(np.float32).mean(axis=2) if image.ndim == 3 else image.astype(np.float32) for image in (reference, other))

    def blur(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.GaussianBlur(x, (11, 11), 1.5), np.float32)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b, cov = blur(a * a) - mean_a ** 2, blur(b * b) - mean_b ** 2, blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a ** 2 + mean_b ** 2 + c1) * (var_a + var_b + c2))))


def ways(image: Image.Image, size: tuple[int, int]) -> dict[str, Callable[[], NDArray[np.uint8]]]:
    """The ways to scale one gray or RGB picture to (width, height)."""
    pixels = np.array(image)
    filters = {"Pillow BICUBIC": Image.Resampling.BICUBIC, "Pillow LANCZOS": Image.Resampling.LANCZOS,
               "Pillow BILINEAR": Image.Resampling.BILINEAR, "Pillow HAMMING": Image.Resampling.HAMMING}
    pillow = {label: lambda kind=kind: np.asarray(image.resize(size, kind)) for label, kind in filters.items()}
    return {**pillow,
            "OpenCV CUBIC": lambda: np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), np.uint8),
            "OpenCV AREA": lambda: np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8),
            "here": lambda: resample(pixels, size)}


def ways_to_scale(hub: Path, per_set: int, rounds: int) -> None:
    """Every way, on the images that base mode shrinks: CPU milliseconds, PSNR and SSIM against BICUBIC and LANCZOS."""
    for name, images in images_by_set(hub).items():
        scores: dict[str, list[list[float]]] = {}
        for data in images:
            image = Image.open(io.BytesIO(data))
            if max(image.size) <= 1024 or len(scores.get("here", [])) >= per_set:
                continue
            image = image.convert("L" if image.mode in ("1", "L", "P") else "RGB")
            each = ways(image, stored_size("base", *image.size))
            bicubic, lanczos = each["Pillow BICUBIC"](), each["Pillow LANCZOS"]()
            for label, way in each.items():
                times = []
                for _ in range(rounds):
                    start = time.process_time()
                    result = way()
                    times.append((time.process_time() - start) * 1e3)
                scores.setdefault(label, []).append([statistics.median(times), psnr(bicubic, result), psnr(lanczos, result),
                                                     ssim(bicubic, result), ssim(lanczos, result)])
        if scores:
            print(f"\n{name}: {len(scores['here'])} images")
            print(f"{'':20}{'CPU ms':>8}{'dB BICUBIC':>12}{'dB LANCZOS':>12}{'SSIM':>8}{'SSIM':>8}")
        for label, values in scores.items():
            print("{:20}{:8.2f}{:12.1f}{:12.1f}{:8.4f}{:8.4f}".format(label, *np.mean(values, axis=0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hub", type=Path, default=HUB)
    parser.add_argument("--mode", default="base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resize", action="store_true")
    parser.add_argument("--per-set", type=int, default=12, help="images a set for --resize")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    warnings.simplefilter("ignore")
    if options.resize:
        ways_to_scale(options.hub, options.per_set, options.rounds)
    else:
        against_naive(options.hub, options.mode, options.rounds)


if __name__ == "__main__":
    main()
