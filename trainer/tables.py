"""TEDS: how alike two tables are, by the edit distance of their trees (Zhong et al. 2019, arXiv 1911.10683).

    teds("<table><tr><td>1</td></tr></table>", "<otsl><fcel>1<nl></otsl>")   1.0

Tables are read from HTML or from OTSL (the small table notation of SynthChartNet and DocTags) into one form: rows of
cells, each with its text and its spans; header cells are cells. The tree is table, rows, cells. Inserting or deleting a
node costs 1, a cell in the place of one with other spans costs 1, else the normalised edit distance of their texts;
TEDS = 1 - distance / nodes of the larger tree. The distance is Zhang and Shasha's (1989), written here for a tree of any
shape. Cost: 0.2 s for two tables of 100 cells, growing with the product of their sizes; tables of more than MAX_NODES
nodes are not scored.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from html.parser import HTMLParser

from trainer.metrics import normalise, normalised_edit_distance

MAX_NODES = 500
MAX_SPAN = 100  # HTML may claim any number

_TAG = r"fcel|ecel|ched|rhed|srow|lcel|ucel|xcel|nl"
OTSL = re.compile(rf"<({_TAG})>((?:[^<]|<(?!/?(?:{_TAG}|otsl|chart|doctag)>))*)")  # a cell's text runs to the next tag


@dataclass(kw_only=True)
class Cell:
    """A cell: its text and how many columns and rows it spans."""

    text: str = ""
    columns: int = 1
    rows: int = 1


Table = list[list[Cell]]


class _TableReader(HTMLParser):
    """The first table of a text; tables inside its cells are read as their text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.table: Table = []
        self.depth, self.closed, self.cell = 0, False, False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.depth += tag == "table"
        if self.closed or self.depth != 1:
            return
        if tag == "tr":
            self.table.append([])
        self.cell = tag in ("td", "th") or (self.cell and tag not in ("tr", "table"))
        if tag in ("td", "th"):
            if not self.table:
                self.table.append([])
            spans = dict(attrs)
            self.table[-1].append(Cell(columns=_span(spans.get("colspan")), rows=_span(spans.get("rowspan"))))

    def handle_endtag(self, tag: str) -> None:
        if tag == "table" and self.depth:
            self.depth -= 1
            self.closed |= not self.depth
        if tag in ("td", "th", "tr") and self.depth == 1:
            self.cell = False

    def handle_data(self, data: str) -> None:
        if self.depth and not self.closed and self.cell:
            self.table[-1][-1].text += data


def _span(value: str | None) -> int:
    return max(1, min(int(value[:6]), MAX_SPAN)) if value and value.isascii() and value.isdigit() else 1


def parse_table(text: str) -> Table | None:
    """The first table of a text, in HTML or OTSL; None if it has none."""
    if "<table" in text.lower():
        reader = _TableReader()
        with contextlib.suppress(AssertionError):  # how the library refuses "<![x": what stands before it is read
            reader.feed(text)
            reader.close()
        table = reader.table
    elif found := OTSL.findall(text):
        table = _from_otsl(found)
    else:
        return None
    for row in table:
        for cell in row:
            cell.text = " ".join(normalise(cell.text).split())
    return table


def _from_otsl(found: list[tuple[str, str]]) -> Table:
    """OTSL's grid: lcel widens the cell on its left, ucel lengthens the one above, xcel lies inside a span of both."""
    grid: list[list[Cell | None]] = [[]]
    table: Table = [[]]
    for tag, text in found:
        row = grid[-1]
        if tag == "nl":
            grid.append([])
            table.append([])
        elif tag == "lcel" and row and row[-1] is not None:
            row[-1].columns += 1
            row.append(row[-1])
        elif tag == "ucel" and len(grid) > 1 and len(row) < len(grid[-2]) and (above := grid[-2][len(row)]) is not None:
            if above not in row:  # one count a row, however wide the cell
                above.rows += 1
            row.append(above)
        elif tag == "xcel":
            row.append(grid[-2][len(row)] if len(grid) > 1 and len(row) < len(grid[-2]) else None)
        else:
            cell = Cell(text=text)
            row.append(cell)
            table[-1].append(cell)
    return table[:-1] if not grid[-1] else table


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of an ordered tree; label is None for the table and its rows."""

    label: tuple[str, int, int] | None = None
    children: tuple["Node", ...] = field(default=())


def tree_of(table: Table) -> Node:
    """The tree of a table: table, rows, cells."""
    rows = (Node(children=tuple(Node(label=(cell.text, cell.columns, cell.rows)) for cell in row)) for row in table)
    return Node(children=tuple(rows))


@lru_cache(maxsize=100_000)
def _replace(a: tuple[str, int, int] | None, b: tuple[str, int, int] | None) -> float:
    if a is None or b is None:
        return float(a is not b)
    return normalised_edit_distance(a[0], b[0]) if a[1:] == b[1:] else 1.0


def tree_distance(
    a: Node,
    b: Node,
    replace: Callable[[tuple[str, int, int] | None, tuple[str, int, int] | None], float] = _replace,
) -> float:
    """Edit distance of two ordered trees; inserting and deleting cost 1, replacing what `replace` says of the labels."""
    left_a, labels_a, roots_a = _postorder(a)
    left_b, labels_b, roots_b = _postorder(b)
    trees = [[0.0] * len(labels_b) for _ in labels_a]
    for i in roots_a:
        for j in roots_b:
            top, side = left_a[i], left_b[j]
            height, width = i - top + 2, j - side + 2
            forest = [[float(column) for column in range(width)] for _ in range(height)]
            for x in range(1, height):
                node_a, previous, row = top + x - 1, forest[x - 1], forest[x]
                row[0] = float(x)
                whole_a, out = left_a[node_a] == top, trees[node_a]
                before = forest[left_a[node_a] - top]
                for y in range(1, width):
                    node_b = side + y - 1
                    best = min(previous[y], row[y - 1]) + 1
                    if whole_a and left_b[node_b] == side:  # two whole trees: replacing their roots
                        best = out[node_b] = min(best, previous[y - 1] + replace(labels_a[node_a], labels_b[node_b]))
                    else:
                        best = min(best, before[left_b[node_b] - side] + out[node_b])
                    row[y] = best
    return trees[-1][-1]


def _postorder(tree: Node) -> tuple[list[int], list[tuple[str, int, int] | None], list[int]]:
    """Nodes in postorder: the leftmost leaf below each, labels, and the key roots (the last node of each leftmost leaf)."""
    left: list[int] = []
    labels: list[tuple[str, int, int] | None] = []

    def visit(node: Node) -> int:
        first = -1
        for child in node.children:
            leaf = visit(child)
            first = leaf if first < 0 else first
        left.append(len(labels) if first < 0 else first)
        labels.append(node.label)
        return left[-1]

    visit(tree)
    return left, labels, sorted({leaf: index for index, leaf in enumerate(left)}.values())


def teds(prediction: str, reference: str) -> float | None:
    """Similarity of two tables, 0 to 1; 0 if the prediction holds no table, or one far too large.

    None if the reference holds no table or one of more than MAX_NODES nodes: such a pair is not scored.
    """
    wanted, found = parse_table(reference), parse_table(prediction)
    if not wanted or (size := _nodes(wanted)) > MAX_NODES:
        return None
    if not found or _nodes(found) > 2 * MAX_NODES:
        return 0.0
    # Trees that share no shape can be further apart than the larger has nodes: one of rows without cells, say.
    return max(0.0, 1 - tree_distance(tree_of(found), tree_of(wanted)) / max(size, _nodes(found)))


def _nodes(table: Table) -> int:
    return 1 + len(table) + sum(len(row) for row in table)
