"""Lines of SMILES files, plain or gz, bz2 or zst, in constant memory, whatever the files hold.

Compression is told by the first bytes, not by the name. A line longer than MAX_LINE comes out cut and is then rejected
like any other unfit line; bytes that are no text come out as they are. A UTF-8 mark before the first line is no part of it.
"""

import bz2
import codecs
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MAX_LINE = 1 << 16
_BLOCK = 1 << 20


class BrokenFile(ValueError):
    """A file that ends too early or is damaged; the message names it and the fix."""


def open_lines(path: Path) -> Iterator[bytes]:
    """Every line of the file without its line end, empty ones too. Raises BrokenFile."""
    rest = b""
    skipping, first = False, True
    for block in read_blocks(path):
        if first:
            block, first = block.removeprefix(codecs.BOM_UTF8), False
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if skipping:
                skipping = False
                continue
            yield line.rstrip(b"\r")[:MAX_LINE]
        if len(rest) > MAX_LINE:
            if not skipping:
                yield rest[:MAX_LINE]
                skipping = True
            rest = b""
    if rest and not skipping:
        yield rest.rstrip(b"\r")


def count_lines(path: Path) -> int:
    """Line ends in the file, plus one for a last line without."""
    count, last = 0, b"\n"
    for block in read_blocks(path):
        count += block.count(b"\n")
        last = block[-1:]
    return count + (last != b"\n")


def read_blocks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes, about a megabyte at a time. Raises BrokenFile when the stream is cut or damaged."""
    with open(path, "rb") as file:
        magic = file.read(4)
        file.seek(0)
        try:
            if magic == b"\x28\xb5\x2f\xfd":
                yield from _zstd_blocks(file)
                return
            stream = _decompressed(file, magic)
            while block := stream.read(_BLOCK):
                yield block
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise BrokenFile(f"{path}: cut or damaged ({error}); delete it, then fetch or copy it again") from error


def _decompressed(file: IO[bytes], magic: bytes) -> IO[bytes]:
    if magic[:2] == b"\x1f\x8b":
        from isal import igzip

        opened: Any = igzip
        stream: IO[bytes] = opened.GzipFile(fileobj=file, mode="rb")
        return stream
    return bz2.BZ2File(file) if magic[:3] == b"BZh" else file


def _zstd_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Frame by frame, since the library's stream reader passes over a cut frame in silence."""
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    frame, started = decoder.decompressobj(), False
    ready = bytearray()
    try:
        # 4 kB of input hold at most 128 MB of output (a block of one repeated byte): memory stays bounded
        while piece := file.read(4096):
            while piece:
                ready += frame.decompress(piece)
                started, piece = not frame.eof, frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame = decoder.decompressobj()
            if len(ready) >= _BLOCK:
                yield bytes(ready)
                ready.clear()
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if started:
        raise EOFError("the last zstd frame is not complete")
    if ready:
        yield bytes(ready)
