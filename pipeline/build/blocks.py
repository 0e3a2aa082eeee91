"""Reading a plan's blocks: each row group once, from disk or from the hub by one range request.

Files stay open while a task goes through their blocks. A file that is not what the plan saw is an error, not a reject: a plan
must not give other shards than it names.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.conversation import Reject
from pipeline.heap import KEPT, give_back
from pipeline.hub.remote import RemoteFile, group_span, open_remote
from pipeline.plan import Block, Plan, PlanFile
from pipeline.sources import KINDS
from pipeline.sources.rows import Item, iter_rows, open_parquet

OPEN_FILES = 8


class ChangedFileError(RuntimeError):
    """A file is gone, or not the one that was planned."""


@dataclass
class BlockReader:
    """Reads blocks of one plan and counts the row groups and bytes it reads."""

    plan: Plan
    row_groups: int = 0
    _open: dict[int, tuple[pq.ParquetFile, IO[bytes]] | Reject] = field(default_factory=dict)

    def rows(self, block: Block) -> Iterator[tuple[int, Item]]:
        """(row number in the file, row or Reject) of every row that the block selects."""
        opened = self._file(block.file)
        self.row_groups += 1
        wanted = range(block.start, block.stop, block.step)
        if isinstance(opened, Reject):
            yield from ((block.first + index, opened) for index in wanted)
            return
        parquet, handle = opened
        if isinstance(handle, RemoteFile):
            handle.prefetch(*group_span(parquet.metadata, block.group))
        if parquet.metadata.row_group(block.group).total_byte_size > KEPT:
            give_back()  # up to the largest page that pyarrow decodes, two forms of it are held: the highest point of a task
        kind = KINDS[self.plan.recipe.sources[block.source].kind]
        for index, item in iter_rows(parquet, block.group, kind, start=block.start, handle=handle):
            if index >= block.stop:
                break
            if index in wanted:
                yield block.first + index, item

    def _file(self, number: int) -> tuple[pq.ParquetFile, IO[bytes]] | Reject:
        if number not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._close(next(iter(self._open)))
            handle = _open_file(self.plan.files[number])
            try:
                self._open[number] = open_parquet(handle), handle
            except Reject as reject:  # a footer that can be read, of a schema that cannot
                handle.close()
                self._open[number] = reject
        return self._open[number]

    def _close(self, number: int) -> None:
        opened = self._open.pop(number)
        if not isinstance(opened, Reject):
            opened[1].close()

    def close(self) -> None:
        """Close the files."""
        for number in list(self._open):
            self._close(number)


def _open_file(file: PlanFile) -> IO[bytes]:
    ref = file.ref
    if ref.local is None:
        return open_remote(ref.repo, ref.revision, ref.path, ref.size)  # type: ignore[return-value]
    try:
        size = ref.local.stat().st_size
        # not open(): a page of large pictures would be held once more, as Python bytes on its way to pyarrow
        handle = pa.OSFile(str(ref.local))
    except OSError as error:
        raise ChangedFileError(f"{ref.local} was planned and cannot be opened now: {error.strerror}") from None
    if size != ref.size:
        handle.close()
        raise ChangedFileError(f"{ref.local} has {size} bytes where the plan saw {ref.size}; plan again (--fresh)")
    return handle  # type: ignore[no-any-return]
