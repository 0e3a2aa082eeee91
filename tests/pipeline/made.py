"""Small data sets in the layout of `raw/`, recipes over them, and builds of them: what the tests of the build share."""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.build.local import TaskDone
from pipeline.build.run import BuildReport, build
from pipeline.build.state import open_build
from pipeline.build.task import Task
from pipeline.plan import Plan, make_plan
from pipeline.recipe import FINEVISION, load_recipe
from pipeline.tokens import Tokenizer, prepare
from shards import table
from shards.reader import ShardReader
from shards.sample import Sample
from tests.pipeline.tiny import WORDS, tiny_tokenizer

IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
TEXTS = pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))
SCHEMA = pa.schema([("images", IMAGES), ("texts", TEXTS), ("source", pa.string())])

RECIPE = """
name = "made"
tokenizer = {tokenizer!r}
mode = "micro"
seq_len = 1024
validation = 0.2
shard_samples = 30
[train]
batch_rows = 2
lr = 1e-3
[sources.docs]
overlong = "split"
[sources."words(made)"]
mode = "tiny"
[sources.scans]
mode = "gundam"
quota = 4
[sources.talk]
bucket = "text"
repeats = 2
[sources.sums]
kind = "gsm8k"
"""


def picture(seed: int, width: int = 60, height: int = 40, kind: str = "PNG", **options: Any) -> bytes:
    """An encoded picture of random blocks."""
    blocks = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (3, 3, 3), dtype=np.uint8))
    sink = io.BytesIO()
    blocks.resize((width, height), Image.Resampling.NEAREST).save(sink, kind, **options)
    return sink.getvalue()


def row(images: Sequence[bytes], turns: Sequence[tuple[str, str]], **more: Any) -> dict[str, Any]:
    """A row in FineVision's layout."""
    return {"images": [{"bytes": data, "path": f"{at}.png"} for at, data in enumerate(images)] or None,
            "texts": [{"user": user, "assistant": answer} for user, answer in turns], "source": "made", **more}


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], *, group: int = 5, schema: pa.Schema = SCHEMA,
                  **options: Any) -> Path:
    """A parquet file of rows, `group` rows a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, row_group_size=group, **options)
    return path


def write_set(raw: Path, name: str, rows: Sequence[dict[str, Any]], *, files: int = 1, group: int = 5, repo: str = FINEVISION,
              schema: pa.Schema = SCHEMA) -> list[Path]:
    """A set of `files` parquet files below raw; rows are split evenly and keep their order."""
    cuts = [len(rows) * at // files for at in range(files + 1)]
    return [write_parquet(raw / repo / name / f"train-{at:05d}-of-{files:05d}.parquet", rows[cuts[at]:cuts[at + 1]], group=group,
                          schema=schema) for at in range(files)]


def words(seed: int, count: int) -> str:
    """Some words."""
    return " ".join(np.random.default_rng(seed).choice(WORDS.split(), count).tolist())


def make_raw(raw: Path) -> Path:
    """Five small sets: documents (several turns and pages), word crops, large scans, talk, sums; a few rows are bad."""
    docs = [row([picture(at * 10 + page) for page in range(1 + at % 3)],
                [(f"{'<image>' * (1 + at % 3) if turn == 0 and at % 2 else ''}Read {at} {turn}.", words(at, 40 + 80 * (at % 5)))
                 for turn in range(1 + at % 4)]) for at in range(23)]
    docs[7]["images"][1] = {"bytes": b"no picture", "path": "x.png"}
    docs[11]["texts"] = [None, {"user": "null answer", "assistant": None}]
    docs[12]["texts"].insert(1, None)
    write_set(raw, "docs", docs, files=3, group=4)
    crops = [row([picture(at % 40, 90, 20)], [("Which word?", words(at, 1))]) for at in range(45)]  # rows 40.. are twins of 0..
    write_set(raw, "words(made)", crops, files=2, group=10)
    write_set(raw, "scans", [row([picture(at, 660, 330, "JPEG")], [("Read.", words(at, 40))]) for at in range(6)], group=2)
    write_set(raw, "talk", [row([], [(words(at, 3), words(at + 1, 12))] * 2) for at in range(20)], group=8)
    sums = pa.schema([("question", pa.string()), ("answer", pa.string())])
    write_set(raw, "main", [{"question": f"{at} + 1?", "answer": f"It is <<{at}+1={at + 1}>>{at + 1}.\n#### {at + 1}"}
                            for at in range(15)], repo="openai/gsm8k", group=15, schema=sums)
    return raw


def write_tokenizer(folder: Path) -> Path:
    """The tiny tokenizer as a tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer().to_json())
    return folder / "tokenizer.json"


def write_recipe(folder: Path, text: str = RECIPE, name: str = "made") -> Path:
    """A recipe file beside its tokenizer; `{tokenizer!r}` in the text is replaced."""
    path = folder / f"{name}.toml"
    path.write_text(text.replace("{tokenizer!r}", repr(str(write_tokenizer(folder)))))
    return path


def tokenizer_of(recipe: Path) -> Tokenizer:
    """The tokenizer beside a recipe, loaded as the command does."""
    return prepare((recipe.parent / "tokenizer.json").read_bytes(), name=str(recipe.parent / "tokenizer.json"))


def plan_of(recipe: Path, raw: Path, **changes: Any) -> Plan:
    """The plan of a build."""
    return make_plan(load_recipe(str(recipe), **changes), raw=raw, tokenizer=tokenizer_of(recipe), allow_missing=True)


def in_process(plan: Plan, out: Path, recipe: Path, *, fresh: bool = False, order: Sequence[int] | None = None,
               **options: Any) -> BuildReport:
    """A build whose tasks run in this process, one after another (only these, in this order, where an order is given)."""
    state = open_build(plan, out, fresh=fresh)
    tokenizer = tokenizer_of(recipe)

    def execute(shards: Iterable[int], beat: Any) -> Iterator[TaskDone]:
        asked = list(shards)
        for shard in [at for at in order if at in asked] if order is not None else asked:
            result = Task(plan, shard, tokenizer, state.folders, lambda source, row, begun=0: None, state.quarantine()).run()
            yield TaskDone(shard=shard, result=result, seconds=0.0)

    return build(plan, state, tokenizer, execute, quiet=True, **options)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def read_samples(folder: Path, split: str = "train") -> list[Sample]:
    """All samples of a split, row by row."""
    reader = ShardReader(folder, split)
    found = [sample for entry in table.load(folder / table.FILES[split]) for sample in reader.read(entry)]
    reader.close()
    return found


def all_samples(folder: Path) -> list[Sample]:
    """Both splits."""
    return read_samples(folder) + read_samples(folder, "val")


def rejects(folder: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(source, row) -> (reason, detail)."""
    return {(line["source"], line["row"]): (line["reason"], line["detail"])
            for line in pq.read_table(folder / "rejects.parquet").to_pylist()}
