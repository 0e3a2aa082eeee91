"""Checkpoints of a run: folders that are whole or not there.

    OUT/step-00000500/                a model directory (model.safetensors, config.json, tokenizer.json), for sample and --init
    OUT/step-00000500/training/       optimizer.safetensors and state.json: what --resume needs beside the weights
    OUT/last, OUT/best, OUT/rollback  links to the newest one, that of the lowest validation loss, and the newest one saved
                                      while the model was seen to look at the pictures

A checkpoint is written under a hidden name, synced, then renamed, so a kill at any moment leaves the ones before it. Nothing is
pickled: tensors are safetensors, the rest JSON. The position in the data is the step number, and the random state is the
seed (generators are seeded anew from (seed, step, rank) at every step), so that a run can go on with other ranks.
Cost: twelve bytes a trained parameter.
"""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shards.writer import sync_folder
from trainer.model.vlm import VLM, save_pretrained

STATE_VERSION = 1
NAME = re.compile(r"step-(\d{8,})")
LINKS = ("last", "best", "rollback")


def folders(out: Path) -> dict[int, Path]:
    """The whole checkpoints of a run by step, oldest first."""
    found = {int(match[1]): path for path in out.glob("step-*") if (match := NAME.fullmatch(path.name))}
    return {step: found[step] for step in sorted(found) if (found[step] / "training" / "state.json").exists()}


def find(place: Path, prefer: str = "last") -> Path:
    """The model directory meant by a path: itself, or the `last` (or `best`) checkpoint of a run; ValueError if none."""
    if (place / "model.safetensors").exists():
        return place
    for name in (prefer, "last"):
        if (place / name / "model.safetensors").exists():
            return (place / name).resolve()
    if whole := folders(place):
        return list(whole.values())[-1]
    raise ValueError(f"{place} holds no checkpoint: give a run's folder or one of its step-* folders")


def save(out: Path, step: int, *, model: VLM, optimizer: torch.optim.Optimizer, state: dict[str, Any], tokenizer: bytes,
         extra: dict[str, Any]) -> Path:
    """Write one checkpoint; `state` is what `load_state` returns."""
    target, partial = out / f"step-{step:08d}", out / f".step-{step:08d}.partial"
    if step in folders(out):
        return target
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(partial, step, model, optimizer, state, tokenizer, extra)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ValueError(f"{target} cannot be written ({error}): make room, then --resume goes on from the one before") from None
    shutil.rmtree(target, ignore_errors=True)  # one that is not whole: its state.json was taken away
    os.replace(partial, target)
    sync_folder(out)
    link(out, "last", target)
    return target


def _trained(model: VLM) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _write(partial: Path, step: int, model: VLM, optimizer: torch.optim.Optimizer, state: dict[str, Any], tokenizer: bytes,
           extra: dict[str, Any]) -> None:
    (partial / "training").mkdir(parents=True)
    save_pretrained(model, partial, tokenizer, extra)
    tensors = {f"{field}:{name}": value.detach().contiguous() for name, parameter in _trained(model).items()
               for field, value in optimizer.state.get(parameter, {}).items()}
    save_file(tensors, partial / "training" / "optimizer.safetensors")
    text = json.dumps({"version": STATE_VERSION, "step": step, **state}, indent=1)
    (partial / "training" / "state.json").write_text(text, "utf-8")
    for name in ("optimizer.safetensors", "state.json"):
        with open(partial / "training" / name, "rb") as file:
            os.fsync(file.fileno())
    sync_folder(partial / "training")
    sync_folder(partial)


def link(out: Path, name: str, target: Path) -> None:
    """Point OUT/name at a checkpoint, in one step."""
    temporary = out / f".{name}.partial"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    os.replace(temporary, out / name)


def load_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint; ValueError if it is not of this version."""
    path = folder / "training" / "state.json"
    try:
        state = json.loads(path.read_bytes())
        version = state["version"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is missing or unreadable: this checkpoint can start a run (--init), not resume one. Remove it to "
                         "resume from the one before") from None
    if version != STATE_VERSION:
        raise ValueError(f"{path} is of version {version!r}; this trainer knows {STATE_VERSION}")
    assert isinstance(state, dict)
    return state


def load_tensors(folder: Path, model: VLM, optimizer: torch.optim.Optimizer) -> None:
    """Weights and optimizer state back into a model and an optimizer that were built alike; ValueError if they were not."""
    try:
        weights = load_file(folder / "model.safetensors")
        tensors = load_file(folder / "training" / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} cannot be read ({error}): remove it to resume from the one before") from None
    here = model.state_dict()
    if misfits := sorted(name for name in weights.keys() | here if name not in weights or name not in here
                         or weights[name].shape != here[name].shape):
        raise ValueError(f"{folder} holds another model than this run's: {len(misfits)} weights do not fit, for instance "
                         f"{misfits[0]}. Pass the --model and tokenizer that it was trained with, or --out ANOTHER to start anew")
    model.load_state_dict(weights)
    by_name = _trained(model)
    if tensors and (differing := {key.partition(":")[2] for key in tensors} ^ set(by_name)):  # none: saved before the first step
        raise ValueError(f"{folder} trained other parameters than this run, for instance {min(differing)}: pass the same --freeze, "
                         "or start from it with --init")
    for key, value in tensors.items():
        field, _, name = key.partition(":")
        parameter = by_name[name]
        optimizer.state[parameter][field] = value.to(parameter.device)  # a fused optimizer has its step there too


def prune(out: Path, keep: int) -> None:
    """Remove all but the last `keep` checkpoints and those that a link names; and what a kill left half written."""
    whole = folders(out)
    kept = set(list(whole.values())[-keep:]) | {(out / name).resolve() for name in LINKS if (out / name).exists()}
    kept_names = {path.name for path in kept}
    for path in whole.values():
        if path.name not in kept_names:
            hidden = out / f".{path.name}.partial"
            with contextlib.suppress(OSError):
                os.replace(path, hidden)  # no half-removed folder under a good name
            shutil.rmtree(hidden, ignore_errors=True)
    for path in out.glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)
