"""Tasks: every source as a sequence of conversations, by number, in constant memory.

    from pipeline.tasks import FineVision, SmolTalk, TaskMixture

    charts = FineVision("chartqa", stop=10_000)         # len(charts), charts[0] -> {"messages": [...], "images": [PIL.Image]}
    train = TaskMixture([charts, SmolTalk(), FineVision("DoclingMatix", max_samples=500_000)])
    train[0]; train[len(train) - 1]                     # shuffled: every index is always the same example
    TaskMixture.from_recipe("stage1", fraction=0.01)    # a recipe is a mixture written down

There is one implementation: a task is a plan of one source (pipeline.plan), its rows are read by the build's own reader and
become conversations by the source's own adapter. Files are those below `raw`, or with `hub=True` are read in place on the hub.

A row that cannot be used raises Reject (a ValueError with `reason` and `detail`) when it is asked for by number; iteration
skips it and counts it in `rejects`.

Cost: opening reads footers only (kept for the next time), so the first example is there in seconds, not after a set has been
listed into memory. Going through in order decodes each row once; a jump decodes the row's row group up to it, at most some
tens of MB. Memory is one batch of rows, whatever the set's size. The shuffle is a keyed permutation of the numbers, computed
for each index: no list of indexes.
"""

import hashlib
import io
import operator
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.build.blocks import BlockReader
from pipeline.conversation import Conversation, Reject
from pipeline.convert import convert
from pipeline.images.fit import probe
from pipeline.plan import Block, Plan, make_plan, options_of
from pipeline.recipe import FINEVISION, Recipe, SourceSpec, load_recipe
from pipeline.sources import KINDS
from pipeline.sources.rows import Item, row_id

Example = dict[str, Any]


def as_dict(conversation: Conversation) -> Example:
    """A conversation in the notes' unified format.

    `messages`: role and content, where "<image>" marks each image's place; an answer that uses a tool also has `parts`.
    `images`: PIL images, not decoded yet; absent for text. Raises Reject for an image that Pillow must not or cannot open.
    """
    messages: list[dict[str, Any]] = []
    for message in conversation.messages:
        item: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.parts:
            item["parts"] = [{"kind": part.kind, "text": part.text} for part in message.parts]
        messages.append(item)
    example: Example = {"messages": messages}
    if conversation.images:
        example["images"] = [_open(data) for data in conversation.images]
    return example


def _open(data: bytes) -> Image.Image:
    probe(data)  # the build's own limits, before Pillow sees it
    try:
        return Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's plugins raise whatever they meet
        raise Reject("image-corrupt", f"{type(error).__name__}: {error}"[:200]) from None


class Task:
    """One source as a sequence; see the module. Made by FineVision and its like, or from a recipe."""

    def __init__(self, plan: Plan, source: int = 0) -> None:
        """plan: any plan with the source; its blocks of it, in the files' order, are the task's rows."""
        self.plan = plan
        self.spec = plan.recipe.sources[source]
        self.rejects: Counter[str] = Counter()
        blocks = (block for shard in plan.shards for block in shard if block.source == source)
        self._blocks = sorted(blocks, key=lambda block: (block.file, block.first))
        self._ends = list(accumulate(block.rows for block in self._blocks))
        self._options = options_of(self.spec)
        self._reader: BlockReader | None = None
        self._at: tuple[int, int] = (-1, 0)  # the block being read, and which of its rows comes next
        self._rows: Iterator[tuple[int, Item]] = iter(())

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        """The example of that number (negative from the end). Raises IndexError, or Reject for a row that cannot be used."""
        return as_dict(self.conversation(index))

    def __iter__(self) -> Iterator[Example]:
        """The examples in order; rows that cannot be used are counted in `rejects` and skipped."""
        for index in range(len(self)):
            try:
                yield self[index]
            except Reject as reject:
                self.rejects[reject.reason] += 1

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: without the open files."""
        return {**self.__dict__, "_reader": None, "_at": (-1, 0), "_rows": iter(())}

    def conversation(self, index: int) -> Conversation:
        """As `task[index]`, but the Conversation that the build itself uses, image bytes as they are in the row."""
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.spec.name} has {len(self)} rows, none of number {index}")
        index %= len(self)
        number = bisect_right(self._ends, index)
        block = self._blocks[number]
        row, item = self._read(number, block, index - (self._ends[number] - block.rows))
        if isinstance(item, Reject):
            raise item
        name = row_id(self.plan.files[block.file].name.removeprefix(f"{self.spec.root}/"), row)
        return KINDS[self.spec.kind].convert(item, source=self.spec.name, row_id=name, options=self._options)

    def close(self) -> None:
        """Closes the files; the task can still be used and opens them again."""
        if self._reader is not None:
            self._reader.close()
        self._reader, self._at, self._rows = None, (-1, 0), iter(())

    def _read(self, number: int, block: Block, place: int) -> tuple[int, Item]:
        """Row `place` of a block: from the rows being read when it is still ahead there, else by reading anew from it."""
        if self._reader is None:
            self._reader = BlockReader(self.plan)
        if self._at[0] != number or self._at[1] > place:
            self._rows = self._reader.rows(replace(block, start=block.start + place * block.step))
            self._at = (number, place)
        for ahead in range(self._at[1], place + 1):
            self._at = (-1, 0)  # were the reading to fail, the next call must not go on from here
            found = next(self._rows)
            self._at = (number, ahead + 1)
        return found


class TaskMixture:
    """Several tasks as one sequence, shuffled by a seed: index i is always the same example."""

    def __init__(self, tasks: Sequence["Task | TaskMixture"], *, shuffle: bool = True, seed: int = 42) -> None:
        """tasks: a task named twice is seen twice. shuffle: False gives them one after the other."""
        self.tasks = list(tasks)
        self.seed, self.shuffle = seed, shuffle
        self.rejects: Counter[str] = Counter()
        self._ends = list(accumulate(len(task) for task in self.tasks))

    @classmethod
    def from_recipe(cls, recipe: str | Recipe, *, raw: str | Path = "raw", hub: bool = False, shuffle: bool = True,
                    **changes: Any) -> "TaskMixture":  # fmt: skip
        """The rows that a build of the recipe reads, repeats included. changes: fraction, subsets ... (load_recipe)."""
        loaded = load_recipe(recipe, **changes) if isinstance(recipe, str) else recipe
        plan = make_plan(loaded, raw=Path(raw), origin="hub" if hub else "raw")
        tasks = [task for number, source in enumerate(loaded.sources) for task in [Task(plan, number)] * source.repeats]
        return cls(tasks, shuffle=shuffle, seed=loaded.seed)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        """The example of that number. Raises IndexError, or Reject for a row that cannot be used."""
        return as_dict(self.conversation(index))

    def __iter__(self) -> Iterator[Example]:
        """The examples in the mixture's order; rows that cannot be used are counted in `rejects` and skipped."""
        for index in range(len(self)):
            try:
                yield self[index]
            except Reject as reject:
                self.rejects[reject.reason] += 1

    def conversation(self, index: int) -> Conversation:
        """As `mixture[index]`, but the Conversation that the build itself uses."""
        task, place = self.where(index)
        return self.tasks[task].conversation(place)

    def where(self, index: int) -> tuple[int, int]:
        """(number of the task, index inside it) of an example."""
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"the mixture has {len(self)} examples, none of number {index}")
        index %= len(self)
        if self.shuffle:
            index = permuted(index, len(self), self.seed)
        task = bisect_right(self._ends, index)
        return task, index - (self._ends[task] - len(self.tasks[task]))


def permuted(index: int, count: int, seed: int, *, rounds: int = 4) -> int:
    """Where `index` goes in a permutation of range(count) that the seed names, in constant memory.

    A Feistel network permutes the numbers of 2 * half bits; what falls outside of range(count) is permuted again until it
    falls inside, which keeps it a permutation (at most four times on average, since 2**(2 * half) < 4 * count).
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(rounds):
            digest = hashlib.blake2b(f"{seed} {turn} {right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest) & mask)
        index = left << half | right
        if index < count:
            return index


def _task(spec: SourceSpec, raw: str | Path, hub: bool, start: int | None, stop: int | None, step: int | None,
          max_samples: int | None) -> Task:  # fmt: skip
    """A task over rows start:stop:step of a source, the first max_samples of them."""
    begin, by = start or 0, 1 if step is None else step
    if begin < 0 or by < 1 or (stop is not None and stop < 0) or (max_samples is not None and max_samples < 1):
        raise ValueError(f"start = {start}, stop = {stop}, step = {step}, max_samples = {max_samples}: rows count from 0, "
                         "step and max_samples from 1")
    if max_samples is not None:
        stop = min(begin + max_samples * by, stop if stop is not None else begin + max_samples * by)
    rows = f"{begin}:{'' if stop is None else stop}:{by}"
    recipe = Recipe(name=spec.name, sources=(replace(spec, rows=rows),))
    options_of(spec)  # wrong options are told before files are looked for
    return Task(make_plan(recipe, raw=Path(raw), origin="hub" if hub else "raw"))


def FineVision(subset: str, *, start: int | None = None, stop: int | None = None, step: int | None = None,
               max_samples: int | None = None, repo: str = FINEVISION, raw: str | Path = "raw", hub: bool = False,
               **options: Any) -> Task:  # fmt: skip
    """A FineVision subset, or a folder of any other set in its layout (`repo`). options: its turn and rating rules."""
    spec = SourceSpec(name=subset, kind="finevision", repo=repo, folder=subset or None, options=options)
    return _task(spec, raw, hub, start, stop, step, max_samples)


def SmolTalk(*, split: str = "train", start: int | None = None, stop: int | None = None, step: int | None = None,
             max_samples: int | None = None, raw: str | Path = "raw", hub: bool = False) -> Task:  # fmt: skip
    """HuggingFaceTB/smol-smoltalk; split: train or test."""
    return _task(_standard("SmolTalk", "smoltalk", split), raw, hub, start, stop, step, max_samples)


def MMLU(*, subset: str = "all", split: str = "auxiliary_train", start: int | None = None, stop: int | None = None,
         step: int | None = None, max_samples: int | None = None, raw: str | Path = "raw", hub: bool = False) -> Task:  # fmt: skip
    """cais/mmlu; split: auxiliary_train, validation, dev or test."""
    return _task(replace(_standard("MMLU", "mmlu", split), folder=subset), raw, hub, start, stop, step, max_samples)


def GSM8K(*, subset: str = "main", split: str = "train", start: int | None = None, stop: int | None = None,
          step: int | None = None, max_samples: int | None = None, raw: str | Path = "raw", hub: bool = False) -> Task:  # fmt: skip
    """openai/gsm8k; subset: main or socratic; split: train or test."""
    return _task(replace(_standard("GSM8K", "gsm8k", split), folder=subset), raw, hub, start, stop, step, max_samples)


def CustomJSON(path: str | Path, *, kind: str = "custom_json", start: int | None = None, stop: int | None = None,
               step: int | None = None, max_samples: int | None = None, raw: str | Path = "raw") -> Task:  # fmt: skip
    """A local JSONL of conversations, converted below `raw` at the first use. kind "jsonl" also takes images by path."""
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}: choose custom_json (text) or jsonl (text and images)")
    source = Path(path)
    spec = SourceSpec(name=source.stem, kind=kind, path=str(source))
    convert("jsonl", source, Path(raw) / spec.root, name=spec.name)
    return _task(spec, raw, False, start, stop, step, max_samples)


def OlmOCR(part: str = "00_documents", *, start: int | None = None, stop: int | None = None, step: int | None = None,
           max_samples: int | None = None, raw: str | Path = "raw", **options: Mapping[str, Any]) -> Task:  # fmt: skip
    """olmOCR-mix-1025, pages rendered from the PDFs that were fetched to raw/allenai/olmOCR-mix-1025."""
    spec = SourceSpec(name=f"olmOCR-mix-1025-{part}", kind="olmocr", options={"part": part, **options})
    origin = KINDS["olmocr"].origin
    assert origin is not None
    convert("olmocr", Path(raw) / origin, Path(raw) / spec.root, name=spec.name, options=options_of(spec))
    return _task(spec, raw, False, start, stop, step, max_samples)


def _standard(name: str, kind: str, split: str) -> SourceSpec:
    known = KINDS[kind]
    assert known.repo is not None
    return SourceSpec(name=name, kind=kind, repo=known.repo, folder=known.folder, split=split)
