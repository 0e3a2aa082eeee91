"""One page of a PDF as a PNG, rendered by pypdfium2 in a process of its own.

PDFium is fast and tested against hostile files, but it is C++ that reads bytes off the web: a page may crash it, hang it or
ask for all memory. So a child renders, under a memory limit and a deadline a page; when it dies or is late it is replaced
and the page is a Reject. Cost: 60 to 150 ms a page at 1536 pixels, most of it encoding; a new child costs 0.3 s.
"""

import io
import multiprocessing
import resource
import signal
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from pipeline.conversation import Reject

SIDE = 1536
"""Pixels of a page's longer side: base (1024), large (1280) and two gundam tiles are scaled down from it."""
DEADLINE = 60.0
MEMORY = 3 << 30
MAX_POINTS = 20_000
"""The longer side of a page in points; larger ones are plots that would be a smear at SIDE."""


class PdfRenderer:
    """Renders pages in a child process; use as a context manager."""

    def __init__(self, *, deadline: float = DEADLINE) -> None:
        self.deadline = deadline
        self._child: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> "PdfRenderer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def render(self, document: bytes, page: int, *, rotation: int = 0, side: int = SIDE) -> bytes:
        """PNG of a page (numbered from 1), turned clockwise by `rotation` degrees (0, 90, 180, 270), RGB.

        Raises Reject: "pdf-unreadable" (no PDF, locked, no such page), "pdf-crash", "pdf-timeout".
        """
        if self._child is None or not self._child.is_alive():
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((document, page, rotation, side, self.deadline))
            if not self._pipe.poll(self.deadline):
                self._stop()
                raise Reject("pdf-timeout", f"page {page} took more than {self.deadline:.0f} s")
            done, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._stop()
            raise Reject("pdf-crash", f"the renderer died at page {page}") from None
        if not done:
            raise Reject("pdf-unreadable", str(answer)[:200])
        return bytes(answer)

    def _start(self) -> None:
        self._stop()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._child.start()
        theirs.close()

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.join()
        if self._pipe is not None:
            self._pipe.close()
        self._child = self._pipe = None


def require_pdfium() -> Any:
    """The module, or a ValueError that names the extra."""
    try:
        import pypdfium2
    except ImportError:
        raise ValueError("pages of PDFs need pypdfium2: pip install 'nano-deepseek-ocr[pdf]'") from None
    return pypdfium2


def _serve(pipe: Connection) -> None:
    """The child: answers requests until the pipe closes (which the parent's death also does)."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            document, page, rotation, side, deadline = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            signal.alarm(int(deadline) + 10)  # ends this process where a page hangs it and the parent is gone
            answer = (True, _render(document, page, rotation, side))
        except MemoryError:
            answer = (False, b"the page needs more than the memory limit")
        except Exception as error:  # whatever the library says of a bad file is a reason, not a crash
            answer = (False, f"{type(error).__name__}: {error}".encode(errors="replace"))
        signal.alarm(0)
        pipe.send(answer if answer[0] else (False, answer[1].decode(errors="replace")))


def _render(document: bytes, number: int, rotation: int, side: int) -> bytes:
    pdf = require_pdfium().PdfDocument(document)
    try:
        if not 1 <= number <= len(pdf):
            raise ValueError(f"no page {number}: the document has {len(pdf)}")
        page = pdf[number - 1]
        longer = max(page.get_size())
        if not 1 <= longer <= MAX_POINTS:
            raise ValueError(f"page {number} is {longer:.0f} points long; the limit is {MAX_POINTS}")
        image = page.render(scale=side / longer, rotation=rotation, may_draw_forms=False).to_pil().convert("RGB")
    finally:
        pdf.close()
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=3)
    return out.getvalue()
