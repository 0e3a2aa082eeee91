"""olmOCR-mix-1025 (allenai): pages of PDFs in tarballs, rendered, with their transcription.

The data set holds tables (id, natural_text, page_number, rotation_correction, pdf_relpath = "pdf_tarballs/CHUNK.tar.gz:name")
and the tarballs. A unit is the rows of one tarball: it is read once from front to back, nothing is unpacked, and a PDF is held
only while its pages are rendered. The rotation is applied clockwise, as the set defines it, so that the text stands upright.

    part = "00_documents"       which of the set's parts (01_books, ...)

Needs the extra `pdf`. Cost: 0.1 to 0.2 s a page and core, so 231 k documents take about 4 hours on two cores.
"""

import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from pipeline.conversation import Reject
from pipeline.convert.pdf import PdfRenderer, require_pdfium
from pipeline.convert.rows import OutRow
from pipeline.sources.rows import is_damage

TARBALLS = "pdf_tarballs/"
FILES = (TARBALLS,)
PROMPT = "OCR this document."
PART = "00_documents"
MAX_PDF = 200 << 20
ROTATIONS = (0, 90, 180, 270)
_COLUMNS = ("id", "natural_text", "page_number", "rotation_correction", "pdf_relpath")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Where the rows of one tarball stand: (table, row group) pairs, in order."""

    tarball: str
    groups: tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class Page:
    """One row: a page of a PDF and its text."""

    member: str
    number: int
    rotation: int
    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class OlmOcrJob:
    """A Job over tarballs; see pipeline.convert.rows."""

    folder: Path
    tarballs: tuple[Wanted, ...]
    identity: dict[str, Any]

    @property
    def units(self) -> int:
        return len(self.tarballs)

    def rows(self, unit: int) -> Iterator[OutRow | Reject]:
        wanted = self.tarballs[unit]
        pages: dict[str, list[Page]] = {}
        for item in _pages(self.folder, wanted):
            if isinstance(item, Reject):
                yield item
            else:
                pages.setdefault(item.member, []).append(item)
        with PdfRenderer() as renderer:
            for name, document in _members(self.folder / wanted.tarball, pages):
                for page in pages.pop(name, []):
                    try:
                        if isinstance(document, Reject):
                            raise document
                        image = renderer.render(document, page.number, rotation=page.rotation)
                        label = f"{PurePosixPath(name).stem}-{page.number}.png"
                        yield OutRow(turns=((PROMPT, page.text),), images=((label, image),), source=page.source)
                    except Reject as error:
                        yield Reject(error.reason, f"{page.source}: {error.detail}")
        for rest in pages.values():
            for page in rest:
                yield Reject("pdf-missing", f"{page.source}: {page.member} is not in {wanted.tarball}, or behind damage in it")


def tables(paths: Sequence[str], part: str) -> list[str]:
    """The tables of a part among a repository's paths: its training ones where it also has others."""
    found = sorted(path for path in paths if path.endswith(".parquet") and part in path)
    return [path for path in found if "train" in path.removeprefix(part)] or found


def tarballs_of(paths: Sequence[Path]) -> list[str]:
    """The tarballs that tables name, as paths in the repository: what to fetch. Raises ValueError for other paths."""
    names = {name for path in paths for group in range(pq.ParquetFile(path).num_row_groups) for name in _tarballs(path, group)}
    for name in names:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"{name!r} in pdf_relpath leaves the data set")
    return sorted(names)


def make_job(source: Path, *, name: str, options: Any = None) -> OlmOcrJob:
    """Cuts a part's rows by tarball. Raises ValueError when a file is absent or pypdfium2 is not installed."""
    require_pdfium()
    part = getattr(options, "part", PART)
    files = tables([path.relative_to(source).as_posix() for path in source.rglob("*.parquet")], part)
    if not files:
        raise ValueError(f"source {name}: no parquet of part {part!r} below {source}; run pipeline download")
    tarballs_of([source / file for file in files])
    places: dict[str, list[tuple[str, int]]] = {}
    for file in files:
        for group in range(pq.ParquetFile(source / file).num_row_groups):
            for tarball in _tarballs(source / file, group):
                places.setdefault(tarball, []).append((file, group))
    here = {tarball: groups for tarball, groups in sorted(places.items()) if (source / tarball).is_file()}
    if not here:
        raise ValueError(f"source {name}: none of the {len(places)} tarballs is below {source / TARBALLS}; run pipeline download")
    seen = [[file, (source / file).stat().st_size, (source / file).stat().st_mtime_ns] for file in [*files, *here]]
    return OlmOcrJob(
        folder=source, tarballs=tuple(Wanted(tarball=tarball, groups=tuple(groups)) for tarball, groups in here.items()),
        identity={"converter": "olmocr", "part": part, "files": seen},
    )  # fmt: skip


def _tarballs(path: Path, group: int) -> list[str]:
    """The tarballs that a row group's rows are in."""
    column = pq.ParquetFile(path).read_row_group(group, columns=["pdf_relpath"]).column(0)
    return sorted({value.partition(":")[0] for value in column.to_pylist() if isinstance(value, str) and ":" in value})


def _pages(folder: Path, wanted: Wanted) -> Iterator[Page | Reject]:
    """The rows of one tarball; a Reject for those that name no page or have no text."""
    for file, group in wanted.groups:
        table = pq.ParquetFile(folder / file)
        columns = [name for name in _COLUMNS if name in table.schema_arrow.names]
        for index, row in enumerate(table.read_row_group(group, columns=columns).to_pylist()):
            tarball, _, member = (row.get("pdf_relpath") or "").partition(":")
            if tarball != wanted.tarball:
                continue
            source = f"{row.get('id') or f'{file}#{group}/{index}'}"
            text, number, rotation = row.get("natural_text"), row.get("page_number"), row.get("rotation_correction") or 0
            if not isinstance(text, str) or not text.strip():
                yield Reject("no-answer", f"{source}: natural_text is null or empty")
            elif not isinstance(number, int) or rotation not in ROTATIONS:
                yield Reject("layout", f"{source}: page {number!r}, rotation {rotation!r}")
            else:
                yield Page(member=_clean(member), number=number, rotation=rotation, text=text, source=source)


def _members(path: Path, wanted: dict[str, list[Page]]) -> Iterator[tuple[str, bytes | Reject]]:
    """(name, bytes) of the wanted members in the tarball's order, until all were seen or the tarball ends or breaks."""
    left = set(wanted)
    try:
        with tarfile.open(path, mode="r|*") as archive:
            for member in archive:
                name = _clean(member.name)
                if name not in left or not member.isfile():
                    continue
                left.discard(name)
                if member.size > MAX_PDF:
                    yield name, Reject("pdf-unreadable", f"{name} has {member.size} bytes; the limit is {MAX_PDF}")
                else:
                    file = archive.extractfile(member)
                    assert file is not None
                    yield name, file.read()
                if not left:
                    return
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        # What is behind the damage is rejected by the caller; an error of the disk is not damage.
        if isinstance(error, OSError) and error.errno is not None and not is_damage(error):
            raise


def _clean(name: str) -> str:
    return name.removeprefix("./")
