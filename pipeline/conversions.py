"""Where a source that is not parquet comes from: a local path, or hub files that have to be fetched before it is converted.

Most converters name their files outright. olmOCR-mix-1025 names its PDF tarballs inside its tables: the tables come
first, then as many tarballs, in seeded order, as hold the rows that the recipe asks for (all without a quota).
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.convert import CONVERTERS, olmocr
from pipeline.hub.api import HubFile, list_files
from pipeline.hub.retry import DEFAULT, HubError, NotOnHub, Retry
from pipeline.plan import options_of
from pipeline.recipe import Recipe, RecipeError, SourceSpec
from pipeline.seeds import rng
from pipeline.sources import KINDS

SPARE = 1.05    # tarballs for so much more than is asked: some pages have no text


def converter_of(source: SourceSpec) -> str:
    """The key of pipeline.convert.CONVERTERS."""
    return KINDS[source.kind].converter or "jsonl"


def origin_of(source: SourceSpec) -> str | None:
    """The hub repository that a source needs files of; None for rendered and local ones."""
    if source.converted:
        return None if source.path is not None else KINDS[source.kind].origin
    return source.repo if source.on_hub else None


def local_input(source: SourceSpec, recipe: Recipe, raw: Path) -> Path:
    """Where a source's `path` is: absolute, beside the recipe's file, or below raw. Raises RecipeError when nowhere."""
    places = recipe.places_of(source, raw)
    for place in places:
        if place.exists():
            return place
    absent = " nor ".join(map(str, places))
    raise RecipeError(f"[sources.{source.name}] path = {source.path!r}: there is no {absent}. Put it there, name"
                      f" another place with --set {source.name}.path=/FULL/PATH, or go on without it with --allow-missing")


def named_files(source: SourceSpec, repo: str, revision: str, policy: Retry = DEFAULT) -> list[HubFile]:
    """All hub files that a source may be converted from. Raises HubError when one is not there."""
    files = []
    for name in CONVERTERS[converter_of(source)].files:
        folder = name.rstrip("/") if name.endswith("/") else name.rpartition("/")[0]
        found = [file for file in list_files(repo, folder, revision, recursive=name.endswith("/"), policy=policy)
                 if name.endswith("/") or file.path == name]
        if not found:
            raise HubError(f"{repo} has no {name} at {revision}: {source.name} cannot be converted")
        files += found
    return files


def _olmocr_tables(source: SourceSpec, repo: str, revision: str, policy: Retry) -> list[HubFile]:
    part = options_of(source).part
    listed = {file.path: file for file in list_files(repo, "", revision, recursive=False, policy=policy)}
    with contextlib.suppress(NotOnHub):     # the tables of a part may also lie at the top
        listed |= {file.path: file for file in list_files(repo, part, revision, policy=policy)}
    found = olmocr.tables(list(listed), part)
    if not found:
        raise HubError(f"{repo} has no table of part {part!r} at {revision}: [sources.{source.name}] part names one of its folders")
    return [listed[path] for path in found]


def _olmocr_tarballs(source: SourceSpec, recipe: Recipe, tables: Sequence[Path]) -> list[str]:
    """Paths of the tarballs that hold what the recipe asks for."""
    olmocr.tarballs_of(tables)      # refuses paths that leave the repository
    rows: Counter[str] = Counter()
    for table in tables:
        for batch in pq.ParquetFile(table).iter_batches(columns=["pdf_relpath"]):
            rows.update(name.partition(":")[0] for name in batch.column(0).to_pylist() if isinstance(name, str) and ":" in name)
    names = sorted(rows)
    if source.quota is None:    # the plan scales what is there: fetched in part, it would be scaled twice
        return names
    rng(recipe.seed, "tarballs", source.name).shuffle(names)
    left = math.ceil(recipe.asked(source, sum(rows.values())) * SPARE)
    chosen = []
    for name in names:
        if left <= 0:
            break
        chosen.append(name)
        left -= rows[name]
    return sorted(chosen)


def first_files(source: SourceSpec, repo: str, revision: str, policy: Retry = DEFAULT) -> list[HubFile]:
    """The hub files to fetch first."""
    return FIRST.get(converter_of(source), named_files)(source, repo, revision, policy)


def further_files(source: SourceSpec, recipe: Recipe, repo: str, revision: str, raw: Path, first: Sequence[HubFile],
                  policy: Retry = DEFAULT) -> list[HubFile]:
    """The hub files that the first ones (on disk by now) ask for."""
    if converter_of(source) not in FURTHER:
        return []
    wanted = FURTHER[converter_of(source)](source, recipe, [raw / repo / file.path for file in first])
    listed = {file.path: file for file in named_files(source, repo, revision, policy)}
    if absent := [path for path in wanted if path not in listed]:
        raise HubError(f"{repo} names {len(absent)} files that it does not have, as {absent[0]!r}")
    return [listed[path] for path in wanted]


FIRST: dict[str, Callable[[SourceSpec, str, str, Retry], list[HubFile]]] = {"olmocr": _olmocr_tables}
FURTHER: dict[str, Callable[[SourceSpec, Recipe, Sequence[Path]], list[str]]] = {"olmocr": _olmocr_tarballs}
