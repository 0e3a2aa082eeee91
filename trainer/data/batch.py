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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards import geometry, masks
from shards.reader import DamagedRow, parse_row
from shards.sample import Sample
from shards.table import shard_name
from trainer.pixels import PixelValues, count_views, cut_tiles, decode_image
from trainer.pixels import place as place_image

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


def row_bytes(rows: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Bytes of the buffers of those entries of a row table: int64 [n]."""
    vectors = rows["tokens"].astype(np.int64) * (4 * VECTORS)
    pixels: npt.NDArray[np.int64] = rows["patches"].astype(np.int64) * PATCH_BYTES
    return vectors + pixels


def layout(buffer: Buffer, tokens: int, images: Iterable[tuple[int, int, int]]) -> tuple[npt.NDArray[np.int32], dict[int, Buffer]]:
    """A row's buffer as its vectors int32 [VECTORS, tokens], and by side the views of its images uint8 [count, side, side, 3]."""
    vectors = buffer[:4 * VECTORS * tokens].view(np.int32).reshape(VECTORS, tokens)
    views, at = {}, vectors.nbytes
    for side, count in count_views(images).items():
        size = count * side * side * 3
        views[side] = buffer[at:at + size].reshape(count, side, side, 3)
        at += size
    return vectors, views


def write_row(data: bytes | memoryview, row: Any, rules: Rules, out: Buffer, *, where: str, split: str = "train") -> RowInfo:
    """Decode one packed row into `out` (at least row_bytes long). DamagedRow, naming shard and offset, if it cannot be."""
    place = f"{where}/{shard_name(split, int(row['shard']))} at offset {int(row['offset'])}"
    try:
        return _write_samples(parse_row(data, row, split), row, rules, out, place)
    except DamagedRow as error:
        raise DamagedRow(f"{where}/{error}") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DamagedRow(f"{place}: {error}") from None


def _write_samples(samples: Sequence[Sample], row: Any, rules: Rules, out: Buffer, place: str) -> RowInfo:
    """Vectors sample by sample; views of one side together, in image order, an image's tiles before its view."""
    total = sum(len(sample.ids) for sample in samples)
    if total > rules.seq_len:
        raise ValueError(f"{total} tokens in a row of {rules.seq_len}")
    shown = [[(image["mode"], (int(image["tiles"][0]), int(image["tiles"][1]))) for image in sample.meta["images"]]
             for sample in samples]
    if (found := sum(geometry.patches(*image) for images in shown for image in images)) != int(row["patches"]):
        raise ValueError(f"images of {found} patches where the table says {int(row['patches'])}")
    all_images = tuple((geometry.get_mode(mode).side, *grid) for images in shown for mode, grid in images)
    vectors, groups = layout(out, total, all_images)
    views = {side: iter(group) for side, group in groups.items()}
    at, spans = 0, []
    for segment, (sample, images) in enumerate(zip(samples, shown)):
        try:
            masks.check(sample.ids, sample.mask, image_id=rules.image_id, pad_id=rules.pad_id, bos_id=rules.bos_id,
                        placeholders=sum(geometry.placeholders(*image) for image in images), vocab_size=rules.vocab_size)
        except ValueError as error:
            raise ValueError(f"{sample.key}: {error}") from None
        end = at + len(sample.ids)
        vectors[0, at:end] = sample.ids
        vectors[1, at:end] = masks.targets(sample.ids, sample.mask, rules.loss)
        vectors[2, at:end] = np.arange(end - at)
        vectors[3, at:end] = segment
        spans.append(SampleSpan(key=sample.key, source=str(sample.meta.get("source", "")), start=at, stop=end))
        at = end
        for index, (mode, grid) in enumerate(images):
            if (stitched := sample.tiles(index)) is not None:
                for tile in cut_tiles(decode_image(stitched), grid):
                    next(views[geometry.TILE])[:] = tile
            place_image(decode_image(sample.image(index)), mode, next(views[geometry.get_mode(mode).side]))
    return RowInfo(place=place, tokens=total, samples=tuple(spans), images=all_images)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The triple (iterating gives it) and `rows`, what it was made of; counts are python integers: asking them is free."""

    inputs: Tensor
    targets: Tensor
    media: dict[str, Any]
    rows: tuple[RowInfo, ...] = ()

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
        inputs, targets = (x.to(device, non_blocking=non_blocking) for x in (self.inputs, self.targets))
        media = {name: None if value is None else value.to(device, non_blocking=non_blocking)
                 for name, value in self.media.items()}
        return replace(self, inputs=inputs, targets=targets, media=media)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that this batch, copied on another stream, is used on that one."""
        for value in (self.inputs, self.targets, *self.media.values()):
            if value is not None:
                value.record_stream(stream)


def assemble(rows: Sequence[tuple[RowInfo, Buffer]], rules: Rules, *, height: int = 0, pin: bool = False) -> Batch:
    """Rows from their buffers -> a batch of at least `height` rows (the rest is padding), in page-locked memory if asked.

    Nothing in the batch refers to the buffers any more.
    """
    shape = (max(height, len(rows), 1), rules.seq_len)
    inputs, targets = np.full(shape, rules.pad_id, np.int64), np.full(shape, masks.IGNORE, np.int64)
    positions, segments = np.zeros(shape, np.int64), np.full(shape, -1, np.int32)
    arrays: tuple[npt.NDArray[Any], ...] = (inputs, targets, positions, segments)
    images = tuple(image for info, _ in rows for image in info.images)
    parts: dict[int, list[Tensor]] = {side: [] for side in count_views(images)}
    for index, (info, buffer) in enumerate(rows):
        vectors, groups = layout(buffer, info.tokens, info.images)
        for array, vector in zip(arrays, vectors):
            array[index, :info.tokens] = vector
        for side, group in groups.items():
            parts[side].append(torch.from_numpy(group))
    views = {}
    for side, found in parts.items():
        whole = torch.empty((sum(map(len, found)), side, side, 3), dtype=torch.uint8, pin_memory=pin)
        views[side] = torch.cat(found, out=whole).permute(0, 3, 1, 2)

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        made = torch.from_numpy(array)
        return made.pin_memory() if pin else made

    image_positions = tensor(np.flatnonzero(inputs == rules.image_id))
    pixel_values = PixelValues(views=views, images=images, positions=image_positions) if views else None
    media = {"pixel_values": pixel_values, "position_ids": tensor(positions), "segment_ids": tensor(segments),
             "target_positions": tensor(np.flatnonzero(targets != masks.IGNORE))}
    return Batch(inputs=tensor(inputs), targets=tensor(targets), media=media, rows=tuple(info for info, _ in rows))


def exchange_images(pixel_values: PixelValues) -> PixelValues:
    """The same batch with every picture in another's place, for the blind score: views of a size move on by one.

    A size with a single view gets the padding's gray instead: nothing of that batch could stand in for it.
    """
    views = {side: group.roll(1, 0) if len(group) > 1 else torch.full_like(group, geometry.PAD_COLOUR[0])
             for side, group in pixel_values.views.items()}
    return replace(pixel_values, views=views)
