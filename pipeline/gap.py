"""The gap table of the training notes: DeepSeek-OCR's size per category against what a plan holds.

    category        DeepSeek-OCR   FineVision    recipe   gap     with rendered   gap
    Chemistry          5,000,000        8,940     8,940  99.8 %         308,940  93.8 %

A FineVision subset counts for the category of the shipped table (formulas and handwriting count for none: DeepSeek-OCR
has no such category); any other source for the category of its bucket. "with rendered" adds what `render-chem` makes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.plan import Plan
from pipeline.recipe import SourceSpec
from pipeline.subsets import shipped_table

# category -> its name and DeepSeek-OCR's size (its section 3.4)
DEEPSEEK: dict[str, tuple[str, int]] = {
    "pdf": ("PDF documents", 30_000_000),
    "scene": ("Scene text", 20_000_000),
    "charts": ("Charts", 10_000_000),
    "chemistry": ("Chemistry", 5_000_000),
    "geometry": ("Geometry", 1_000_000),
}
OF_BUCKET = {"document": "pdf", "scene text": "scene", "charts and tables": "charts", "chemistry": "chemistry",
             "geometry and math": "geometry"}


@dataclass(frozen=True, kw_only=True)
class GapRow:
    """One category, in rows. `finevision`: all its subsets whose rows are known; gaps are shares from 0 to 1."""

    category: str
    deepseek: int
    finevision: int
    before: int
    after: int

    @property
    def gap_before(self) -> float:
        return max(0.0, 1 - self.before / self.deepseek)

    @property
    def gap_after(self) -> float:
        return max(0.0, 1 - self.after / self.deepseek)


def category_of(source: SourceSpec) -> str:
    """The DeepSeek-OCR category that a source counts for, "" for none."""
    known = shipped_table().get(source.folder or source.name)
    return known.deepseek if known is not None and source.kind == "finevision" else OF_BUCKET.get(source.bucket, "")


def gap_table(plan: Plan, expected: Mapping[str, int]) -> list[GapRow]:
    """The table for a plan. `expected` has the rows of sources that are still to be rendered (by name)."""
    got = {source.name: source.rows for source in plan.sources} | dict(expected)
    out = []
    for key, (category, size) in DEEPSEEK.items():
        mine = [source for source in plan.recipe.sources if category_of(source) == key]
        before = sum(got[s.name] for s in mine if not s.repo.startswith("rendered/"))
        rendered = sum(got[s.name] for s in mine if s.repo.startswith("rendered/"))
        known = sum(subset.rows or 0 for subset in shipped_table().values() if subset.deepseek == key)
        out.append(GapRow(category=category, deepseek=size, finevision=known, before=before, after=before + rendered))
    return out
