"""Checkpoints: bit for bit, whole or absent, bounded in number, never a pickle."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.synthetic import IDS, SPECIALS, tokenizer_json
from trainer import checkpoint
from trainer.guard import RunLock
from trainer.model.config import SIZES
from trainer.model.vlm import VLM, load_pretrained

EXTRA = {"mode": "micro", "specials": {name: IDS[name] for name in SPECIALS}}
Parts = tuple[VLM, torch.optim.Optimizer]


def build(seed: int, *, steps: int = 0) -> Parts:
    """A micro model and its optimizer after some steps on random gradients."""
    torch.manual_seed(seed)
    model = VLM(SIZES["micro"].with_tokens(vocab_size=len(IDS), image_token_id=IDS["<|image|>"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return model, optimizer


def save(out: Path, step: int, parts: Parts, **state: Any) -> Path:
    """A checkpoint of these."""
    out.mkdir(exist_ok=True)
    return checkpoint.save(out, step, model=parts[0], optimizer=parts[1], state=state, tokenizer=tokenizer_json(),
                           extra=EXTRA)


def test_weights_and_optimizer_come_back_bit_for_bit(tmp_path: Path) -> None:
    parts = build(0, steps=2)
    folder = save(tmp_path / "run", 2, parts, samples=7)
    assert checkpoint.load_state(folder)["samples"] == 7
    other = build(1)
    checkpoint.load_tensors(folder, *other)
    for model_parts in (parts, other):  # one more step: equal states take equal steps
        torch.manual_seed(5)
        for parameter in model_parts[0].parameters():
            parameter.grad = torch.randn_like(parameter)
        model_parts[1].step()
    for a, b in zip(parts[0].parameters(), other[0].parameters()):
        assert torch.equal(a, b)
    loaded, meta = load_pretrained(folder)
    assert meta["mode"] == "micro"
    assert isinstance(loaded, VLM)


def test_a_checkpoint_is_found_by_run_or_by_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="holds no checkpoint"):
        checkpoint.find(run)
    first, second = save(run, 5, build(0)), save(run, 10, build(0))
    assert checkpoint.find(run) == second == checkpoint.find(second)
    checkpoint.link(run, "best", first)
    assert checkpoint.find(run, "best") == first
    assert list(checkpoint.folders(run)) == [5, 10]


def test_what_a_kill_leaves_is_not_a_checkpoint_and_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(run, 5, build(0))
    half = run / ".step-00000010.partial"
    (half / "training").mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert list(checkpoint.folders(run)) == [5]
    checkpoint.prune(run, 3)
    assert not half.exists()
    assert save(run, 10, build(0)).exists()


def test_a_folder_without_its_state_is_written_anew(tmp_path: Path) -> None:
    folder = save(tmp_path / "run", 5, build(0))
    (folder / "training" / "state.json").unlink()
    save(tmp_path / "run", 5, build(0))
    assert list(checkpoint.folders(tmp_path / "run")) == [5]


def test_the_last_and_the_linked_are_kept(tmp_path: Path) -> None:
    run, parts = tmp_path / "run", build(0)
    for step in range(1, 7):
        folder = save(run, step, parts)
        if step == 2:
            checkpoint.link(run, "best", folder)
        if step == 3:
            checkpoint.link(run, "rollback", folder)
        checkpoint.prune(run, 2)
    assert list(checkpoint.folders(run)) == [2, 3, 5, 6]
    assert os.readlink(run / "last") == "step-00000006"


def test_damaged_checkpoints_are_refused_in_words(tmp_path: Path) -> None:
    run, parts = tmp_path / "run", build(0, steps=1)
    folder = save(run, 1, parts)
    optimizer = folder / "training" / "optimizer.safetensors"
    data = optimizer.read_bytes()
    optimizer.write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load_tensors(folder, *build(1))
    optimizer.write_bytes(data)
    model, optimizer = build(1)
    model.image_newline.requires_grad_(False)
    with pytest.raises(ValueError, match=r"trained other parameters.*image_newline.*--freeze"):
        checkpoint.load_tensors(folder, model, optimizer)
    (folder / "training" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="--init"):
        checkpoint.load_state(folder)


def test_a_folder_takes_one_run_at_a_time(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")
    with pytest.raises(ValueError, match=f"in use by another run .process {os.getpid()}"):
        RunLock(tmp_path / "run")
    lock.close()
    RunLock(tmp_path / "run").close()


def test_nothing_in_the_trainer_unpickles() -> None:
    forbidden = re.compile(r"torch\.load\(|pickle\.load|import pickle|allow_pickle=True|(gather|broadcast)_object")
    root = Path(checkpoint.__file__).parent
    assert [path.name for path in root.rglob("*.py") if forbidden.search(path.read_text("utf-8"))] == []
