"""Small FineVision-format sets with real pictures, a tokenizer file and a recipe: what tests of whole builds start from."""

import io
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from pipeline.build.local import TaskDone, run_tasks
from pipeline.build.run import BuildReport, build
from pipeline.build.runner import run_task
from pipeline.build.state import BuildState
from pipeline.plan import Plan, make_plan
from pipeline.recipe import load_recipe
from tests.pipeline.tiny import WORDS, tiny_tokenizer

SET = "HuggingFaceM4/FineVision"
IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
TEXTS = pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))


def picture(number: int, size: tuple[int, int] = (90, 60)) -> bytes:
    """A PNG that differs by number."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((4, 4 + number % 40), f"page {number}", fill="black")
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def row(number: int, *, images: int = 1, turns: int = 1) -> dict[str, Any]:
    """A row with `images` pictures and answers of varying length."""
    chance = random.Random(number)
    texts = [{"user": f"Read {number}, {turn}.", "assistant": WORDS * chance.randrange(1, 6) + str(number)}
             for turn in range(turns)]
    return {"images": [{"bytes": picture(number * 10 + k), "path": None} for k in range(images)], "texts": texts,
            "source": "made"}


def write_rows(path: Path, rows: Sequence[dict[str, Any]], *, group: int = 5) -> None:
    """A parquet file of these rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"images": pa.array([r["images"] for r in rows], IMAGES), "texts": pa.array([r["texts"] for r in rows], TEXTS),
                      "source": [r["source"] for r in rows]})
    pq.write_table(table, path, row_group_size=group)


def write_recipe(folder: Path, sources: str, *, more: str = "", seq_len: int = 512, shard_samples: int = 20) -> Path:
    """A recipe file with those source tables, and the tokenizer it names."""
    (folder / "tokenizer.json").write_bytes(tiny_tokenizer().to_json())
    path = folder / "small.toml"
    path.write_text(f'tokenizer = "{folder / "tokenizer.json"}"\nmode = "micro"\nseq_len = {seq_len}\nvalidation = 0.1\n'
                    f"shard_samples = {shard_samples}\n{more}\n{sources}\n")
    return path


def small_raw(folder: Path, rows: int = 60) -> Path:
    """Two sets below folder/raw: `pages` with pictures, `talk` without; the recipe is folder/small.toml."""
    write_rows(folder / "raw" / SET / "pages" / "train-00000-of-00001.parquet",
               [row(n, images=1 + n % 2, turns=1 + n % 3) for n in range(rows)])
    write_rows(folder / "raw" / SET / "talk" / "train-00000-of-00001.parquet",
               [row(1000 + n, images=0, turns=2) for n in range(rows)])
    return write_recipe(folder, "[sources.pages]\n[sources.talk]")


def small_plan(recipe: Path, **changes: Any) -> Plan:
    """The plan of a recipe whose sets lie in raw/ beside it."""
    return make_plan(load_recipe(str(recipe), **changes), raw=recipe.parent / "raw", tokenizer=tiny_tokenizer())


def run_build(plan: Plan, state: BuildState, *, workers: int = 0, **options: Any) -> BuildReport:
    """Build with local workers; 0 builds in this process, which is quicker."""

    def execute(shards: Iterable[int], beat: Callable[[int], None]) -> Iterator[TaskDone]:
        if workers:
            yield from run_tasks(plan, shards, state, tiny_tokenizer(), workers=workers, beat=beat)
            return
        for shard in shards:
            result = run_task(plan, shard, tiny_tokenizer(), state, _no_beat, state.quarantine())
            yield TaskDone(shard=shard, result=result, seconds=0.0)

    return build(plan, state, tiny_tokenizer(), execute, quiet=True, **options)


def _no_beat(source: str, row: str, begun: int = 0) -> None:
    pass


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
