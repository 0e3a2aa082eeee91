"""The 185 subsets of FineVision: a table that ships with the package, and the same refreshed from the hub.

`pipeline/data/finevision_subsets.tsv` has name, bucket, parquet files, rows, GB and the DeepSeek-OCR category that the
subset counts for; "-" where nothing is known. Buckets follow the training notes, and FineVision's own grouping for the
subsets that the notes leave out. `refresh` costs one page a 1,000 files and the README, whose yaml has the rows.
"""

import importlib.resources
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pipeline.hub import client
from pipeline.hub.api import list_files, resolve_revision
from pipeline.hub.retry import Retry, call
from pipeline.recipe import FINEVISION, RecipeError, nearest

PATIENCE = Retry(tries=4)   # a listing is not worth minutes of waiting


class UnknownSubset(RecipeError):
    """A name that is no subset; the message has the nearest that are."""


@dataclass(frozen=True, kw_only=True)
class Subset:
    """One config of FineVision. rows and gb are None where unknown; `deepseek` as in pipeline.gap, "" for none."""

    name: str
    bucket: str
    files: int
    rows: int | None
    gb: float | None
    deepseek: str = ""


@lru_cache(maxsize=1)
def shipped_table() -> dict[str, Subset]:
    """The table that ships with the package, by name."""
    text = (importlib.resources.files("pipeline") / "data" / "finevision_subsets.tsv").read_text(encoding="utf-8")
    table = {}
    for line in text.splitlines()[1:]:
        name, bucket, files, rows, gb, deepseek = line.split("\t")
        table[name] = Subset(name=name, bucket=bucket, files=int(files), rows=None if rows == "-" else int(rows),
                             gb=None if gb == "-" else float(gb), deepseek="" if deepseek == "-" else deepseek)
    return table


def check_names(names: Iterable[str], known: Sequence[str], what: str = "subset") -> None:
    """Raises UnknownSubset for the first name that is not known, with the nearest that are."""
    for name in names:
        if name not in known:
            raise UnknownSubset(f"no {what} {name!r}{nearest(name, list(known))}")


def refresh(policy: Retry = PATIENCE) -> dict[str, Subset]:
    """The subsets as the hub has them now. Raises HubError when it cannot be asked."""
    revision = resolve_revision(FINEVISION, policy=policy)
    files = list_files(FINEVISION, "", revision, policy=policy)
    sizes: dict[str, list[int]] = {}
    for file in files:
        name, slash, rest = file.path.rpartition("/")
        if slash and rest.endswith(".parquet") and "/" not in name:
            sizes.setdefault(name, []).append(file.size)
    rows = readme_rows(_readme(revision, policy)) if any(f.path == "README.md" for f in files) else {}
    shipped = shipped_table()
    table = {}
    for name in sorted(sizes, key=str.lower):
        known = shipped.get(name, Subset(name=name, bucket="-", files=0, rows=None, gb=None))
        table[name] = replace(known, files=len(sizes[name]), gb=round(sum(sizes[name]) / 1e9, 3),
                              rows=rows.get(name, known.rows))
    return table


def _readme(revision: str, policy: Retry) -> str:
    url = client.file_url(FINEVISION, revision, "README.md")
    body, _ = call(lambda: client.get(url), what="README.md", policy=policy)
    return body.decode("utf-8", "replace")


def readme_rows(text: str) -> dict[str, int]:
    """Rows of each config's train split, from a data card's yaml; nothing where the yaml is odd."""
    from huggingface_hub.repocard import RepoCard
    try:
        card: Any = RepoCard(text, ignore_metadata_errors=True)
        infos = card.data.to_dict().get("dataset_info") or []
    except Exception:   # any parser's error: rows are a courtesy here
        return {}
    rows = {}
    for info in infos if isinstance(infos, list) else [infos]:
        for split in (info.get("splits") or []) if isinstance(info, dict) else []:
            if isinstance(split, dict) and split.get("name") == "train" and isinstance(split.get("num_examples"), int):
                rows[str(info.get("config_name", "default"))] = split["num_examples"]
    return rows
