"""Kinds whose files `pipeline download` turns into FineVision-format parquet; then they are read as FineVision is."""

from dataclasses import dataclass

from pipeline.sources import finevision
from pipeline.sources.kind import Kind


@dataclass(frozen=True, kw_only=True)
class OlmOcrOptions(finevision.Options):
    """FineVision's rules, and which part of olmOCR-mix-1025 to render: "00_documents", "01_books", ..."""

    part: str = "00_documents"


def _kind(converter: str, *, origin: str | None = None, options: type = finevision.Options) -> Kind:
    return Kind(columns=finevision.KIND.columns, required=finevision.KIND.required, convert=finevision.convert,
                options=options, converter=converter, origin=origin)  # fmt: skip


JSONL = _kind("jsonl")
LLAVA_CC3M = _kind("llava", origin="liuhaotian/LLaVA-CC3M-Pretrain-595K")
OLMOCR = _kind("olmocr", origin="allenai/olmOCR-mix-1025", options=OlmOcrOptions)
