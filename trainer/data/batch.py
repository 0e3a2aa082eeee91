"""From the samples of packed rows to the arrays of a batch.

A worker turns one row into a flat buffer (`write_row`): four int32 vectors (ids, targets, positions, segments) and then the
pixels of its images, uint8 and grouped by size. The training process copies the buffers of a few rows into one (pinned)
batch (`assemble`). Pixels are copied twice and never converted on the way; they are normalised on the device.

A batch is the triple `inputs, targets, media`, and `model(input_ids=inputs, targets=targets, **media)` is the call:

    inputs                    int64 [B, T]   token ids, the rest of a row filled with padding
    targets                   int64 [B, T]   already shifted, IGNORE (-1) where nothing is learned
    media["pixel_values"]     PixelValues, or None for a text-only batch
    media["position_ids"]     int64 [B, T]   from 0 in each sample
    media["segment_ids"]      int32 [B, T]   0, 1, ... by sample within the row, padding -1
    media["target_positions"] int64 [n]      where targets are, so that no device is asked
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards import geometry, masks
from shards.reader import DamagedRow, parse_row
from shards.sample import Sample
from shards.table import shard_name
from trainer.pixels import PixelValues, count_views, cut_tiles, decode_image, place

PATCH_BYTES = geometry.PATCH * geometry.PATCH * 3
VECTORS = 4  # ids, targets, positions, segments

Buffer = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a row must obey and how its targets are made; the same for all directories of a run."""

    seq_len: int
    vocab_size: int
    image_id: int
    pad_id: int
    bos_id: int
    loss: masks.Loss = "all"

    @classmethod
    def of(cls, manifest: dict[str, Any], loss: masks.Loss) -> "Rules":
        """The rules of a shard directory."""
        ids = {name.strip("<|>"): token for name, token in manifest["specials"].items()}
        return cls(seq_len=manifest["seq_len"], vocab_size=manifest["vocab_size"], image_id=ids["image"], pad_id=ids["pad"],
                   bos_id=ids["bos"], loss=loss)


@dataclass(frozen=True, kw_only=True)
class SampleSpan:
    """Where a sample stands in its row, and what it is."""

    key: str
    source: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class RowInfo:
    """What crosses the process boundary beside the pixels: how to read a row's buffer, and whose it is."""

    place: str  # directory, shard and offset, for messages
    tokens: int = 0
    images: tuple[tuple[int, int, int], ...] = ()  # (side, w, h) of each image
    samples: tuple[SampleSpan, ...] = ()
    damage: str = ""  # why a row is left out; it then takes part as padding

    @property
    def views(self) -> dict[int, int]:
        """Number of views by side, in the buffer's order."""
        return count_views(self.images)


def row_bytes(rows: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Bytes of the buffers of those entries of a row table: int64 [n]."""
    vectors = rows["tokens"].astype(np.int64) * (4 * VECTORS)
    pixels: npt.NDArray[np.int64] = rows["patches"].astype(np.int64) * PATCH_BYTES
    return vectors + pixels


def write_row(data: bytes | memoryview, row: Any, rules: Rules, out: Buffer, *, where: str = "", split: str = "train") -> RowInfo:
    """Decode one packed row into `out` (at least row_bytes long). DamagedRow, naming shard and offset, if it cannot be."""
    name = f"{shard_name(split, int(row['shard']))} at offset {int(row['offset'])}"
    place_name = f"{where}/{name}" if where else name
    try:
        samples = parse_row(data, row, split)
        return _write_samples(samples, row, rules, out, place_name)
    except DamagedRow as error:
        raise DamagedRow(f"{where}/{error}" if where else str(error)) from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DamagedRow(f"{place_name}: {error}") from None


def _write_samples(samples: Sequence[Sample], row: Any, rules: Rules, out: Buffer, place_name: str) -> RowInfo:
    total = sum(len(sample.ids) for sample in samples)
    if total > rules.seq_len:
        raise ValueError(f"{total} tokens in a row of {rules.seq_len}")
    images = _images(samples)
    if (found := sum(geometry.patches(mode, grid) for _, _, mode, grid in images)) != int(row["patches"]):
        raise ValueError(f"images of {found} patches where the table says {int(row['patches'])}")
    vectors = out[:4 * VECTORS * total].view(np.int32).reshape(VECTORS, total)
    at, spans = 0, []
    for segment, sample in enumerate(samples):
        wanted = sum(geometry.placeholders(mode, grid) for owner, _, mode, grid in images if owner is sample)
        try:
            masks.check(sample.ids, sample.mask, image_id=rules.image_id, pad_id=rules.pad_id, bos_id=rules.bos_id,
                        placeholders=wanted, vocab_size=rules.vocab_size)
        except ValueError as error:
            raise ValueError(f"{sample.key}: {error}") from None
        end = at + len(sample.ids)
        vectors[0, at:end] = sample.ids
        vectors[1, at:end] = masks.targets(sample.ids, sample.mask, rules.loss)
        vectors[2, at:end] = np.arange(end - at)
        vectors[3, at:end] = segment
        spans.append(SampleSpan(key=sample.key, source=str(sample.meta.get("source", "")), start=at, stop=end))
        at = end
    info = RowInfo(place=place_name, tokens=total, samples=tuple(spans),
                   images=tuple((geometry.get_mode(mode).side, *grid) for _, _, mode, grid in images))
    _write_pixels(images, info.views, out[vectors.nbytes:])
    return info


def _images(samples: Sequence[Sample]) -> list[tuple[Sample, int, str, tuple[int, int]]]:
    """All images of a row in placeholder order: (sample, index in it, mode, tile grid)."""
    return [(sample, index, image["mode"], (int(image["tiles"][0]), int(image["tiles"][1])))
            for sample in samples for index, image in enumerate(sample.meta["images"])]


def _write_pixels(images: Sequence[tuple[Sample, int, str, tuple[int, int]]], views: dict[int, int], out: Buffer) -> None:
    """Views of all images, those of one side together, in image order; an image's tiles come before its view."""
    groups: dict[int, Iterator[Buffer]] = {}
    at = 0
    for side, count in views.items():
        size = count * side * side * 3
        groups[side] = iter(out[at:at + size].reshape(count, side, side, 3))
        at += size
    for sample, index, mode, grid in images:
        if grid != (0, 0):
            stitched = sample.tiles(index)
            if stitched is None:
                raise ValueError(f"{sample.key}: image {index} has no tiles where its json tells {grid}")
            for tile in cut_tiles(decode_image(stitched), grid):
                next(groups[geometry.TILE])[:] = tile
        place(decode_image(sample.image(index)), mode, next(groups[geometry.get_mode(mode).side]))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The triple (iterating gives it) and `rows`, what it was made of; counts are python integers: asking them is free."""

    inputs: Tensor
    targets: Tensor
    media: dict[str, Any]
    rows: tuple[RowInfo, ...] = field(default=())

    def __iter__(self) -> Iterator[Any]:
        return iter((self.inputs, self.targets, self.media))

    @property
    def target_count(self) -> int:
        """Labels that are learned."""
        return len(self.media["target_positions"])

    @property
    def images(self) -> int:
        """Images, whatever their tiles."""
        return sum(len(row.images) for row in self.rows)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """The same on another device."""
        media = {name: None if value is None else value.to(device, non_blocking=non_blocking)
                 for name, value in self.media.items()}
        return Batch(inputs=self.inputs.to(device, non_blocking=non_blocking), media=media, rows=self.rows,
                     targets=self.targets.to(device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that this batch, copied on another stream, is used on that one."""
        pixels: PixelValues | None = self.media["pixel_values"]
        tensors = [self.inputs, self.targets, *(value for name, value in self.media.items() if name != "pixel_values")]
        if pixels is not None:
            tensors += [*pixels.views.values(), *([] if pixels.positions is None else [pixels.positions])]
        for tensor in tensors:
            tensor.record_stream(stream)


def assemble(rows: Sequence[tuple[RowInfo, Buffer]], rules: Rules, *, height: int = 0, pin: bool = False) -> Batch:
    """Rows from their buffers -> a batch of at least `height` rows (the rest is padding), in page-locked memory if asked.

    Nothing in the batch refers to the buffers any more.
    """
    shape = (max(height, len(rows), 1), rules.seq_len)
    inputs = np.full(shape, rules.pad_id, np.int64)
    targets = np.full(shape, masks.IGNORE, np.int64)
    positions = np.zeros(shape, np.int64)
    segments = np.full(shape, -1, np.int32)
    for index, (info, buffer) in enumerate(rows):
        vectors = buffer[:4 * VECTORS * info.tokens].view(np.int32).reshape(VECTORS, info.tokens)
        arrays: tuple[npt.NDArray[Any], ...] = (inputs, targets, positions, segments)
        for array, vector in zip(arrays, vectors):
            array[index, :info.tokens] = vector
    images = tuple(image for info, _ in rows for image in info.images)
    counts = count_views(images)
    views = {side: torch.empty((count, side, side, 3), dtype=torch.uint8, pin_memory=pin) for side, count in counts.items()}
    used = dict.fromkeys(counts, 0)
    for info, buffer in rows:
        at = 4 * VECTORS * info.tokens
        for side, count in info.views.items():
            size = count * side * side * 3
            source = torch.from_numpy(buffer[at:at + size]).view(count, side, side, 3)
            views[side][used[side]:used[side] + count].copy_(source)
            used[side], at = used[side] + count, at + size

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        made = torch.from_numpy(array)
        return made.pin_memory() if pin else made

    pixel_values = None
    if views:
        pixel_values = PixelValues(
            views={side: group.permute(0, 3, 1, 2) for side, group in views.items()},
            images=images,
            positions=tensor(np.flatnonzero(inputs == rules.image_id)))
    media = {"pixel_values": pixel_values, "position_ids": tensor(positions), "segment_ids": tensor(segments),
             "target_positions": tensor(np.flatnonzero(targets != masks.IGNORE))}
    return Batch(inputs=tensor(inputs), targets=tensor(targets), media=media, rows=tuple(info for info, _ in rows))


def exchange_images(pixel_values: PixelValues) -> PixelValues:
    """The same batch with every picture in another's place, for the blind score: views of a size move on by one.

    A size with a single view gets the padding's gray instead: nothing of that batch could stand in for it.
    """
    views = {}
    for side, group in pixel_values.views.items():
        views[side] = group.roll(1, 0) if len(group) > 1 else torch.full_like(group, geometry.PAD_COLOUR[0])
    return PixelValues(views=views, images=pixel_values.images, positions=pixel_values.positions)
