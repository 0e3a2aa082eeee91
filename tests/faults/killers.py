"""A worker process in which chosen rows kill, hang or bloat it: given to the executor in place of its own worker by tests."""

import os
import signal
from collections.abc import Iterator
from typing import Any

from pipeline.build import blocks, local, task

_plain_fit, _plain_render, _plain_rows = task.fit_image, task.render_conversations, blocks.iter_rows
_plain_work = local._work


def fit(data: bytes, mode: str) -> Any:
    """fit_image, but for images that are orders."""
    if data == b"abort":
        os.abort()
    if data == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if data == b"spin":
        while True:
            pass
    if data == b"bloat":
        local_hog = [bytes(1 << 28) for _ in range(100)]  # 25 GB: more than a worker may have
        assert local_hog
    if data == b"bug":
        raise KeyError("a defect")
    return _plain_fit(data, mode)


def render(conversations: Any, placeholders: Any, tokenizer: Any) -> Any:
    """render_conversations, but for a text that aborts or fails."""
    for conversation in conversations:
        text = conversation.messages[-1].content
        if text == "abort while tokenizing":
            os.abort()
        if text == "fail while tokenizing":
            raise RuntimeError("no tokens today")
    return _plain_render(conversations, placeholders, tokenizer)


def rows(file: Any, group: int, kind: Any, **more: Any) -> Iterator[Any]:
    """iter_rows, but the second row group of a file of four aborts after its second row."""
    for index, item in _plain_rows(file, group, kind, **more):
        if file.metadata.num_row_groups == 4 and group == 1 and index == 2:
            os.abort()
        yield index, item


def deadly_work(*arguments: Any) -> None:
    """pipeline.build.local's worker with those in place."""
    task.fit_image, task.render_conversations, blocks.iter_rows = fit, render, rows  # type: ignore[assignment]
    _plain_work(*arguments)
