"""OTSL tables: read strictly, kept as they are or written as HTML or Markdown with docling-core.

    <fcel>a<lcel><nl><fcel>1<fcel>2<nl>     one cell over two columns, then two cells

Cell codes: fcel (text), ecel (empty), ched / rhed / srow (column header, row header, section row: cells with text), lcel
(the cell to the left goes on), ucel (the cell above goes on), xcel (both). `nl` ends a row. Valid means: every row ends,
rows are equally long, spans are rectangles of one cell, and only cells that hold text have text. Chart answers wrap a table
in `<chart>`, boxes (`<loc_0>`) and the chart's type; some lack the opening tag. A caption and the wrapping are dropped in
HTML and Markdown.

docling-core's own reader is not strict: a `<fcel>` without text takes the next tag as its text, and a "<" in a cell loses
text. So cells are read here, and its document model and serializers write them.

Cost: 2 to 4 ms for a table of 50 cells.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.conversation import Reject

REASON = "otsl-invalid"
MAX_CELLS = 10_000
"""A larger table is a defect: the largest in the sets have some hundreds of cells."""

_CODE = re.compile(r"<(fcel|ecel|lcel|ucel|xcel|nl|ched|rhed|srow)>")
_WRAPPER = re.compile(r"</?(?:chart|otsl)>")
# A box, the wrapping, a caption, and the chart's type or a picture's class (<bar_chart>, <_Chart_>): any tag but a cell code.
_ANY_TAG = rf"(?!{_CODE.pattern}|<caption>)<\w{{1,40}}>"
_BEFORE = re.compile(rf"(?:\s|<loc_\d+>|</?(?:chart|otsl)>|<caption>(?P<caption>.*?)</caption>|{_ANY_TAG})*", re.DOTALL)
_CELLS = {"fcel", "ecel", "ched", "rhed", "srow"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell and the rectangle it covers; code is one of fcel, ecel, ched, rhed, srow."""

    code: str
    text: str
    row: int
    column: int
    rows: int = 1
    columns: int = 1


@dataclass(frozen=True, kw_only=True)
class Table:
    """A valid table. caption is "" when it has none."""

    rows: int
    columns: int
    cells: tuple[Cell, ...]
    caption: str = ""


def parse_otsl(text: str) -> Table:
    """Reads OTSL with or without its wrapping. Raises Reject("otsl-invalid") that says what is wrong where."""
    body = text.strip()
    before = _BEFORE.match(body)
    assert before is not None  # it matches the empty string
    caption = re.sub(r"<loc_\d+>", "", before["caption"] or "").strip()
    body = body[before.end() :]
    while tail := re.search(r"\s*</(?:chart|otsl)>$", body):
        body = body[: tail.start()]
    if not _CODE.match(body):
        raise Reject(REASON, f"no table: the answer starts with {text.strip()[:40]!r}")
    grid = _grid(body)
    return Table(rows=len(grid), columns=len(grid[0]), cells=tuple(_cells(grid)), caption=caption)


def _grid(body: str) -> list[list[tuple[str, str]]]:
    """Rows of (code, text), equally long."""
    pieces = _CODE.split(body)[1:]
    if len(pieces) // 2 > MAX_CELLS:
        raise Reject(REASON, f"more than {MAX_CELLS} cells")
    grid: list[list[tuple[str, str]]] = []
    row: list[tuple[str, str]] = []
    for code, cell in zip(pieces[::2], pieces[1::2]):
        cell = re.sub(r"<loc_\d+>", "", cell).strip()
        if cell and code in ("ecel", "lcel", "ucel", "xcel", "nl"):
            raise Reject(REASON, f"text {cell[:40]!r} after <{code}>, row {len(grid) + 1}")
        if _WRAPPER.search(cell):
            raise Reject(REASON, f"a table inside a cell, row {len(grid) + 1}")
        if code != "nl":
            row.append((code, cell))
            continue
        if not row:
            raise Reject(REASON, f"row {len(grid) + 1} is empty")
        if grid and len(row) != len(grid[0]):
            raise Reject(REASON, f"row {len(grid) + 1} has {len(row)} cells, row 1 has {len(grid[0])}")
        grid.append(row)
        row = []
    if row:
        raise Reject(REASON, "the last row does not end with <nl>")
    return grid


def _cells(grid: Sequence[Sequence[tuple[str, str]]]) -> list[Cell]:
    """The cells with their spans; every lcel, ucel and xcel must belong to the rectangle of one cell."""
    rows, columns = len(grid), len(grid[0])
    covered = 0
    cells = []
    for r, line in enumerate(grid):
        for c, (code, text) in enumerate(line):
            if code not in _CELLS:
                continue
            width = height = 1
            while c + width < columns and grid[r][c + width][0] == "lcel":
                width += 1
            while r + height < rows and grid[r + height][c][0] == "ucel":
                height += 1
            inner = [grid[y][x][0] for y in range(r + 1, r + height) for x in range(c + 1, c + width)]
            if any(code != "xcel" for code in inner):
                raise Reject(REASON, f"the cell of row {r + 1}, column {c + 1} spans no rectangle")
            covered += width * height
            cells.append(Cell(code=code if text else "ecel", text=text, row=r, column=c, rows=height, columns=width))
    if covered != rows * columns:
        raise Reject(REASON, f"{rows * columns - covered} lcel, ucel or xcel go on no cell")
    return cells


def to_otsl(table: Table) -> str:
    """The table's rows as OTSL, without wrapping."""
    grid = [["xcel"] * table.columns for _ in range(table.rows)]
    for cell in table.cells:
        for c in range(cell.column, cell.column + cell.columns):
            grid[cell.row][c] = "lcel"
        for r in range(cell.row, cell.row + cell.rows):
            grid[r][cell.column] = "ucel"
        grid[cell.row][cell.column] = f"{cell.code}>{cell.text}"
    return "".join("".join(f"<{code}" if ">" in code else f"<{code}>" for code in row) + "<nl>" for row in grid)


def docling_table(table: Table) -> Any:
    """The table as docling-core's TableData."""
    from docling_core.types.doc.items.table.table_data import TableCell, TableData

    cells = [
        TableCell(
            text=cell.text, row_span=cell.rows, col_span=cell.columns, start_row_offset_idx=cell.row,
            end_row_offset_idx=cell.row + cell.rows, start_col_offset_idx=cell.column,
            end_col_offset_idx=cell.column + cell.columns, column_header=cell.code == "ched",
            row_header=cell.code == "rhed", row_section=cell.code == "srow",
        )
        for cell in table.cells
    ]  # fmt: skip
    return TableData(num_rows=table.rows, num_cols=table.columns, table_cells=cells)


def convert_otsl(answer: str, form: str) -> str:
    """A table answer as "keep" (checked only), "html" or "markdown". Raises Reject("otsl-invalid")."""
    table = parse_otsl(answer)
    if form == "keep":
        return answer
    from docling_core.types.doc.document import DoclingDocument

    document = DoclingDocument(name="table")
    item = document.add_table(data=docling_table(table))
    if form == "html":
        from docling_core.transforms.serializer.html import HTMLDocSerializer

        return str(HTMLDocSerializer(doc=document).serialize(item=item).text)
    assert form == "markdown"
    return markdown(document, item)


def markdown(document: Any, item: Any = None) -> str:
    """Markdown of a docling document, or of one item: plain characters, tables without padding, pages kept apart."""
    from docling_core.transforms.serializer.markdown import MarkdownDocSerializer, MarkdownParams

    params = MarkdownParams(compact_tables=True, escape_html=False, escape_underscores=False, image_placeholder="",
                            page_break_placeholder="<page_break>")  # fmt: skip
    serializer = MarkdownDocSerializer(doc=document, params=params)
    return str((serializer.serialize(item=item) if item is not None else serializer.serialize()).text)
