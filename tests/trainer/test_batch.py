"""Rows to batches: targets, positions, segments, pixels; and what a damaged row says."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from shards import geometry, masks
from shards.reader import DamagedRow, ShardReader
from tests.trainer.synthetic import IDS, make_directory, make_sample, write_directory
from trainer.data.batch import Batch, RowInfo, Rules, assemble, exchange_images, row_bytes, write_row
from trainer.data.store import ShardDirectory, open_directory
from trainer.pixels import cut_tiles, decode_image, place

MODES = ("micro", "small", "gundam", None)


def decode(directory: ShardDirectory, rules: Rules, index: int) -> tuple[RowInfo, np.ndarray]:
    """One row in a buffer of its exact size."""
    row = directory.rows["train"][index]
    out = np.zeros(int(row_bytes(directory.rows["train"])[index]), np.uint8)
    return write_row(directory.store.read_bytes("train", row), row, rules, out, where=directory.store.where), out


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> ShardDirectory:
    """Rows of text and of images in three modes, some with tiles."""
    rng = random.Random(3)
    rows = [[make_sample(rng, row="text", mode=None)[0], make_sample(rng, row="micro", mode="micro", images=2)[0]],
            [make_sample(rng, row="small", mode="small", size=(900, 300))[0],
             make_sample(rng, row="gundam", mode="gundam", size=(1000, 700))[0],
             make_sample(rng, row="plain", mode="gundam", size=(200, 100))[0]],
            [make_sample(rng, row="alone", mode=None)[0]]]
    return open_directory(str(write_directory(tmp_path_factory.mktemp("mixed") / "s", {"train": [rows]}, seq_len=2000)))


def test_a_batch_holds_what_the_shard_holds(mixed: ShardDirectory) -> None:
    rules = Rules.of(mixed.manifest, "all")
    batch = assemble([decode(mixed, rules, index) for index in range(3)], rules)
    inputs, targets, media = batch
    assert inputs.shape == targets.shape == media["position_ids"].shape == media["segment_ids"].shape == (3, 2000)
    reader = ShardReader(Path(mixed.store.where))
    expected: dict[int, list[np.ndarray]] = {}
    images = []
    for index, row in enumerate(mixed.rows["train"]):
        at = 0
        for segment, sample in enumerate(reader.read(row)):
            part = slice(at, at + len(sample.ids))
            assert inputs[index, part].tolist() == sample.ids.tolist()
            assert targets[index, part].tolist() == masks.targets(sample.ids, sample.mask).tolist()
            assert media["position_ids"][index, part].tolist() == list(range(len(sample.ids)))
            assert set(media["segment_ids"][index, part].tolist()) == {segment}
            span = batch.rows[index].samples[segment]
            assert (span.key, span.source, span.start, span.stop) == (sample.key, "colours", at, part.stop)
            at = part.stop
            for number, meta in enumerate(sample.meta["images"]):
                grid = tuple(meta["tiles"])
                if grid != (0, 0):
                    tiles = sample.tiles(number)
                    assert tiles is not None
                    expected.setdefault(640, []).extend(cut_tiles(decode_image(tiles), grid))
                view = place(decode_image(sample.image(number)), meta["mode"])
                expected.setdefault(len(view), []).append(view)
                images.append((len(view), *grid))
        assert set(inputs[index, at:].tolist()) <= {rules.pad_id}
        assert set(targets[index, at:].tolist()) <= {-1}
        assert set(media["segment_ids"][index, at:].tolist()) <= {-1}
    pixels = media["pixel_values"]
    assert pixels.images == tuple(images)
    assert {side: len(views) for side, views in pixels.views.items()} == {side: len(v) for side, v in expected.items()}
    for side, views in expected.items():
        assert torch.equal(pixels.views[side].permute(0, 2, 3, 1), torch.from_numpy(np.stack(views)))
    assert torch.equal(pixels.positions, (inputs.flatten() == rules.image_id).nonzero()[:, 0])
    assert torch.equal(media["target_positions"], (targets.flatten() != -1).nonzero()[:, 0])
    assert batch.images == 5
    assert batch.target_count == int((targets != -1).sum())


def test_the_first_text_token_after_an_image_is_a_target_and_no_placeholder_is(mixed: ShardDirectory) -> None:
    """Defect 1 of the known reproduction: masking by the input token loses the first and trains the second."""
    rules = Rules.of(mixed.manifest, "all")
    inputs, targets, _ = assemble([decode(mixed, rules, 0)], rules)
    image = inputs[0] == rules.image_id
    assert not (targets == rules.image_id).any()
    ends = (image[:-1] & ~image[1:]).nonzero()[:, 0].tolist()
    starts = (~image[:-1] & image[1:]).nonzero()[:, 0].tolist()
    assert ends
    assert all(int(targets[0, at]) == int(inputs[0, at + 1]) for at in ends)
    assert all(int(targets[0, at]) == -1 for at in starts)


def test_answers_alone(mixed: ShardDirectory) -> None:
    everything, answers = (assemble([decode(mixed, rules, 0)], rules) for rules in (
        Rules.of(mixed.manifest, "all"), Rules.of(mixed.manifest, "answer")))
    assert 0 < answers.target_count < everything.target_count
    assert IDS["<|assistant_end|>"] in answers.targets
    assert IDS["<|user_end|>"] not in answers.targets


def test_a_text_only_batch_has_no_pixels_and_padding_rows_have_no_targets(mixed: ShardDirectory) -> None:
    rules = Rules.of(mixed.manifest, "all")
    batch = assemble([decode(mixed, rules, 2)], rules, height=3)
    assert batch.media["pixel_values"] is None
    assert batch.inputs.shape == (3, 2000)
    assert set(batch.targets[1:].flatten().tolist()) == {-1}
    empty = assemble([], rules, height=2)
    assert empty.target_count == 0
    assert empty.inputs.shape == (2, 2000)


def test_exchanging_images_moves_every_picture() -> None:
    side = 64 * 4
    views = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, side, side)
    from trainer.pixels import PixelValues
    pixels = PixelValues(views={256: views, 640: torch.zeros(1, 3, 640, 640, dtype=torch.uint8)},
                         images=((256, 0, 0), (640, 0, 0), (256, 0, 0), (256, 0, 0)))
    moved = exchange_images(pixels)
    assert moved.views[256][:, 0, 0, 0].tolist() == [2, 0, 1]
    assert set(moved.views[640].flatten().tolist()) == {geometry.PAD_COLOUR[0]}
    assert moved.images == pixels.images


def test_rules_come_from_the_manifest(mixed: ShardDirectory) -> None:
    rules = Rules.of(mixed.manifest, "answer")
    assert (rules.image_id, rules.pad_id, rules.bos_id) == (IDS["<|image|>"], IDS["<|pad|>"], IDS["<|bos|>"])


@pytest.mark.parametrize("change", ["vocabulary", "seq_len", "image", "pixels", "cut", "table"])
def test_a_damaged_row_is_named(tmp_path: Path, change: str) -> None:
    """Directory, shard and offset are in the message, whatever is wrong; nothing is read past an array's end."""
    folder = make_directory(tmp_path / "s", rows=3, shards=1, val_rows=0, modes=("micro",), seed=5)
    directory = open_directory(str(folder))
    rules = Rules.of(directory.manifest, "all")
    row = directory.rows["train"][1].copy()
    data = bytes(directory.store.read_bytes("train", row))
    if change == "vocabulary":
        rules = Rules(**{**vars(rules), "vocab_size": 3})
    elif change == "seq_len":
        rules = Rules(**{**vars(rules), "seq_len": 8})
    elif change == "image":
        rules = Rules(**{**vars(rules), "image_id": 1})
    elif change == "pixels":
        at = data.index(b"\x89PNG") if b"\x89PNG" in data else data.index(b"\xff\xd8\xff")
        data = data[:at] + bytes(64) + data[at + 64:]
    elif change == "cut":
        data = data[:1024]
    else:
        row["patches"] += 1
    out = np.zeros(10_000_000, np.uint8)
    with pytest.raises(DamagedRow, match=rf"{folder}/train-000000.tar.*offset {int(row['offset'])}"):
        write_row(data, row, rules, out, where=str(folder))


def test_a_batch_moves_whole(mixed: ShardDirectory) -> None:
    rules = Rules.of(mixed.manifest, "all")
    batch = assemble([decode(mixed, rules, 0), decode(mixed, rules, 2)], rules)
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, Batch)
    assert torch.equal(moved.inputs, batch.inputs)
    assert moved.rows == batch.rows
    assert set(moved.media) == {"pixel_values", "position_ids", "segment_ids", "target_positions"}
