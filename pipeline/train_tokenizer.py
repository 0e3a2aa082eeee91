"""Trains a byte-level BPE tokenizer on given text.

Byte-level, so that any text can be encoded and given back; words are cut by a GPT-4-like pattern with digits in pairs.
The same texts in the same order give the same file: the library's trainer breaks ties by id, and the alphabet is fixed.

Cost: about 10 s and 300 MB for 100 MB of text on two cores; the texts are streamed.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.conversation import Reject, clean_text
from pipeline.hub.remote import open_remote
from pipeline.plan import Block, Plan, options_of
from pipeline.seeds import rng
from pipeline.sources import KINDS
from pipeline.sources.rows import iter_rows, open_parquet
from pipeline.tokens import ATOMS, SPECIAL_TOKENS

DEFAULT_VOCAB = 8192
MAX_TOKEN = 32
"""Bytes of a token at most, so that rules of dashes and runs of one digit do not fill the vocabulary."""

# As GPT-4's, with one or two digits a token: long numbers cost more, but a small vocabulary is not spent on them.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


def train_bpe(texts: Iterable[str], *, vocab_size: int = DEFAULT_VOCAB, atoms: Sequence[str] = ()) -> bytes:
    """The bytes of a tokenizer.json with exactly vocab_size ids where the text has enough to merge.

    vocab_size counts the 256 bytes, the special tokens and the atoms (keys of pipeline.tokens.ATOMS). Raises ValueError
    when there is no room for these or no text.
    """
    tags = [tag for atom in atoms for tag in ATOMS[atom]]
    least = 256 + len(SPECIAL_TOKENS) + len(tags)
    if vocab_size < least:
        raise ValueError(f"vocab size {vocab_size}: at least {least} are needed for bytes, special tokens and atoms")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS) - len(tags),
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=MAX_TOKEN,
        show_progress=False,
    )
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen += len(text)
            yield clean_text(text)

    tokenizer.train_from_iterator(counted(), trainer)
    if not seen:
        raise ValueError("no text to train a tokenizer on")
    tokenizer.add_tokens(tags)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return str(tokenizer.to_str(pretty=False)).encode()


def plan_texts(plan: Plan, max_bytes: int) -> Iterator[str]:
    """Texts of the rows that a plan takes, message by message, about max_bytes of them in all.

    Each source gives in proportion to its text, from row groups in seeded order. Images are not read.
    """
    total = sum(source.text_bytes for source in plan.sources) or 1
    for number, source in enumerate(plan.sources):
        budget = max(max_bytes * source.text_bytes // total, 1)
        blocks = sorted((b for shard in plan.shards for b in shard if b.source == number), key=lambda b: (b.file, b.first))
        rng(plan.recipe.seed, "tokenizer", source.name).shuffle(blocks)
        for block in blocks:
            for text in _block_texts(plan, block):
                budget -= len(text.encode(errors="replace"))
                yield text
            if budget <= 0:
                break


def _block_texts(plan: Plan, block: Block) -> Iterator[str]:
    """Texts of one block's rows; rows that cannot be used give none."""
    spec = plan.recipe.sources[block.source]
    kind, rules = KINDS[spec.kind], options_of(spec)
    if "images" in kind.columns and not kind.text_only:  # without them no marker can be counted, and they are not learnt here
        kind = replace(kind, columns=tuple(name for name in kind.columns if name not in ("images", "image")))
        rules = replace(rules, markers="text", min_images=0)
    ref = plan.files[block.file].ref
    with open(ref.local, "rb") if ref.local is not None else open_remote(ref.repo, ref.revision, ref.path, ref.size) as handle:
        wanted = range(block.start, block.stop, block.step)
        for index, row in iter_rows(open_parquet(handle), block.group, kind, start=block.start):
            if index >= block.stop:
                return
            if index not in wanted or isinstance(row, Reject):
                continue
            try:
                conversation = kind.convert(row, source=spec.name, row_id=str(index), options=rules)
            except Reject:
                continue
            for message in conversation.messages:
                yield message.content


def file_texts(paths: Iterable[Path], *, piece: int = 1_000_000) -> Iterator[str]:
    """The texts of plain files (UTF-8) and of JSONL files (every string in them), in pieces of bounded size."""
    for path in paths:
        with path.open(encoding="utf-8", errors="replace") as lines:
            if path.suffix == ".jsonl":
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        try:
                            yield from _strings(json.loads(line))
                        except (ValueError, RecursionError) as error:
                            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            else:
                while text := lines.read(piece):
                    yield text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
