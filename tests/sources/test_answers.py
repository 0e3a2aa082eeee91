"""gt_parse, OTSL and DocTags: kept, converted, or refused with a reason."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.conversation import Reject
from pipeline.sources.answers import convert_answer, unwrap_gt_parse
from pipeline.sources.doctags import check_page, convert_doctags
from pipeline.sources.finevision import Options
from pipeline.sources.gsm8k import parts_of
from pipeline.sources.otsl import Cell, Table, convert_otsl, docling_table, parse_otsl, to_otsl

CHART = ("<chart><loc_0><loc_0><loc_500><loc_500><bar_chart><fcel>Region<fcel>Sales<nl><fcel>North<fcel>P < 0.5 <b>x</b><nl>"
         "<fcel>South<ecel><nl></chart>")  # fmt: skip


def test_gt_parse_is_unwrapped_or_kept() -> None:
    answer = json.dumps({"gt_parse": {"text_sequence": "Alpha beta."}})
    assert convert_answer(answer, Options(gt_parse="text")) == "Alpha beta."
    assert convert_answer(answer, Options()) == answer
    assert unwrap_gt_parse('{"gt_parse": {"menu": [{"nm": "Tea", "price": 3}, {"nm": "Cake", "cnt": true}]}}') == "Tea\n3\nCake"
    assert unwrap_gt_parse("plain text") == "plain text"


@pytest.mark.parametrize("answer", ['{"gt_parse": ', '{"text": "x"}', "{" * 100_000, '{"gt_parse": {"text_sequence": " "}}'])
def test_a_broken_gt_parse_is_refused(answer: str) -> None:
    with pytest.raises(Reject) as error:
        convert_answer(answer, Options(gt_parse="text"))
    assert error.value.reason in ("gt-parse", "no-answer")


def test_otsl_of_a_chart_with_or_without_its_opening_tag() -> None:
    html = ("<table><tbody><tr><td>Region</td><td>Sales</td></tr><tr><td>North</td>"
            "<td>P &lt; 0.5 &lt;b&gt;x&lt;/b&gt;</td></tr><tr><td>South</td><td></td></tr></tbody></table>")  # fmt: skip
    for answer in (CHART, CHART.removeprefix("<chart>"), CHART.removesuffix("</chart>"),
                   CHART.replace("<bar_chart>", "<_Chart_>").removeprefix("<chart>")):  # fmt: skip
        assert convert_otsl(answer, "html") == html
        assert convert_otsl(answer, "keep") == answer
        assert convert_otsl(answer, "markdown").splitlines() == [
            "| Region | Sales |", "| - | - |", "| North | P < 0.5 <b>x</b> |", "| South |  |"]  # fmt: skip


def test_spans_and_headers_reach_the_html() -> None:
    rows = "<ched>a<lcel><ched>b<nl><fcel>1<lcel><fcel>3<nl><ucel><xcel><fcel>4<nl>"
    html = convert_otsl(f"<otsl><caption>Cap</caption>{rows}</otsl>", "html")
    assert '<th colspan="2">a</th><th>b</th>' in html
    assert '<td rowspan="2" colspan="2">1</td>' in html


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("No table here.", "no table"),
        ("", "no table"),
        ("<fcel>a<fcel>b", "does not end with <nl>"),
        ("<fcel>a<fcel>b<nl><fcel>c<nl>", "row 2 has 1 cells, row 1 has 2"),
        ("<lcel><fcel>a<nl>", "go on no cell"),
        ("<fcel>a<nl><lcel><nl>", "go on no cell"),
        ("<ucel><nl>", "go on no cell"),
        ("<fcel>a<fcel>b<nl><fcel>c<xcel><nl>", "go on no cell"),
        ("<fcel>a<lcel><nl><ucel><fcel>d<nl>", "spans no rectangle"),
        ("<fcel>a<nl><nl>", "row 2 is empty"),
        ("<fcel>a<lcel>text<nl>", "after <lcel>"),
        ("<fcel>a<nl>text", "after <nl>"),
        ("<fcel>a<otsl><fcel>b<nl></otsl><nl>", "a table inside a cell"),
        ("<fcel>x" * 10_001 + "<nl>", "more than 10000 cells"),
    ],
)
def test_invalid_otsl_is_refused_with_a_reason(answer: str, says: str) -> None:
    for form in ("keep", "html", "markdown"):
        with pytest.raises(Reject) as error:
            convert_otsl(answer, form)
        assert error.value.reason == "otsl-invalid"
        assert says in error.value.detail


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """A table of cells that cover a grid of up to 5 by 5, some over several places."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    taken: set[tuple[int, int]] = set()
    cells = []
    for r in range(rows):
        for c in range(columns):
            if (r, c) in taken:
                continue
            width = draw(st.integers(1, columns - c))
            while any((r, x) in taken for x in range(c, c + width)):
                width -= 1
            height = draw(st.integers(1, rows - r))
            taken |= {(y, x) for y in range(r, r + height) for x in range(c, c + width)}
            text = draw(st.text("ab <>&|é字\n", max_size=4)).strip()
            code = draw(st.sampled_from(["fcel", "ched", "rhed", "srow"])) if text else "ecel"
            cells.append(Cell(code=code, text=text, row=r, column=c, rows=height, columns=width))
    return Table(rows=rows, columns=columns, cells=tuple(cells))


@given(tables())
@settings(max_examples=150, deadline=None)
def test_otsl_round_trip_and_docling_agrees(table: Table) -> None:
    assert parse_otsl(to_otsl(table)) == table
    data = docling_table(table)
    assert (data.num_rows, data.num_cols) == (table.rows, table.columns)
    owner = {(y, x): cell for cell in table.cells
             for y in range(cell.row, cell.row + cell.rows) for x in range(cell.column, cell.column + cell.columns)}  # fmt: skip
    assert [[cell.text for cell in line] for line in data.grid] == [
        [owner[y, x].text for x in range(table.columns)] for y in range(table.rows)]  # fmt: skip


@given(st.lists(st.sampled_from(["<fcel>", "<ecel>", "<lcel>", "<ucel>", "<xcel>", "<nl>", "<ched>", "a", " ", "<", "<otsl>",
                                 "</chart>", "<loc_1>"]), max_size=14))  # fmt: skip
def test_any_row_of_tags_is_a_table_or_refused(tags: list[str]) -> None:
    try:
        table = parse_otsl("".join(tags))
    except Reject as error:
        assert error.reason == "otsl-invalid"  # noqa: PT017
        return
    assert parse_otsl(to_otsl(table)) == Table(rows=table.rows, columns=table.columns, cells=table.cells)


@pytest.mark.parametrize("hostile", ["<caption>", "<caption></caption>", "<a>", "<fcel>", "<loc_1>", "<", "<<=", "<<"])
def test_hostile_answers_take_linear_time(hostile: str) -> None:
    """A million characters of what a careless pattern would read again and again."""
    text = hostile * (1_000_000 // len(hostile))
    with pytest.raises(Reject):
        parse_otsl(text)
    with contextlib.suppress(Reject):  # boxes alone are valid, and empty
        convert_doctags(f"<doctag>{text}</doctag>", "markdown")
    assert parts_of(text) == ()


PAGE = ("<section_header_level_1><loc_52><loc_37><loc_225><loc_48>Title a_b</section_header_level_1>\n"
        "<text><loc_1><loc_1><loc_2><loc_2>see <locale>, P < 3 & P > 2</text>\n"
        "<otsl><loc_1><loc_2><loc_3><loc_4><caption>Cap <x></caption><ched>a<ched>b<nl><fcel>1 < 2<fcel><nl></otsl>\n"
        "<unordered_list><list_item>one</list_item>\n<list_item>two</list_item></unordered_list>\n"
        "<formula>E=mc^2</formula><code><_Python_>if a < b > c: print(1)</code><page_footer>7</page_footer>")  # fmt: skip
MARKDOWN = ("## Title a_b\n\nsee <locale>, P < 3 & P > 2\n\nCap <x>\n\n| a | b |\n| - | - |\n| 1 < 2 |  |\n\n"
            "- one\n- two\n\n$$E=mc^2$$\n\n```\nif a < b > c: print(1)\n```")  # fmt: skip


def test_doctags_to_markdown_loses_no_text() -> None:
    assert convert_doctags(f"<doctag>{PAGE}</doctag>", "markdown") == MARKDOWN
    assert convert_doctags(f"<doctag>{PAGE}</doctag>", "keep") == f"<doctag>{PAGE}</doctag>"


def test_doctags_pages_stay_apart() -> None:
    answer = f"<doctag>{PAGE}\n<page_break>\n<picture><loc_1><loc_1><loc_2><loc_2></picture><page_break><text>x</text></doctag>"
    assert convert_doctags(answer, "markdown").split("\n\n<page_break>\n\n") == [MARKDOWN, "", "x"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("Just text.", "no <doctag> around"),
        ("<doctag><text>a</text>", "no <doctag> around"),
        ("<doctag><text>a</doctag>", "<text> is not closed"),
        ("<doctag>a</text></doctag>", "text outside of a tag"),
        ("<doctag></text></doctag>", "closes nothing"),
        ("<doctag><text>a</title></doctag>", "</title> closes <text>"),
        ("<doctag><text>a</text> lost</doctag>", "text outside of a tag: 'lost'"),
        ("<doctag><unknown>a</unknown></doctag>", "text outside of a tag"),
        ("<doctag><list_item>a</list_item></doctag>", "<list_item> at the top"),
        ("<doctag><doctag></doctag></doctag>", "inside the document"),
        ("<doctag><text>a\ue0f0</text></doctag>", "private-use"),
        ("<doctag>" + "<page_break>" * 200 + "</doctag>", "201 pages"),
        ("<doctag>" + "<text></text>" * 10_001 + "</doctag>", "more than 20000 tags"),
    ],
)
def test_invalid_doctags_are_refused_with_a_reason(answer: str, says: str) -> None:
    for form in ("keep", "markdown"):
        with pytest.raises(Reject) as error:
            convert_doctags(answer, form)
        assert error.value.reason == "doctags-invalid"
        assert says in error.value.detail


def test_a_bad_table_inside_a_page_is_refused() -> None:
    with pytest.raises(Reject, match="otsl-invalid"):
        check_page("<otsl><fcel>a<nl><fcel>b<fcel>c<nl></otsl>")


def columns(shared: Any, name: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return [turn for path in sorted((shared / "data/hub/HuggingFaceM4/FineVision" / name).glob("*.parquet"))
            for row in pq.read_table(path, columns=["texts"]).to_pylist() for turn in row["texts"]]  # fmt: skip


def test_real_doctags_both_ways(shared: Any) -> None:
    pages = [turn["assistant"] for turn in columns(shared, "docling_pages") if "<doctag>" in turn["assistant"]]
    assert pages
    for page in pages:
        assert convert_doctags(page, "keep") == page
        text = convert_doctags(page, "markdown")
        assert "<loc_" not in text
        assert "<text>" not in text
        assert len(text) > 200


def test_real_tables_both_ways(shared: Any) -> None:
    """Markdown tables of wtq_tables as OTSL, then to HTML and Markdown: every cell's text is in both."""
    seen = 0
    for turn in columns(shared, "wtq_tables"):
        if not turn["user"].startswith("Convert the table") or seen >= 20:
            continue
        lines = [line.strip("|").split("|") for line in turn["assistant"].splitlines()]
        grid = [[cell.strip() for cell in line] for line in (lines[:1] + lines[2:])]
        if len({len(line) for line in grid}) > 1:
            continue
        otsl = "".join("".join(f"<fcel>{cell}" if cell else "<ecel>" for cell in line) + "<nl>" for line in grid)
        assert convert_otsl(otsl, "html").count("</td>") == sum(map(len, grid))
        table = convert_otsl(otsl, "markdown").splitlines()
        assert len(table) == len(grid) + 1
        seen += 1
    assert seen == 20
