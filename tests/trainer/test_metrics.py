"""Metrics on cases worked by hand, against slow definitions and against libraries where they are installed."""

import builtins
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.metrics import (
    edit_distance,
    exact_match,
    normalised_edit_distance,
    repetition_rate,
    smiles_scores,
)
from trainer.tables import MAX_NODES, Cell, Node, parse_table, teds, tree_distance, tree_of


def slow_edit_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


@settings(deadline=None)
@given(st.text("ab中", max_size=12), st.text("ab中", max_size=12))
def test_edit_distance_is_levenshteins(a: str, b: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == slow_edit_distance(a, b)


def test_edit_distance_of_long_texts() -> None:
    rng = random.Random(0)
    a = "".join(rng.choice("abcdef 中文\U0001f600") for _ in range(400))
    b = "".join(character for character in a if rng.random() > 0.1) + "xyz" * 30
    assert edit_distance(a, b) == slow_edit_distance(a, b)


def test_edit_distance_equals_rapidfuzz() -> None:
    library: Any = pytest.importorskip("rapidfuzz.distance").Levenshtein
    rng = random.Random(1)
    for size in (1, 63, 64, 65, 500, 2000):
        a, b = ("".join(rng.choice("abcd文") for _ in range(rng.randint(size // 2, size))) for _ in range(2))
        assert edit_distance(a, b) == library.distance(a, b)


def test_normalised_edit_distance() -> None:
    assert normalised_edit_distance("kitten", "sitting") == 3 / 7
    assert normalised_edit_distance("", "") == 0.0
    assert normalised_edit_distance("", "abc") == normalised_edit_distance("abc", " ") == 1.0
    assert normalised_edit_distance("光学字符识别", "光学字苻识別") == 2 / 6  # Chinese counts by character
    assert normalised_edit_distance("caf\u00e9", "cafe\u0301\n") == 0.0  # one letter, two spellings
    assert exact_match(" 北京 \n", "北京")
    assert not exact_match("北 京", "北京")


def test_repetition_rate() -> None:
    assert repetition_rate("the quick brown fox jumps over the lazy dog") == 0.0
    assert repetition_rate("short") == repetition_rate("") == 0.0
    assert repetition_rate("abc" * 100) > 0.95
    assert repetition_rate("光学字符识别与" * 40) > 0.9
    assert 0 < repetition_rate("Page one is here. " * 2 + "And then something quite different follows it.") < 0.5


def test_smiles_scores() -> None:
    pytest.importorskip("rdkit")
    assert smiles_scores(["OCC", "C1=CC=CC=C1"], ["CCO", "c1ccccc1"]) == {
        "exact": 1, "validity": 1, "tanimoto": 1, "answers": 2}  # fmt: skip
    scores = smiles_scores(["CCO", "C(", "", "CC CO", "C" * 3000, "CC\x00O"], ["CCN"] + ["CCO"] * 5)
    assert scores is not None
    assert (scores["exact"], scores["validity"]) == (0.0, 1 / 6)
    assert 0 < scores["tanimoto"] < 1 / 6
    assert smiles_scores(["C[C@H](N)O"], ["C[C@@H](N)O"]) == {"exact": 0, "validity": 1, "tanimoto": 1, "answers": 1}
    formulas_among_them = smiles_scores(["CCO", "C33H31NO5S", "OCC"], ["CCO", "C33H31NO5S", "CCO"])
    assert formulas_among_them == {"exact": 1, "validity": 1, "tanimoto": 1, "answers": 2}
    for no_chemistry in (["B"], ["yes it is"], ["CCO", "receipt", "total"], [""], ["42"]):
        assert smiles_scores(["CCO"] * len(no_chemistry), no_chemistry) is None
    assert smiles_scores([], []) is None


def test_without_rdkit(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "rdkit":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert smiles_scores(["CCO"], ["CCO"]) is None


HTML = "<p>x</p><table><thead><tr><th colspan=2>Year &amp; <b>sum</b></th></tr></thead><tr><td>1</td><td> 2\n3</td></tr></table>"


def test_tables_from_html_and_otsl() -> None:
    assert parse_table(HTML) == [[Cell(text="Year & sum", columns=2)], [Cell(text="1"), Cell(text="2 3")]]
    assert parse_table("<otsl><ched>Year & sum<lcel><nl><fcel>1<fcel>2 3<nl></otsl>") == parse_table(HTML)
    tall = "<table><tr><td rowspan=2 colspan=2>a</td><td>b</td></tr><tr><td>c</td></tr></table>"
    assert parse_table("<fcel>a<lcel><fcel>b<nl><ucel><xcel><fcel>c<nl>") == parse_table(tall)
    assert parse_table("<ecel><nl>") == [[Cell()]]
    assert parse_table("<otsl><fcel>3 < 4<fcel><b>x</otsl>") == [[Cell(text="3 < 4"), Cell(text="<b>x")]]
    assert parse_table("no table here, 3 < 4") is None
    for odd in ("<table><td>a<table><tr><td>b</td></tr></table></td>", "<table colspan=x>", "<ucel><lcel><xcel><nl><nl>",
                f"<table><tr><td colspan={'9' * 9999} rowspan=-1>a", "<table></td></tr></table></table>a<td>"):  # fmt: skip
        assert parse_table(odd) is not None


def test_teds() -> None:
    assert teds(HTML, HTML) == 1.0
    assert teds("<otsl><ched>Year & sum<lcel><nl><fcel>1<fcel>2 3<nl></otsl>", HTML) == 1.0
    assert teds("no table", HTML) == 0.0
    assert teds(HTML, "no table") is None
    assert teds("<fcel>" * 8, "".join(f"<fcel>{cell}<nl>" for cell in "abcd")) == 0.0  # unclamped: below 0
    one, two = (f"<table><tr><td>{text}</td></tr></table>" for text in ("abcd", "abxx"))
    assert teds(one, two) == 1 - 0.5 / 3
    assert teds("<table><tr><td>a</td><td>b</td></tr></table>", "<table><tr><td>a</td></tr></table>") == 1 - 1 / 4
    large = "<table>" + "<tr>" + "<td>1</td>" * (MAX_NODES + 1) + "</tr></table>"
    assert teds(HTML, large) is None
    assert teds(large, HTML) is not None
    assert teds("<table>" + "<tr><td>1" * 5000, HTML) == 0.0


def test_teds_of_what_no_parser_reads() -> None:
    """Python's refuses some declarations by an AssertionError: a model may write them, after hours of answers."""
    table = "<table><tr><td>1</td></tr></table>"
    for text in ("<![x[", "<![ <", "<!["):
        assert teds(f"<table><tr><td>1{text}</table>", table) == 1.0
        assert teds(table, f"<table><tr><td>1{text}</table>") == 1.0


def test_teds_takes_bounded_time() -> None:
    largest = "<table>" + ("<tr>" + "<td>1</td>" * 9 + "</tr>") * (MAX_NODES // 10 - 1) + "</table>"
    start = time.monotonic()
    assert teds(largest, largest) == 1.0
    assert time.monotonic() - start < 60


def node_lists(depth: int) -> st.SearchStrategy[Node]:
    labels = st.sampled_from([None, ("a", 1, 1), ("b", 1, 1), ("ab", 1, 1), ("a", 2, 1)])
    if depth == 0:
        return st.builds(lambda label: Node(label=label), labels)
    children = st.lists(node_lists(depth - 1), max_size=3).map(tuple)
    return st.builds(lambda label, kids: Node(label=label, children=kids), labels, children)


def slow_tree_distance(a: tuple[Node, ...], b: tuple[Node, ...], memo: dict[Any, float]) -> float:
    """The textbook recursion over forests."""
    from trainer.tables import _replace

    if (a, b) not in memo:
        if not a and not b:
            return 0.0
        options = []
        if a:
            options.append(slow_tree_distance(a[:-1] + a[-1].children, b, memo) + 1)
        if b:
            options.append(slow_tree_distance(a, b[:-1] + b[-1].children, memo) + 1)
        if a and b:
            options.append(
                slow_tree_distance(a[-1].children, b[-1].children, memo)
                + slow_tree_distance(a[:-1], b[:-1], memo)
                + _replace(a[-1].label, b[-1].label)
            )
        memo[a, b] = min(options)
    return memo[a, b]


@settings(deadline=None)
@given(node_lists(2), node_lists(2))
def test_tree_distance_is_the_textbook_one(a: Node, b: Node) -> None:
    assert tree_distance(a, b) == pytest.approx(slow_tree_distance((a,), (b,), {}))
    assert tree_distance(a, a) == 0.0


def test_joining_two_rows_costs_what_trees_say() -> None:
    """[[a], [b c d]] -> [[a b c d]]: both rows go, one comes; the cells stay."""
    apart, joined = [[Cell(text="a")], [Cell(text=c) for c in "bcd"]], [[Cell(text=c) for c in "abcd"]]
    assert tree_distance(tree_of(apart), tree_of(joined)) == 3.0
