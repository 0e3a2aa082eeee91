"""PDF pages out of tarballs: rendered, turned upright, and whatever breaks costs its page."""

import io
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.conversation import Reject
from pipeline.convert import convert, olmocr, pdf
from tests.convert.making import read_back, sources, tar_of

pytest.importorskip("pypdfium2")


def make_pdf(pages: int = 1, size: tuple[int, int] = (300, 400)) -> bytes:
    """A PDF of white pages, each with a black bar along its top edge: what is up can be seen."""
    images = []
    for _ in range(pages):
        page = np.full((size[1], size[0], 3), 255, np.uint8)
        page[: size[1] // 5] = 0
        images.append(Image.fromarray(page))
    out = io.BytesIO()
    images[0].save(out, "PDF", save_all=True, append_images=images[1:])
    return out.getvalue()


def dark_side(data: bytes) -> str:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    height, width = pixels.shape
    edges = {"top": pixels[: height // 10], "bottom": pixels[-height // 10 :], "left": pixels[:, : width // 10],
             "right": pixels[:, -width // 10 :]}  # fmt: skip
    return min(edges, key=lambda side: float(edges[side].mean()))


def table(folder: Path, rows: list[dict[str, Any]], name: str = "00_documents/train-00000-of-00001.parquet") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    base = {"id": "x", "natural_text": "text", "page_number": 1, "rotation_correction": 0, "pdf_relpath": None}
    pq.write_table(pa.Table.from_pylist([{**base, **row} for row in rows]), folder / name, row_group_size=3)


@pytest.mark.parametrize(("rotation", "side"), [(0, "top"), (90, "right"), (180, "bottom"), (270, "left")])
def test_the_rotation_is_clockwise(rotation: int, side: str) -> None:
    with pdf.PdfRenderer() as renderer:
        data = renderer.render(make_pdf(), 1, rotation=rotation, side=400)
    image = Image.open(io.BytesIO(data))
    assert (image.mode, image.format, max(image.size)) == ("RGB", "PNG", 400)
    assert image.size == ((300, 400) if rotation in (0, 180) else (400, 300))
    assert dark_side(data) == side


def test_pages_of_several_tarballs(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    tar_of(raw / "pdf_tarballs/a.tar.gz", {"one.pdf": make_pdf(3), "unused.pdf": b"x", "./two.pdf": make_pdf()})
    tar_of(raw / "pdf_tarballs/b.tar.gz", {"three.pdf": make_pdf()})
    where = ("a.tar.gz:one.pdf", 2), ("b.tar.gz:three.pdf", 1), ("a.tar.gz:two.pdf", 1), ("a.tar.gz:one.pdf", 3)
    table(raw, [{"id": f"{name}-{page}", "pdf_relpath": f"pdf_tarballs/{name}", "page_number": page,
                 "natural_text": f"{name} {page}"} for name, page in where])  # fmt: skip
    table(raw, [{"pdf_relpath": "pdf_tarballs/a.tar.gz:one.pdf"}], "00_documents/eval-00000-of-00001.parquet")
    table(raw, [{"pdf_relpath": "pdf_tarballs/c.tar.gz:one.pdf"}], "01_books/train-00000-of-00001.parquet")
    done = convert("olmocr", raw, tmp_path / "out", name="olmocr")
    assert (done.files, done.rows, done.rejects) == (2, 4, {})
    found = read_back(tmp_path / "out", "olmocr")
    assert [item.messages[1].content for item in found] == ["a.tar.gz:one.pdf 2", "a.tar.gz:one.pdf 3", "a.tar.gz:two.pdf 1",
                                                            "b.tar.gz:three.pdf 1"]  # fmt: skip
    assert found[0].messages[0].content == "<image>\nOCR this document."
    assert sources(tmp_path / "out")[0] == "a.tar.gz:one.pdf-2"
    assert max(Image.open(io.BytesIO(found[0].images[0])).size) == pdf.SIDE


def test_what_breaks_costs_its_page(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    tar_of(raw / "pdf_tarballs/a.tar.gz", {"good.pdf": make_pdf(), "bad.pdf": b"%PDF-1.7 nothing", "empty.pdf": b"",
                                           "short.pdf": make_pdf()[:300]})  # fmt: skip
    rows: list[dict[str, Any]] = [{"pdf_relpath": f"pdf_tarballs/a.tar.gz:{name}.pdf"}
                                  for name in ("bad", "empty", "short", "absent", "good", "good", "good", "good", "good")]
    for row, change in zip(rows[4:], ({"natural_text": None}, {"page_number": 7}, {"page_number": 0}, {"rotation_correction": 45})):
        row.update(change)
    table(raw, rows)
    done = convert("olmocr", raw, tmp_path / "out", name="olmocr")
    assert done.rows == 1
    assert done.rejects == {"layout": 1, "no-answer": 1, "pdf-missing": 1, "pdf-unreadable": 5}


def test_a_tarball_cut_off_costs_what_is_behind(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    noise = os.urandom(300_000)
    tar_of(raw / "pdf_tarballs/a.tar.gz", {"one.pdf": make_pdf(), "noise": noise, "two.pdf": make_pdf()})
    data = (raw / "pdf_tarballs/a.tar.gz").read_bytes()
    (raw / "pdf_tarballs/a.tar.gz").write_bytes(data[: len(data) // 2])
    table(raw, [{"pdf_relpath": f"pdf_tarballs/a.tar.gz:{name}.pdf"} for name in ("one", "two")])
    done = convert("olmocr", raw, tmp_path / "out", name="olmocr")
    assert (done.rows, done.rejects) == (1, {"pdf-missing": 1})


def test_a_hang_and_a_crash_are_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    with pdf.PdfRenderer(deadline=30) as renderer:
        assert renderer.render(make_pdf(), 1, side=100)
        assert renderer._child is not None
        assert renderer._child.pid is not None
        os.kill(renderer._child.pid, 19)  # stopped: it will not answer
        renderer.deadline = 0.5
        started = time.monotonic()
        with pytest.raises(Reject, match="pdf-timeout"):
            renderer.render(make_pdf(), 1, side=100)
        assert time.monotonic() - started < 10
        renderer.deadline = 30
        assert renderer.render(make_pdf(), 1, side=100)
        assert renderer._child is not None
        assert renderer._child.pid is not None
        os.kill(renderer._child.pid, 9)
        renderer._child.join()
        assert renderer.render(make_pdf(), 1, side=100)


def test_a_page_of_absurd_size_is_refused() -> None:
    plain = make_pdf()
    box = re.search(rb"/MediaBox \[[^]]*\]", plain)
    assert box is not None
    data = plain.replace(box.group(), b"/MediaBox [ 0 0 99999 9 ]".ljust(len(box.group())))
    with pdf.PdfRenderer() as renderer, pytest.raises(Reject, match="pdf-unreadable"):
        renderer.render(data, 1)


def test_paths_of_tarballs_stay_inside(tmp_path: Path) -> None:
    table(tmp_path, [{"pdf_relpath": "../../etc/a.tar.gz:x.pdf"}])
    with pytest.raises(ValueError, match="leaves the data set"):
        olmocr.tarballs_of([tmp_path / "00_documents/train-00000-of-00001.parquet"])
    table(tmp_path, [{"pdf_relpath": "pdf_tarballs/b.tar.gz:x.pdf"}, {"pdf_relpath": "pdf_tarballs/a.tar.gz:y.pdf"}])
    assert olmocr.tarballs_of([tmp_path / "00_documents/train-00000-of-00001.parquet"]) == [
        "pdf_tarballs/a.tar.gz", "pdf_tarballs/b.tar.gz"]  # fmt: skip
    with pytest.raises(ValueError, match="none of the 2 tarballs"):
        convert("olmocr", tmp_path, tmp_path / "out", name="x")


def test_tables_of_a_part() -> None:
    paths = ["00_documents/train-0.parquet", "00_documents/eval-0.parquet", "01_books/data.parquet", "README.md"]
    assert olmocr.tables(paths, "00_documents") == ["00_documents/train-0.parquet"]
    assert olmocr.tables(paths, "01_books") == ["01_books/data.parquet"]
