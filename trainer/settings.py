"""The options of `trainer/train.py`, with defaults from the recipe: the `train` table of the shard directory's manifest.

What is passed on the command line wins, then the manifest, then DEFAULTS below. `resolve` returns one frozen Settings that is
also written to OUT/settings.json.
"""

import argparse
import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from shards.masks import Loss
from trainer.data.store import ShardDirectory
from trainer.model.config import SIZES
from trainer.pretrained import PARTS

SCHEDULES = ("cosine", "step", "linear")
LOSSES = ("all", "answer")
DEVICE_TOKENS = {"micro": 65536, "nano": 65536, "full": 16384}  # at once on a GPU, without --device-batch-size
CPU_TOKENS = 4096

# Keys of a manifest's train table, and what holds where a recipe is silent. Rate, warm-up and betas are those with which
# small models from scratch kept looking at the pictures; larger rates made some of them blind.
DEFAULTS: dict[str, Any] = {
    "model": "nano", "batch_rows": 32, "lr": 4e-4, "schedule": "linear", "warmup_steps": 100, "min_lr_ratio": 0.1,
    "betas": [0.9, 0.98], "weight_decay": 0.05, "clip": 1.0, "epochs": 1, "freeze": [], "loss": "all", "eval_every": 200,
}


# Settings that a resumed run may change, and that change what it learns.
LEARNING = ("loss", "lr", "group_lr", "schedule", "warmup_steps", "min_lr_ratio", "betas", "weight_decay", "clip", "freeze",
            "epochs", "max_steps")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run. Rows are packed rows; steps are optimizer steps; rates are peak rates."""

    shards: tuple[str, ...]
    weights: tuple[float, ...] | None
    out: Path
    model: str
    init: str | None
    resume: bool
    loss: Loss
    lr: float
    group_lr: dict[str, float]
    schedule: str
    warmup_steps: int
    min_lr_ratio: float
    betas: tuple[float, float]
    weight_decay: float
    clip: float
    freeze: tuple[str, ...]
    batch_rows: int
    device_batch_size: int | None
    epochs: float
    max_steps: int | None
    seed: int
    eval_every: int
    eval_rows: int
    check_every: int
    save_every: int
    keep: int
    stop_after: float | None
    skip_bad: int
    on_collapse: str
    workers: int | None
    cache: Path | None
    cache_gb: float
    shuffle_window: int
    device: str
    compile: bool | None
    recompute: str | None
    track: str

    def rows_at_once(self, seq_len: int, *, on_gpu: bool) -> int:
        """Rows that a device takes at one time: --device-batch-size, or by the size of the model."""
        return self.device_batch_size or max(1, (DEVICE_TOKENS[self.model] if on_gpu else CPU_TOKENS) // seq_len)

    def recomputes(self, half: str) -> bool:
        """Whether that half of the model, "encoder" or "decoder", uses activation checkpointing."""
        return (self.recompute or ("all" if self.model == "full" else "none")) in (half, "all")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for settings.json, checkpoints and trackers."""
        return {name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(self).items()}

    def changed_since(self, before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """What is learned otherwise than under the settings of a checkpoint (`to_json`): name -> (then, now)."""
        now = self.to_json()
        return {name: (before[name], now[name]) for name in LEARNING if name in before and before[name] != now[name]}


def _pair(text: str) -> tuple[str, float]:
    part, _, rate = text.partition("=")
    if part not in PARTS:
        raise argparse.ArgumentTypeError(f"{part!r} is no part of the model; there are {', '.join(PARTS)} (write clip=1e-5)")
    return part, nonnegative(rate)


def nonnegative(text: str) -> float:
    """An option's finite number of at least zero."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number of at least 0")
    return number


def _count(text: str, least: int = 0) -> int:
    if not text.removeprefix("-").isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def positive(text: str) -> int:
    """An option's whole number of at least one."""
    return _count(text, 1)


def usable_device(text: str) -> str:
    """An option's device, tried out."""
    try:
        torch.empty(1, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used here ({str(error).splitlines()[0][:120]})") from None
    return text


def parser() -> argparse.ArgumentParser:
    """The command line. Options left at None come from the manifest."""
    p = argparse.ArgumentParser(
        prog="train.py", description="Train a DeepEncoder with a Llama decoder on built shards.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  torchrun --nproc-per-node 8 trainer/train.py --shards shards/stage2 --init runs/stage1\n"
               "  python trainer/train.py --shards shards/demo --max-steps 100\n"
               "  torchrun trainer/train.py --shards s3://bucket/stage1 --shards shards/mine --weights 0.9 0.1\n\n"
               "signals: SIGTERM and SIGINT save and end; SIGUSR1 to a rank saves and goes on:\n"
               "  kill -USR1 $(cat runs/stage1/lock)    # rank 0; torchrun itself ends by any signal, and its ranks with it")
    data = p.add_argument_group("data")
    data.add_argument("--shards", action="append", required=True, metavar="DIR",
                      help="shard directory or s3://bucket/prefix; repeatable")
    data.add_argument("--weights", type=float, nargs="+", metavar="W",
                      help="share of each --shards (default: all rows as one set)")
    data.add_argument("--loss", choices=LOSSES, help="train on all text or on answers alone (default: the recipe's, else all)")
    data.add_argument("--batch-rows", type=positive, help="packed rows of a step, over all ranks (default: the recipe's)")
    data.add_argument("--device-batch-size", type=positive, metavar="ROWS",
                      help="rows at once on a device (default: by model and device)")
    data.add_argument("--epochs", type=nonnegative, help="passes over the rows (default: the recipe's)")
    data.add_argument("--seed", type=int, default=0, help="of order and fresh weights (default 0)")
    data.add_argument("--workers", type=_count, help="decoding processes a rank (default: by cores; 0: none)")
    data.add_argument("--skip-bad", type=_count, default=0, metavar="N",
                      help="leave out up to N damaged rows a rank (default 0)")
    data.add_argument("--cache", type=Path, metavar="DIR", help="keep whole shards of a slow store in this folder")
    data.add_argument("--cache-gb", type=nonnegative, default=100, help="size of --cache in GB (default 100)")
    data.add_argument("--shuffle-window", type=_count, default=0, metavar="SHARDS",
                      help="shards mixed at a time, for a small --cache (default 0: all)")
    model = p.add_argument_group("model")
    model.add_argument("--model", choices=tuple(SIZES), help="size (default: the recipe's)")
    model.add_argument("--init", metavar="FROM", help="start from a run, a checkpoint, a weights file or a hub id")
    model.add_argument("--freeze", nargs="*", choices=tuple(PARTS), metavar="PART",
                       help=f"parts that do not train, of {', '.join(PARTS)} (default: the recipe's; none given: all train)")
    rates = p.add_argument_group("optimizer")
    rates.add_argument("--lr", type=nonnegative, help="peak rate (default: the recipe's)")
    rates.add_argument("--group-lr", type=_pair, action="append", default=[], metavar="PART=RATE",
                       help="another peak rate for a part; repeatable")
    rates.add_argument("--schedule", choices=SCHEDULES, help="after the warm-up (default: the recipe's)")
    rates.add_argument("--warmup-steps", type=_count, help="(default: the recipe's)")
    rates.add_argument("--min-lr-ratio", type=nonnegative, help="last rate / peak rate (default: the recipe's)")
    rates.add_argument("--betas", type=float, nargs=2, metavar=("B1", "B2"), help="AdamW's (default: the recipe's)")
    rates.add_argument("--weight-decay", type=nonnegative, help="of matrices (default: the recipe's)")
    rates.add_argument("--clip", type=nonnegative, help="largest gradient norm (default: the recipe's)")
    run = p.add_argument_group("run")
    run.add_argument("--out", type=Path, help="folder of the run (default runs/<name of the first --shards>)")
    run.add_argument("--resume", action="store_true", help="go on from the folder's last checkpoint, if it has one")
    run.add_argument("--max-steps", type=positive,
                     help="end (and end of the schedule) after this many steps (default: --epochs)")
    run.add_argument("--eval-every", type=_count, metavar="STEPS", help="0: only at the end (default: the recipe's)")
    run.add_argument("--eval-rows", type=positive, default=64, help="validation rows read at an evaluation (default 64)")
    run.add_argument("--check-every", type=_count, default=25, metavar="STEPS",
                     help="look for collapse, over the first 500 steps and at evaluations (default 25; 0: only at evaluations)")
    run.add_argument("--save-every", type=_count, default=500, metavar="STEPS", help="0: only at the end (default 500)")
    run.add_argument("--keep", type=positive, default=3, help="last checkpoints kept, beside the best (default 3)")
    run.add_argument("--stop-after", type=nonnegative, metavar="HOURS", help="save and end after so long")
    run.add_argument("--on-collapse", choices=("stop", "warn"), default="stop",
                     help="when the features no longer depend on the picture (default stop)")
    run.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    run.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on CUDA, not for micro)")
    run.add_argument("--recompute", choices=("none", "encoder", "decoder", "all"),
                     help="activation checkpointing (default: all for full, else none)")
    run.add_argument("--track", choices=("auto", "none", "tensorboard", "wandb"), default="auto",
                     help="beside log.jsonl (default auto: TensorBoard if installed, W&B if installed and configured)")
    return p


def check_train_table(table: dict[str, Any], place: str) -> None:
    """ValueError naming the first key of a manifest's train table that is unknown or holds no such value."""
    choices: dict[str, tuple[str, ...]] = {"model": tuple(SIZES), "schedule": SCHEDULES, "loss": LOSSES, "freeze": tuple(PARTS)}
    for key, value in table.items():
        if key not in DEFAULTS:
            near = difflib.get_close_matches(key, DEFAULTS, 1)
            raise ValueError(f"{place}: unknown key {key!r} in the recipe's train table"
                             + (f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(DEFAULTS)}"))
        if key in choices:
            chosen = value if isinstance(value, list) and key == "freeze" else [value]
            good = all(one in choices[key] for one in chosen)
        elif key == "betas":
            good = isinstance(value, list) and len(value) == 2 and all(_is_number(b) and b < 1 for b in value)
        else:
            whole = key in ("batch_rows", "warmup_steps", "eval_every")
            good = _is_number(value) and (not whole or isinstance(value, int)) and (key != "batch_rows" or value > 0)
        if not good:
            raise ValueError(f"{place}: {key} = {value!r} in the recipe's train table is not possible"
                             + (f"; there are {', '.join(choices[key])}" if key in choices else ""))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def resolve(arguments: argparse.Namespace, directories: Sequence[ShardDirectory]) -> Settings:
    """The settings of a run over these opened directories; ValueError if they do not go together."""
    first = directories[0]
    for other in directories[1:]:
        for key in ("seq_len", "specials", "vocab_size"):
            if other.manifest[key] != first.manifest[key]:
                raise ValueError(f"{other.store.where} has another {key} than {first.store.where} ({other.manifest[key]} and "
                                 f"{first.manifest[key]}): build both with one tokenizer and one seq_len")
        if other.store.read_file("tokenizer.json") != first.store.read_file("tokenizer.json"):
            raise ValueError(f"{other.store.where} has another tokenizer than {first.store.where}: build both with one")
    table = first.manifest.get("train", {})
    check_train_table(table, first.store.where)
    values = {**DEFAULTS, **table}
    given = {key: value for key, value in vars(arguments).items() if value is not None}
    values = {**vars(arguments), **values, **given}
    name = first.store.where.rstrip("/").rsplit("/", 1)[-1] or "run"
    return Settings(**{
        **values, "shards": tuple(arguments.shards), "weights": tuple(arguments.weights) if arguments.weights else None,
        "out": arguments.out or Path("runs") / Path(name).name, "betas": tuple(values["betas"]),
        "freeze": tuple(values["freeze"]), "group_lr": dict(arguments.group_lr), "recompute": arguments.recompute})


def rate_at(step: int, total: int, settings: Settings) -> float:
    """The share of the peak rate at a step (0-based) of `total`.

    Warm-up is linear from 1 / warmup. cosine: half a cosine down to min_lr_ratio. linear: constant, then a straight line down
    to it over the last 30 %. step: 1, from 80 % of the steps .316, from 90 % .1 (DeepSeek LLM's; the OCR paper gives none).
    """
    warmup = min(settings.warmup_steps, total // 2)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    low = settings.min_lr_ratio
    if settings.schedule == "cosine":
        return low + (1 - low) * (1 + math.cos(math.pi * min(1.0, done))) / 2
    if settings.schedule == "linear":
        return 1 - (1 - low) * min(1.0, max(0.0, (done - 0.7) / 0.3))
    return 1.0 if done < 0.8 else math.sqrt(0.1) if done < 0.9 else 0.1
