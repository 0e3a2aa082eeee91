"""A task: one plan line -> one shard. A pure function of the plan: the same bytes wherever and whenever it runs.

    row groups -> Conversation -> fitted images -> ids, mask -> spool -> packed order -> train-NNNNNN.tar

Every row that is read ends as samples or as a line of rejects. A finished task leaves the shard with its indexes in the
directory and, in the work folder, `done/NNNNNN/`: its rows, its tables, its validation samples and `result.json`. That folder
appears by one rename, last, so a task is done or has left nothing that counts. Cost: a worker holds a batch of rows, not a shard.
"""

import contextlib
import errno
import json
import os
import shutil
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import orjson

from pipeline.build import tables
from pipeline.build.blocks import BlockReader
from pipeline.build.spool import SampleInfo, Spool
from pipeline.build.tables import RejectLine
from pipeline.conversation import Conversation, Reject
from pipeline.cut import Fitted, fit_to_length
from pipeline.images import FittedImage, fit_image
from pipeline.pack import pack
from pipeline.plan import SKIP_REASONS, Block, Plan, options_of
from pipeline.recipe import SourceSpec
from pipeline.render import Rendered, render_conversations
from pipeline.seeds import rng, share
from pipeline.sources import KINDS
from pipeline.sources.rows import Item, row_id
from pipeline.tokens import Tokenizer
from shards import geometry, masks
from shards.sample import encode_json, encoded_size, make_key, members
from shards.table import encode as encode_rows
from shards.writer import Fields, partial_path, publish, sync_folder, write_file, write_shard

BATCH_ROWS = 64
BATCH_CHARS = 2_000_000
BATCH_BYTES = 16 << 20  # of images, as they came and as they are stored
HELD_BYTES = 32 << 20  # of samples that need not wait on the disk for their place
_quoted = json.encoder.encode_basestring  # a JSON string that keeps what is not ASCII
RENDER = "tokenizing"  # what a heartbeat says while a whole batch is worked on
WRITE = "writing"

# not the row's fault: an interrupt, a worker out of memory (its row gets a strike, see pipeline.build.local)
_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)


class Beat(Protocol):
    """A heartbeat: which row (or row group) of which source is worked on from now, and how many rows were begun with it."""

    def __call__(self, source: str, row: str, begun: int = 0) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a task puts things: finished shards, its results, and scratch that may vanish."""

    out: Path
    done: Path
    scratch: Path


class Pending(NamedTuple):
    """A conversation with its images fitted, waiting for its batch to be tokenized."""

    spec: SourceSpec
    conversation: Conversation
    images: tuple[FittedImage, ...]
    val: bool


def done_folder(folders: Folders, shard: int) -> Path:
    """Where a task's results are once it is done."""
    return folders.done / f"{shard:06d}"


class Task:
    """Builds one shard; `run` is the whole of it."""

    def __init__(self, plan: Plan, shard: int, tokenizer: Tokenizer, folders: Folders, beat: Beat,
                 quarantine: frozenset[tuple[str, str]] = frozenset(), *, alone: bool = False) -> None:
        """`quarantine`: (source, row or row group) that cost a worker. `alone`: tokenize row by row, so that heartbeats name
        the row at which a worker is lost; the bytes are the same."""
        self.plan, self.shard, self.tokenizer, self.folders, self.beat = plan, shard, tokenizer, folders, beat
        self.quarantine, self.alone = quarantine, alone
        self.rejects: list[RejectLine] = []
        self.counts: dict[str, Counter[str]] = {source.name: Counter() for source in plan.recipe.sources}

    def run(self) -> dict[str, Any]:
        """Build the shard and publish it; returns what `result.json` holds."""
        work = partial_path(self.folders.scratch / f"{self.shard:06d}")
        work.mkdir(parents=True)
        try:
            with Spool(work / "train.bin", held=HELD_BYTES) as train, Spool(work / "val.bin") as val:
                self._read(train, val)
                self.beat("", WRITE)
                return self._publish(work, train, val)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _read(self, train: Spool, val: Spool) -> None:
        batch: list[Pending] = []
        chars = size = 0
        for pending in self._pending():
            batch.append(pending)
            chars += sum([len(message.content) for message in pending.conversation.messages])
            if pending.images:
                size += sum([len(data) for data in pending.conversation.images])
                size += sum([len(image.data) + len(image.tiles_data or b"") for image in pending.images])
            if self.alone or len(batch) >= BATCH_ROWS or chars >= BATCH_CHARS or size >= BATCH_BYTES:
                self._render(batch, train, val)
                batch, chars, size = [], 0, 0
        self._render(batch, train, val)

    def _pending(self) -> Iterator[Pending]:
        """Every row of the task's blocks: fitted, or counted as a reject."""
        with contextlib.closing(BlockReader(self.plan)) as reader:
            for block in self.plan.shards[self.shard]:
                yield from self._block(reader, block)

    def _block(self, reader: BlockReader, block: Block) -> Iterator[Pending]:
        spec = self.plan.recipe.sources[block.source]
        options, counts = options_of(spec), self.counts[spec.name]
        for name, row in self._rows(reader, block, spec):
            counts["rows"] += 1
            self.beat(spec.name, name, begun=1)
            try:
                pending = self._fit(spec, options, name, row)
            except Reject as reject:
                self._reject(spec.name, name, reject)
                continue
            yield pending

    def _fit(self, spec: SourceSpec, options: Any, name: str, row: Item) -> Pending:
        """A row as a conversation with its images fitted. Raises Reject, and nothing else that the row could be the cause of."""
        if isinstance(row, Reject):
            raise row
        if self.quarantine and (spec.name, name) in self.quarantine:
            raise Reject("worker-lost", "workers died or stood still at this row, again and again")
        try:
            conversation = KINDS[spec.kind].convert(row, source=spec.name, row_id=name, options=options)
            images = self._fit_images(spec, conversation) if conversation.images else ()
            val = share(conversation.key_hash(), "validation") < self.plan.recipe.validation
        except (Reject, *_OURS):
            raise
        except BaseException as error:
            reject_unexpected(error)
        return Pending(spec, conversation, images, val)

    def _fit_images(self, spec: SourceSpec, conversation: Conversation) -> tuple[FittedImage, ...]:
        mode = self.plan.recipe.mode_of(spec)
        least = geometry.placeholders(mode) * len(conversation.images)
        if least > self.plan.recipe.seq_len and not conversation.page_breaks:  # as fit_to_length will say, but at no cost
            raise Reject("over-length" if spec.overlong == "drop" else "images-exceed-length",
                         f"at least {least} image tokens; seq_len is {self.plan.recipe.seq_len}")
        return tuple(fit_image(data, mode) for data in conversation.images)

    def _rows(self, reader: BlockReader, block: Block, spec: SourceSpec) -> Iterator[tuple[str, Item]]:
        """(row id, row or Reject) of a block."""
        name = self.plan.files[block.file].name
        skipped = {number: reason for reason, numbers in self.plan.skips.get(block.file, {}).items() for number in numbers}
        path = name.removeprefix(f"{spec.root}/")
        self.counts[spec.name]["row_groups"] += 1
        group = f"{path}: row group {block.group}"
        rows = reader.rows(block)
        if (spec.name, group) in self.quarantine:
            lost = Reject("unreadable-row-group", f"workers died or stood still reading row group {block.group}, again and again")
            rows = ((block.first + index, lost) for index in range(block.start, block.stop, block.step))
        self.beat(spec.name, group)
        for number, row in rows:
            reason = skipped.get(number)
            yield row_id(path, number), row if reason is None else Reject(reason, SKIP_REASONS[reason])
            self.beat(spec.name, group)

    def _reject(self, source: str, row: str, reject: Reject) -> None:
        self.rejects.append(RejectLine(source=source, row=row, reason=reject.reason, detail=reject.detail))
        self.counts[source][f"reject:{reject.reason}"] += 1

    def _render(self, batch: list[Pending], train: Spool, val: Spool) -> None:
        """Tokenize a batch and spool its samples."""
        if not batch:
            return
        self.beat(*((batch[0].spec.name, batch[0].conversation.row) if self.alone else ("", RENDER)))
        placeholders = [[geometry.placeholders(image.mode, image.tiles) for image in item.images] if item.images else []
                        for item in batch]
        try:
            rendered = render_conversations([item.conversation for item in batch], placeholders, self.tokenizer)
        except _OURS:
            raise
        except BaseException:  # one row's fault: find out which
            if len(batch) > 1:
                for item in batch:
                    self._render([item], train, val)
                return
            rendered = []
        for at, item in enumerate(batch):
            self.counts[item.spec.name]["dropped_turns"] += item.conversation.dropped_turns
            try:
                samples = self._cut(item, rendered[at] if rendered else None, placeholders[at])
            except Reject as reject:
                self._reject(item.spec.name, item.conversation.row, reject)
                continue
            for sample in samples:
                self._spool(item, sample, val if item.val else train)

    def _cut(self, item: Pending, rendered: Rendered | None, placeholders: list[int]) -> tuple[Fitted, ...]:
        """The samples that a rendered row becomes (None: rendering failed, and says why when it is tried again)."""
        try:
            if rendered is None:
                rendered = render_conversations([item.conversation], [placeholders], self.tokenizer)[0]
            return fit_to_length(item.conversation, rendered, placeholders, seq_len=self.plan.recipe.seq_len,
                                 rule=item.spec.overlong, tokenizer=self.tokenizer)  # type: ignore[arg-type]
        except (Reject, *_OURS):
            raise
        except BaseException as error:
            reject_unexpected(error)

    def _spool(self, item: Pending, sample: Fitted, spool: Spool) -> None:
        images = [item.images[index] for index in sample.images]
        fields, info = encoded(sample, images)
        # a repeat is the same sample under another key; twins share their key's hash, so they stay on one side of the split
        for _ in range(item.spec.repeats):
            spool.add(fields, info)

    def _publish(self, work: Path, train: Spool, val: Spool) -> dict[str, Any]:
        packed = pack([info.tokens for info in train.infos], [info.patches for info in train.infos],
                      self.plan.recipe.seq_len, rng(self.plan.recipe.seed, "pack", "train", self.shard))
        entry, rows = write_shard(self.folders.out, "train", self.shard,
                                  ((train.read(index) for index in row) for row in packed))
        results = work / "results"
        results.mkdir()
        write_file(results / "rows.npy", encode_rows(rows))
        places = [(row, index) for row, samples in enumerate(packed) for index in samples]
        tables.write(results / "samples.parquet", [tables.samples_table(
            [(make_key("train", self.shard, position), "train", self.shard, row, train.infos[index])
             for position, (row, index) in enumerate(places)])], tables.SAMPLES)
        tables.write(results / "rejects.parquet", [tables.rejects_table(self.rejects)], tables.REJECTS)
        val.save_index(results / "val.json")
        publish(work / "val.bin", results / "val.bin")
        self._count(train.infos, val=False)
        self._count(val.infos, val=True)
        result = {"shard": asdict(entry), "counts": {name: dict(count) for name, count in self.counts.items()},
                  "plan": self.plan.id}
        write_file(results / "result.json", json.dumps(result, sort_keys=True).encode())
        target = done_folder(self.folders, self.shard)
        shutil.rmtree(target, ignore_errors=True)
        try:
            os.rename(results, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another machine was given the same task: the same bytes
                raise
        sync_folder(target.parent)
        return result

    def _count(self, infos: Sequence[SampleInfo], *, val: bool) -> None:
        """Add samples to the counts of their sources."""
        found = defaultdict[str, list[SampleInfo]](list)
        for info in infos:
            found[info.source].append(info)
        for source, own in found.items():
            columns = dict(zip(SampleInfo._fields, zip(*own)))
            sums = {name: sum(columns[name]) for name in ("images", "tokens", "targets", "answer_tokens", "bytes", "kept_images")}
            self.counts[source].update(sums, samples=len(own), val_samples=val * len(own), cut=len(own) - columns["cut"].count(""))


def encoded(sample: Fitted, images: list[FittedImage], part: str = "") -> tuple[Fields, SampleInfo]:
    """A sample's members, and its numbers; `part` as in `sample_json`."""
    fields = members(sample_json(sample, images, part), sample.rendered.ids, sample.rendered.mask, image_members(images))
    return fields, describe(sample, images, fields)


def describe(sample: Fitted, images: list[FittedImage], fields: Fields) -> SampleInfo:
    """The numbers of a sample, for the tables."""
    conversation, codes = sample.conversation, sample.rendered.mask
    answers = codes.count(masks.ANSWER)
    info = SampleInfo(
        source=conversation.source, row=conversation.row, tokens=len(codes),
        targets=answers + codes.count(masks.TEXT) - (codes[0] != masks.NOT_TARGET), answer_tokens=answers, images=0, patches=0,
        turns=conversation.answers, modes=(), sizes=(), kept_images=0, dropped_turns=conversation.dropped_turns, cut=sample.cut,
        bytes=encoded_size(fields))
    return info if not images else info._replace(
        images=len(images), patches=sum([geometry.patches(image.mode, image.tiles) for image in images]),
        modes=tuple([image.mode for image in images]), sizes=tuple([f"{image.width}x{image.height}" for image in images]),
        kept_images=sum([image.kept for image in images]))


def image_members(images: list[FittedImage]) -> Iterator[tuple[str, bytes]]:
    """The members of a sample's images: each picture, and its stitched tiles right after it."""
    for number, image in enumerate(images):
        yield f"{number}.{image.suffix}", image.data
        if image.tiles_data is not None:
            yield f"{number}.tiles.{image.tiles_suffix}", image.tiles_data


def sample_json(sample: Fitted, images: list[FittedImage], part: str = "") -> bytes:
    """KEY.json of a sample (shards: the format's docstring), the bytes that `encode_json` gives, in a fifth of its time. `part`
    tells of what it is a part."""
    conversation = sample.conversation
    facts = conversation.meta
    if sample.part[1] > 1:
        part = ", ".join(filter(None, [part, f"{sample.part[0] + 1}/{sample.part[1]}"]))
    if part:
        facts = {**facts, "part": part}
    meta = ", ".join([f"{_quoted(key)}: {_quoted(facts[key])}" for key in sorted(facts)])
    body = {  # keys in their sorted order
        "cut": sample.cut,
        "images": [{"height": image.height, "message": message, "mode": image.mode, "offset": offset,
                    "placeholders": geometry.placeholders(image.mode, image.tiles), "source_height": image.source_height,
                    "source_width": image.source_width, "tiles": image.tiles, "width": image.width}
                   for (message, offset), image in zip(conversation.anchors, images)] if images else (),
        "messages": [{"content": content, "parts": [{"kind": kind, "text": text} for kind, text in parts] if parts else (),
                      "role": role} for role, content, parts in conversation.messages],
        "meta": f"{{{meta}}}",
        "row": conversation.row,
        "source": conversation.source,
    }
    try:
        return orjson.dumps(body)
    except TypeError:  # a lone surrogate
        return encode_json(body)


def reject_unexpected(error: BaseException) -> NoReturn:
    """Raise a Reject for what pure functions of a row raised and should not have: it would fail the same way every time, so it
    costs its row. A defect of ours, hence the place in the code; an error of the disk or the network is raised as it is."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    frame = traceback.extract_tb(error.__traceback__)[-1]
    words = " ".join(str(error).encode(errors="replace").decode().split())[:200]
    raise Reject("unexpected", f"{type(error).__name__}: {words} ({Path(frame.filename).name}:{frame.lineno})") from error
