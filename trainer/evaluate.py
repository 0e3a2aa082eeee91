"""How well a checkpoint reads: its own text for held-out samples, scored by source beside a blind control.

    python trainer/evaluate.py --shards shards/demo --checkpoint runs/demo
    python trainer/evaluate.py --shards shards/stage2 --checkpoint runs/stage2 --source sroie --limit 200 --out report/

The first answer of a sample is asked for: the ids up to it, its images, and then the model's own text until it stops. With
--turns all so is every later one, after the earlier answers as they should have been; those often give a later answer away
(a receipt's text holds its total), so scores and blind scores are then higher. The blind score asks again with each image
replaced by one of another sample, of the same source and size where there is one: a model that reads scores near nothing
then. A model that guesses by the prompt scores the same twice.

Writes OUT/report.md, OUT/report.json, OUT/answers.jsonl and OUT/pictures/; prints examples and a table, and ends with one
line of JSON.
Answers that use tools, or that the sequence length cut, are left out and counted. Cost: two generations an answer; on a
CPU a micro model gave 21 answers of up to 400 tokens, and their blind twins, in 6 s of processor time.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from shards.geometry import PAD_COLOUR, TILE, get_mode, patches
from shards.masks import ANSWER
from shards.reader import parse_row
from shards.sample import Sample
from trainer import checkpoint
from trainer.data.store import ShardDirectory, open_directory
from trainer.generate import Prompt, decode_answer, generate, load_tokenizer, special_ids
from trainer.model.vlm import VLM, load_pretrained
from trainer.pixels import ImageViews, cut_tiles, decode_image, place
from trainer.report import Answer, example_lines, examples_of, summarise, table_lines, write_report
from trainer.settings import positive, usable_device

BATCH_PATCHES = 16 * 4096  # of 16 x 16 pixels: sixteen pages of 1024 pixels in one pass of the encoder


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image as a shard holds it: encoded, so that thousands of questions fit into memory."""

    data: bytes
    tiles: bytes | None
    mode: str
    grid: tuple[int, int]

    @property
    def digest(self) -> bytes:
        """What tells two pictures apart."""
        return hashlib.sha256(self.data).digest()

    def views(self) -> ImageViews:
        """Decoded, as in training."""
        tiles = None if self.tiles is None else cut_tiles(decode_image(self.tiles), self.grid)
        return ImageViews(view=place(decode_image(self.data), self.mode), tiles=tiles, grid=self.grid)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One answer to ask for: the ids before it, the images in them, and the answer's own ids without the stop token."""

    source: str
    key: str
    number: int  # of the answer in its sample
    ids: tuple[int, ...]
    images: tuple[StoredImage, ...]
    reference: tuple[int, ...]

    def budget(self, limit: int) -> int:
        """Tokens that the model may write: twice the reference and 64 more tell a loop from an answer."""
        return min(limit, 2 * len(self.reference) + 64)


def questions_of(sample: Sample, specials: dict[str, int], turns: str) -> tuple[list[Question], Counter[str]]:
    """The first answer of a sample, or all (`turns`), and why others were left out."""
    ids, left_out = sample.ids.tolist(), Counter[str]()
    images = []
    for index, meta in enumerate(sample.meta["images"]):
        grid = (int(meta["tiles"][0]), int(meta["tiles"][1]))
        images.append(StoredImage(data=sample.image(index), tiles=sample.tiles(index), mode=meta["mode"], grid=grid))
    ends = np.cumsum([meta["placeholders"] for meta in sample.meta["images"]])
    stops = {specials["assistant_end"], specials["python_start"]}
    found: list[Question] = []
    starts = [at + 1 for at, token in enumerate(ids) if token == specials["assistant_start"]]
    for number, start in enumerate(starts[:1] if turns == "first" else starts):
        end = next((at for at in range(start, len(ids)) if ids[at] in stops or sample.mask[at] != ANSWER), len(ids))
        if end == len(ids) or ids[end] != specials["assistant_end"]:
            left_out["cut" if end == len(ids) else "tools"] += 1
            continue
        seen = ids[:start].count(specials["image"])
        found.append(
            Question(
                source=str(sample.meta["source"]),
                key=sample.key,
                number=number,
                ids=tuple(ids[:start]),
                images=tuple(image for image, stop in zip(images, ends) if stop <= seen),
                reference=tuple(ids[start:end]),
            )
        )
    return found, left_out


def gather(
    directory: ShardDirectory, split: str, limit: int, only: Sequence[str], *, turns: str = "first", seed: int = 0
) -> tuple[list[Question], Counter[str]]:
    """Up to `limit` answers a source, from rows in seeded order; and what was left out, by reason."""
    sources = directory.manifest["sources"]
    if unknown := sorted(set(only) - set(sources)):
        raise ValueError(f"no source {unknown[0]!r} in {directory.store.where}; there are {', '.join(sorted(sources))}")
    specials = special_ids(directory.manifest["specials"])
    wanted = dict.fromkeys(only or sources, limit)
    rows = directory.rows[split]
    questions: list[Question] = []
    left_out: Counter[str] = Counter()
    for index in np.random.default_rng(seed).permutation(len(rows)):
        if not any(wanted.values()):
            break
        for sample in parse_row(directory.store.read_bytes(split, rows[index]), rows[index], split):
            source = str(sample.meta["source"])
            if wanted.get(source, 0):
                found, reasons = questions_of(sample, specials, turns)
                questions += found[: wanted[source]]
                wanted[source] -= len(found[: wanted[source]])
                left_out += reasons
    return questions, left_out


def exchange(questions: Sequence[Question]) -> list[tuple[ImageViews | StoredImage, ...]]:
    """For each question its images, every one replaced by the next different one of the same source and size.

    Where the source has none, another source's of that size serves; where there is none at all, gray.
    """
    pools: dict[tuple[str, ...], dict[bytes, StoredImage]] = {}
    for question in questions:
        for image in question.images:
            size = f"{get_mode(image.mode).side} {image.grid}"
            for pool in ((question.source, size), (size,)):
                pools.setdefault(pool, {})[image.digest] = image
    orders = {pool: list(images) for pool, images in pools.items()}
    ranks = {pool: {digest: rank for rank, digest in enumerate(order)} for pool, order in orders.items()}
    exchanged = []
    for question in questions:
        own = {image.digest for image in question.images}
        others: list[ImageViews | StoredImage] = []
        for image in question.images:
            size = f"{get_mode(image.mode).side} {image.grid}"
            other: ImageViews | StoredImage = _gray(image)
            for pool in ((size,), (question.source, size)):  # the last that has one wins
                order, at = orders[pool], ranks[pool][image.digest]
                following = (order[(at + step) % len(order)] for step in range(1, len(order)))
                if (digest := next((d for d in following if d not in own), None)) is not None:
                    other = pools[pool][digest]
            others.append(other)
        exchanged.append(tuple(others))
    return exchanged


def _gray(image: StoredImage) -> ImageViews:
    """Views of the image's sizes that show nothing."""
    side, (w, h) = get_mode(image.mode).side, image.grid
    tiles = np.full((w * h, TILE, TILE, 3), PAD_COLOUR[0], np.uint8) if w * h else None
    return ImageViews(view=np.full((side, side, 3), PAD_COLOUR[0], np.uint8), tiles=tiles, grid=image.grid)


def ask(
    model: VLM,
    questions: Sequence[Question],
    images: Sequence[tuple[ImageViews | StoredImage, ...]],
    *,
    stop_id: int,
    max_new_tokens: int,
    batch_tokens: int,
) -> list[list[int]]:
    """The model's ids for each question, with those images; questions of like length share a batch."""
    answers: list[list[int]] = [[] for _ in questions]
    order = sorted(range(len(questions)), key=lambda at: (questions[at].budget(max_new_tokens), len(questions[at].ids)))
    batch: list[int] = []
    for place_, at in enumerate(order):
        batch.append(at)
        longest = max(len(questions[member].ids) + questions[member].budget(max_new_tokens) for member in batch)
        last = place_ + 1 == len(order)
        if not last and (len(batch) + 1) * longest <= batch_tokens and _patches(questions, batch) < BATCH_PATCHES:
            continue
        prompts = [
            Prompt(
                ids=questions[member].ids,
                images=tuple(image.views() if isinstance(image, StoredImage) else image for image in images[member]),
            )
            for member in batch
        ]
        budget = max(questions[member].budget(max_new_tokens) for member in batch)
        for member, ids in zip(batch, generate(model, prompts, stop_id=stop_id, max_new_tokens=budget)):
            answers[member] = ids[: questions[member].budget(max_new_tokens)]
        print(f"\r{place_ + 1} of {len(order)} answers", end="\n" if last else "", file=sys.stderr, flush=True)
        batch = []
    return answers


def _patches(questions: Sequence[Question], batch: Sequence[int]) -> int:
    return sum(patches(image.mode, image.grid) for member in batch for image in questions[member].images)


def evaluate(
    model: VLM,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    stop_id: int,
    max_new_tokens: int = 1024,
    batch_tokens: int = 16384,
) -> list[Answer]:
    """Ask every question, and those with images once more with the images exchanged."""
    seeing = [question for question in questions if question.images]
    true = ask(model, questions, [question.images for question in questions], stop_id=stop_id,
               max_new_tokens=max_new_tokens, batch_tokens=batch_tokens)  # fmt: skip
    blind = iter(ask(model, seeing, exchange(seeing), stop_id=stop_id, max_new_tokens=max_new_tokens,
                     batch_tokens=batch_tokens))  # fmt: skip
    return [
        Answer(
            source=question.source,
            key=question.key,
            number=question.number,
            reference=decode_answer(question.reference, tokenizer),
            prediction=decode_answer(ids, tokenizer),
            blind=decode_answer(next(blind), tokenizer) if question.images else None,
            stopped=len(ids) < question.budget(max_new_tokens),
        )
        for question, ids in zip(questions, true)
    ]


def report_folder(weights: Path, split: str) -> Path:
    """Where a report goes by default: in the weights' folder, or, since a run removes its old checkpoints, beside those."""
    place = weights.resolve()
    if checkpoint.NAME.fullmatch(place.name):
        return place.parent / f"evaluation-{split}-{place.name}"
    return place / f"evaluation-{split}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score a checkpoint's own text by source, beside a blind control.",
        epilog="example: python trainer/evaluate.py --shards shards/demo --checkpoint runs/demo --limit 50",
    )
    parser.add_argument("--shards", required=True, help="a shard directory, or s3://bucket/prefix")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run's folder (its best checkpoint) or one checkpoint")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="default: %(default)s")
    parser.add_argument("--source", action="append", default=[], help="only this source; repeatable")
    parser.add_argument("--turns", choices=("first", "all"), default="first", help="answers of a sample (default: %(default)s)")
    parser.add_argument("--limit", type=positive, default=100, help="answers a source (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=positive, default=1024, help="for one answer (default: %(default)s)")
    parser.add_argument("--batch-tokens", type=positive, default=16384, help="prompts and answers a batch (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=4, help="shown a source, the first ones (default: %(default)s)")
    parser.add_argument("--device", type=usable_device, default="cuda" if torch.cuda.is_available() else "cpu",
                        help="default: %(default)s")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the report (default: evaluation-SPLIT-STEP in the run's folder)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        folder = checkpoint.find(args.checkpoint, "best")
        model, meta = load_pretrained(folder)
        tokenizer_json = (folder / "tokenizer.json").read_bytes()
        directory = open_directory(args.shards)
        if load_tokenizer(directory.store.read_file("tokenizer.json")).get_vocab() != load_tokenizer(tokenizer_json).get_vocab():
            raise ValueError(f"{args.shards} was built with another tokenizer than {folder} was trained with")
        questions, left_out = gather(directory, args.split, args.limit, args.source, turns=args.turns)
        if not questions:
            raise ValueError(f"{args.shards} has no {args.split} answers to ask for; try --split train")
        out = args.out or report_folder(folder, args.split)
        out.mkdir(parents=True, exist_ok=True)  # what cannot be written is told before the questions are asked
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    model.to(args.device)
    tokenizer, stop_id = load_tokenizer(tokenizer_json), special_ids(meta["specials"])["assistant_end"]
    answers = evaluate(model, tokenizer, questions, stop_id=stop_id, max_new_tokens=args.max_new_tokens,
                       batch_tokens=args.batch_tokens)  # fmt: skip
    scores = summarise(answers)
    pictures = {(question.key, question.number): question.images[0].views().view for question in questions if question.images}
    about = {"checkpoint": str(args.checkpoint), "step": meta.get("step"), "shards": args.shards, "split": args.split,
             "turns": args.turns, "limit": args.limit, "left_out": dict(left_out)}  # fmt: skip
    write_report(out, answers, scores, pictures, about, args.examples)
    print("\n".join([*example_lines(examples_of(answers, args.examples)), "", *table_lines(scores)]))
    print(json.dumps({"out": str(out), **about, "all": scores["all"]}, ensure_ascii=False))


if __name__ == "__main__":
    main()
