"""Where a run writes what happens: log.jsonl and events.jsonl always, a line on standard error, TensorBoard and Weights & Biases
if installed.

One JSON object a line. log.jsonl has one a step: {"step", "loss", "lr", ...}. events.jsonl has the rest: an evaluation is
{"step", "eval": {...}}, anything else {"step", "event": "..."}. Resuming at step N drops the lines after N, so the files are
always those of one undisturbed run.
"""

import importlib.util
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any, TextIO

STEPS, EVENTS, WANDB_ID = "log.jsonl", "events.jsonl", "wandb.id"


def rewind(path: Path, step: int) -> None:
    """Keep the lines up to a step; a line that a kill cut short goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text("".join(kept), "utf-8")
    os.replace(temporary, path)


def _tensorboard(out: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"))


def _wandb(out: Path, settings: dict[str, Any]) -> Any:
    import wandb

    path = out / WANDB_ID  # kept, so that a resumed run goes on there; drawn, so that another run of this name does not
    if not path.exists():
        path.write_text(uuid.uuid4().hex, "utf-8")
    return wandb.init(project=os.environ.get("WANDB_PROJECT", "nano-deepseek-ocr"), name=out.name, dir=str(out),
                      config=settings, id=path.read_text("utf-8"), resume="allow")


class RunLog:
    """The log of one run, on rank 0; `active=False` gives one that says nothing."""

    def __init__(self, out: Path, settings: dict[str, Any], *, step: int = 0, track: str = "auto", active: bool = True) -> None:
        """Write settings.json, and go on with the logs behind the lines of that step."""
        self._steps: TextIO | None = None
        self._events: TextIO | None = None
        self._board: Any = None
        self._wandb: Any = None
        if not active:
            return
        if track not in ("auto", "none") and importlib.util.find_spec(track) is None:
            raise ValueError(f"--track {track} needs the package {track}, which is not installed")
        for name in (STEPS, EVENTS):
            rewind(out / name, step or -1)
        (out / "settings.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        self._steps = open(out / STEPS, "a", encoding="utf-8")
        self._events = open(out / EVENTS, "a", encoding="utf-8")
        if track == "tensorboard" or (track == "auto" and importlib.util.find_spec("tensorboard")):
            self._board = _tensorboard(out)
        # Without an account W&B asks questions on the terminal, so "auto" waits for a key or a mode.
        configured = any(name in os.environ for name in ("WANDB_API_KEY", "WANDB_MODE"))
        if track == "wandb" or (track == "auto" and configured and importlib.util.find_spec("wandb")):
            self._wandb = _wandb(out, settings)

    def write(self, entry: dict[str, Any]) -> None:
        """One object into log.jsonl (a step) or events.jsonl, its numbers also to the trackers."""
        file = self._steps if "loss" in entry else self._events
        if file is None:
            return
        file.write(json.dumps(entry) + "\n")
        file.flush()
        numbers = {f"{group}{name}": value for group, values in (("", entry), ("eval/", entry.get("eval", {})))
                   for name, value in values.items() if isinstance(value, (int, float)) and name != "step"}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, entry["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=entry["step"])

    def say(self, text: str) -> None:
        """A line for people, on standard error."""
        if self._steps is not None:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Flush and close everything."""
        for file in (self._steps, self._events):
            if file is not None:
                file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def step_line(entry: dict[str, Any], total: int) -> str:
    """A step as people read it."""
    parts = [f"step {entry['step']}/{total}", f"loss {entry['loss']:.4f}", f"lr {entry['lr']:.2e}",
             f"norm {entry['grad_norm']:.2f}", f"{entry['tokens_per_s']:.0f} tokens/s", f"{entry['images_per_s']:.1f} images/s"]
    if entry["mfu"] is not None:
        parts.append(f"mfu {entry['mfu']:.1%}")
    return " · ".join([*parts, f"data wait {entry['data_wait']:.1%}"])


def look_line(step: int, seen: dict[str, Any]) -> str:
    """An evaluation as people read it."""
    name = "loss on training rows (none are held out)" if seen.get("split") == "train" else "validation loss"
    parts = [f"step {step}: {name} {seen['loss']:.4f}"]
    if "blind_loss" in seen:
        parts.append(f"with images exchanged {seen['blind_loss']:.4f} (difference {seen['gap']:+.4f})")
    if "vf_projector" in seen:
        parts.append(f"vf {seen['vf_compressor']:.2e} / {seen['vf_projector']:.2e}")
    return " · ".join(parts)
