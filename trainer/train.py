"""Train on built shards. From top to bottom: what a run reads, the loop, its evaluations, its checkpoints; how it is set up.

    torchrun --nproc-per-node 8 trainer/train.py --shards shards/stage2 --init runs/stage1
    python trainer/train.py --shards shards/demo --max-steps 100          # one process, CPU or one GPU

A step is one global batch of packed rows (trainer.data.order). Each rank sums the loss over the targets of its rows, the
gradients are averaged over ranks once, at the step's last micro-batch, and then scaled by ranks / targets: so the step is that
of one process reading the whole batch, whatever the number of ranks, micro-batches or targets a rank got.

Where a rank stands is told in trainer/place.py, what it trains in trainer/build.py.

Cost beside the model: one small all-reduce a micro-batch (is anyone asked to stop?), one more and one wait for the device a step.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from warnings import filterwarnings

from trainer.guard import RunLock, Signals  # isort: skip (before torch: it ties a rank to its torchrun)

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from shards.reader import DamagedRow
from trainer import checkpoint, runlog
from trainer.build import build
from trainer.data.batch import Batch, Rules
from trainer.data.loader import Loader, WorkerDied
from trainer.data.order import Order, deal, derive, permutation, split_batch
from trainer.data.store import Cache, ShardDirectory, open_directory
from trainer.flops import batch_flops, peak_of
from trainer.model.vlm import VLM
from trainer.monitor import Look, Watch, look
from trainer.place import Place
from trainer.settings import Settings, parser, rate_at, resolve

CHECK_ROWS = 8  # rows of a quick look for collapse
EARLY_STEPS = 500  # how long such looks are taken every --check-every steps
LOST_RANK = re.compile(r"Connection (closed|reset) by peer|Broken pipe|NCCL|Timed out waiting", re.IGNORECASE)


class Stop(Exception):
    """The run ends early, in good order: a message, and the exit code."""


class Data:
    """The opened directories, the order of their rows, and the two loaders: `train`, and `look` for evaluations.

    An evaluation reads `look_rows`, fixed for the run, of the split `look_split`: "val", or "train" where nothing is held out.
    """

    def __init__(self, settings: Settings, directories: Sequence[ShardDirectory], place: Place) -> None:
        """Plan the order, then fork the workers."""
        self.directories, self.manifest = directories, directories[0].manifest
        # Names to report validation losses by, alike on every rank.
        self.sources = sorted({source for directory in directories for source in directory.manifest.get("sources", {})})
        tables = [directory.rows["train"] for directory in directories]
        self.order = Order([rows["shard"] for rows in tables], [rows["patches"] for rows in tables], seed=settings.seed,
                           batch_rows=settings.batch_rows, weights=settings.weights, window=settings.shuffle_window)
        self.steps = settings.max_steps or self.order.steps(settings.epochs)
        self.split = split_batch(settings.batch_rows, place.ranks,
                                 settings.rows_at_once(self.manifest["seq_len"], on_gpu=place.on_gpu))
        self.look_split = "val" if any(len(directory.rows["val"]) for directory in directories) else "train"
        rows = [(index, row) for index, directory in enumerate(directories) for row in range(len(directory.rows[self.look_split]))]
        self.look_rows = [rows[index] for index in permutation(len(rows), "look", settings.seed)[:settings.eval_rows]]
        self.tokenizer = directories[0].store.read_file("tokenizer.json")  # once: at a checkpoint its store may be away
        workers = min(8 if place.on_gpu else 1, place.cores - 1) if settings.workers is None else settings.workers
        self.train, self.look = (
            Loader(directories, rules=Rules.of(self.manifest, settings.loss), split=name, rows=self.split.rows, workers=count,
                   skip_damaged=settings.skip_bad) for name, count in (("train", workers), (self.look_split, min(workers, 2))))

    def fingerprint(self) -> dict[str, Any]:
        """What the order of rows depends on, for a resumed run to compare."""
        tables = [hashlib.sha256(directory.rows["train"].tobytes()).hexdigest() for directory in self.directories]
        return {"rows": tables, "batch_rows": self.order.batch_rows, "seed": self.order.seed,
                "weights": self.order.shares, "shuffle_window": self.order.window}


@dataclass(kw_only=True)
class Progress:
    """What changes from step to step and is part of a checkpoint, beside weights and optimizer."""

    step: int = 0  # steps done
    samples: int = 0
    best: float | None = None  # lowest validation loss
    watch: Watch = dataclasses.field(default_factory=Watch)
    last_look: Look | None = None
    grad_norm: float = 1.0
    sam_grad_norm: float | None = None


class Run:
    """One training run on one rank."""

    def __init__(self, settings: Settings, data: Data, place: Place, control: Any) -> None:
        """Build what is trained, and take it to where the run goes on."""
        self.settings, self.data, self.place, self.control = settings, data, place, control
        self.model, self.optimizer, self.parts = build(settings, data.manifest, data.tokenizer, place)
        self.progress, before = restore(settings, data, place, self.model, self.optimizer)
        self.wrapped: torch.nn.Module = self.model  # for the forward pass
        if control is not None:
            # The gradient of a 1x1 convolution comes in another layout: DDP copies its 16 kB, and warns of that at length.
            filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            # Without device_ids DDP leaves the inputs alone, which are on the device already.
            self.wrapped = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.log = runlog.RunLog(settings.out, settings.to_json(), step=self.progress.step, track=settings.track,
                                 active=place.rank == 0)
        self.log.say(self.headline())
        if changed := settings.changed_since(before):
            self.log.write({"step": self.progress.step, "event": "settings", "changed": changed})
            self.log.say("from here on with other settings: "
                         + ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items()))
        self.signals = Signals()
        self.deadline = time.monotonic() + settings.stop_after * 3600 if settings.stop_after is not None else math.inf
        self.peak = peak_of(torch.cuda.get_device_name(place.device)) if place.on_gpu else None

    def headline(self) -> str:
        """What is about to happen, in a line."""
        settings, order, split = self.settings, self.data.order, self.data.split
        total, trained = (sum(p.numel() for p in self.model.parameters() if p.requires_grad or frozen) / 1e6
                          for frozen in (True, False))
        passes = ", ".join(f"{count:.2f}" for count in order.passes(self.data.steps))
        return " · ".join([
            f"{settings.model}: {total:.2f} M parameters, {trained:.2f} M trained"
            + (f" (frozen: {', '.join(settings.freeze)})" if settings.freeze else ""),
            f"{self.place.ranks} x {self.place.device.type}",
            f"{order.rows} rows, {self.data.steps} steps of {order.batch_rows} rows ({split.accumulation} x {split.rows} a rank), "
            f"{passes} epochs", *([f"from step {self.progress.step}"] if self.progress.step else []),
            *(["nothing is left to do"] if self.progress.step >= self.data.steps else [])])

    def train(self) -> None:
        """All steps that are left, with evaluations and checkpoints in between."""
        settings, data, progress = self.settings, self.data, self.progress

        def due(every: int) -> bool:
            return every > 0 and progress.step % every == 0

        plan = (rows for step in range(progress.step, data.steps)
                for rows in data.order.micro_batches(step, self.place.rank, data.split))
        with self.signals, contextlib.closing(data.train.batches(plan, self.place.device)) as batches:
            while progress.step < data.steps:
                entry = self.step(batches)
                progress.step += 1
                done, improved = progress.step == data.steps, False
                self.log.write(entry)
                if progress.step <= 5 or due(10) or done:
                    self.log.say(runlog.step_line(entry, data.steps))
                if done or due(settings.eval_every):
                    improved = self.evaluate("evaluation")
                elif progress.step <= EARLY_STEPS and due(settings.check_every):
                    self.evaluate("check")
                if improved or done or due(settings.save_every):
                    self.save(best=improved)

    def step(self, batches: Iterator[Batch]) -> dict[str, Any]:
        """One optimizer step; returns its line of the log. Nothing has changed yet when it raises."""
        place, split, wrapped, started = self.place, self.data.split, self.wrapped, time.monotonic()
        # The random state of a step is a function of (seed, step, rank): nothing of it need be saved.
        torch.manual_seed(derive("step", self.settings.seed, self.progress.step, place.rank) >> 1)
        losses = torch.zeros(place.ranks, split.accumulation, dtype=torch.float64, device=place.device)
        counts = torch.zeros(6, dtype=torch.float64)  # targets, images, samples, operations, seconds waited, damaged rows
        for micro in range(split.accumulation):
            self.heed_signals()
            before = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - before
            last = micro == split.accumulation - 1
            sync = wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else contextlib.nullcontext()
            with sync:
                with place.autocast():
                    loss = wrapped(input_ids=batch.inputs, targets=batch.targets, **batch.media).loss
                loss.backward()
            losses[place.rank, micro] = loss.detach()
            work = batch_flops(self.model.config, batch.rows, batch.target_count, self.settings.freeze)
            counts += torch.tensor([batch.target_count, batch.images, sum(len(row.samples) for row in batch.rows), work, waited, 0],
                                   dtype=torch.float64)
        counts[-1] = len(self.data.train.damaged)
        sums = torch.cat([losses.flatten(), counts.to(place.device)])
        if place.ranks > 1:
            dist.all_reduce(sums)
        grads = [[p.grad for p in group if p.grad is not None] for group in self.parts.values()]
        norms = torch.stack([get_total_norm(part) if part else losses.new_zeros(()) for part in grads])
        *values, all_targets, all_images, all_samples, all_work, all_waited, damaged = sums.tolist()
        # DDP has averaged over ranks: times ranks over all targets makes it the gradient of the mean over targets.
        scale = place.ranks / max(1.0, all_targets)
        part_norms = dict(zip(self.parts, [norm * scale for norm in norms.tolist()]))
        norm = math.sqrt(sum(value * value for value in part_norms.values()))
        if not math.isfinite(norm) or not all(map(math.isfinite, values)):
            raise self.not_finite(values, norm)
        clip = self.settings.clip
        factor = scale * (min(1.0, clip / (norm + 1e-6)) if clip else 1.0)
        torch._foreach_mul_([grad for part in grads for grad in part], factor)
        share = rate_at(self.progress.step, self.data.steps, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.samples += int(all_samples)
        self.progress.grad_norm = norm
        self.progress.sam_grad_norm = part_norms["sam"] if self.parts["sam"] and all_images else None
        seconds = time.monotonic() - started
        return {
            "step": self.progress.step + 1, "loss": sum(values) / max(1.0, all_targets), "lr": self.settings.lr * share,
            "grad_norm": norm, "sam_grad_norm": self.progress.sam_grad_norm, "targets": int(all_targets),
            "images": int(all_images), "samples": int(all_samples), "samples_seen": self.progress.samples,
            "damaged_rows": int(damaged), "epoch": round((self.progress.step + 1) * self.data.order.batch_rows
                                                         / self.data.order.rows, 6),
            "seconds": seconds, "tokens_per_s": all_targets / seconds, "images_per_s": all_images / seconds,
            "mfu": all_work / seconds / self.peak / place.ranks if self.peak else None,
            "data_wait": all_waited / place.ranks / seconds}

    def heed_signals(self) -> None:
        """Agree with the other ranks on whether one of them was asked to stop or save; the step under way is dropped."""
        wish = torch.tensor([self.signals.stop, self.signals.save, time.monotonic() > self.deadline], dtype=torch.int64)
        if self.control is not None:
            dist.all_reduce(wish, op=dist.ReduceOp.MAX, group=self.control)
        number, wants_save, late = wish.tolist()
        if wants_save:
            self.signals.save = False
            self.save()
        if number or late:
            self.optimizer.zero_grad(set_to_none=True)
            self.save()
            why = signal.Signals(number).name if number else f"--stop-after {self.settings.stop_after:g} hours"
            raise Stop(f"{why}: saved at step {self.progress.step}; --resume goes on", 128 + number if number else 0)

    def not_finite(self, losses: Sequence[float], norm: float) -> Stop:
        """The error for a loss or gradient that is not a number; names the rows of the micro-batches it came from. What was
        learned before is saved."""
        step, split = self.progress.step, self.data.split
        bad = [index for index, loss in enumerate(losses) if not math.isfinite(loss)] or list(range(len(losses)))
        rows = [self.data.directories[directory].describe("train", row) for index in bad for directory, row in
                self.data.order.micro_batches(step, index // split.accumulation, split)[index % split.accumulation]]
        self.log.write({"step": step + 1, "event": "not finite", "grad_norm": str(norm), "rows": rows})
        if step:
            self.save()
        on = f"Step {step} is saved: --resume with a lower --lr goes on from it, or start" if step else "Start"
        return Stop(f"step {step + 1}: loss or gradient is not a finite number (gradient norm {norm}). Its rows:\n  "
                    + "\n  ".join(rows) + f"\n{on} again with a lower --lr or more --warmup-steps; "
                    "if the rows are at fault, `pipeline inspect` shows them", 1)

    def evaluate(self, kind: str) -> bool:
        """Look at the rows of an "evaluation", or for a "check" at a few with images; judge, and stop on a collapse if so asked.
        Returns whether the validation loss is the best yet."""
        data, progress = self.data, self.progress
        tables, rows = [directory.rows[data.look_split] for directory in data.directories], data.look_rows
        if kind == "check":
            rows = [(d, row) for d, row in rows if tables[d][row]["images"]][:max(CHECK_ROWS, 2 * self.place.ranks)]
        mine = deal([int(tables[d][row]["patches"]) for d, row in rows], self.place.ranks)[self.place.rank]
        plan = [[rows[index] for index in mine[at:at + data.split.rows]] for at in range(0, len(mine), data.split.rows)]
        with contextlib.closing(data.look.batches(plan, self.place.device)) as batches:
            seen = look(self.model, batches, data.sources, self.place.autocast)
        progress.last_look = seen
        told = {**seen.to_json(), "kind": kind, "split": data.look_split}
        self.log.write({"step": progress.step, "eval": told})
        self.log.say(runlog.look_line(progress.step, told))
        warnings, collapsed = progress.watch.judge(
            seen, sam_grad_norm=progress.sam_grad_norm, grad_norm=progress.grad_norm, samples=progress.samples,
            after_warmup=progress.step > self.settings.warmup_steps)
        for warning in warnings:
            self.log.write({"step": progress.step, "event": "warning", "text": warning})
            self.log.say(f"warning: {warning}")
        if collapsed and self.settings.on_collapse == "stop":
            rollback = self.settings.out / "rollback"
            again = (f"--init {rollback} --lr {self.settings.lr / 2:g} --out ANOTHER starts again from {rollback.resolve().name}, "
                     "when it still looked at the pictures" if rollback.exists() else
                     f"start again with --lr {self.settings.lr / 2:g}, or with larger text in the pictures")
            self.log.write({"step": progress.step, "event": "collapse"})
            raise Stop(f"step {progress.step}: the model has stopped looking at the pictures, and none was seen to recover from "
                       f"this: {again}. (--on-collapse warn goes on regardless)", 1)
        improved = kind == "evaluation" and (seen.loss < progress.best if progress.best is not None else math.isfinite(seen.loss))
        if improved:
            progress.best = seen.loss
        return improved

    def save(self, *, best: bool = False) -> None:
        """A checkpoint of the steps done; rank 0 writes, the others go on (and wait at the next collective)."""
        if self.place.rank:
            return
        progress, out = self.progress, self.settings.out
        state = {"samples": progress.samples, "best": progress.best, "watch": dataclasses.asdict(progress.watch),
                 "data": self.data.fingerprint(), "steps": self.data.steps, "settings": self.settings.to_json(),
                 "rng": {"seed": self.settings.seed, "step": progress.step}}
        manifest = self.data.manifest
        target = checkpoint.save(
            out, progress.step, model=self.model, optimizer=self.optimizer, state=state, tokenizer=self.data.tokenizer,
            extra={"mode": manifest["mode"], "specials": manifest["specials"], "recipe": manifest.get("recipe", ""),
                   "size": self.settings.model, "step": progress.step})
        if best:
            checkpoint.link(out, "best", target)
        if progress.watch.healthy:
            checkpoint.link(out, "rollback", target)
        checkpoint.prune(out, self.settings.keep)


def restore(
    settings: Settings, data: Data, place: Place, model: VLM, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Any]]:
    """The state to start from: step 0, or the folder's last checkpoint with --resume, and the settings of that. The same on
    every rank."""
    whole = checkpoint.folders(settings.out)
    found = torch.tensor([max(whole, default=-1)], device=place.device)
    if place.ranks > 1:
        dist.broadcast(found, 0)
    step = int(found)
    if step < 0:
        return Progress(), {}
    if step not in whole:
        raise ValueError(f"{settings.out} has no step {step} here: every node must see the same --out to resume")
    state = checkpoint.load_state(whole[step])
    for name, value in data.fingerprint().items():
        if (before := state["data"].get(name, value)) != value:
            told = "other rows" if name == "rows" else f"{name} {before}, not {value}"
            raise ValueError(f"{whole[step]} was trained on {told}: a resumed run reads on in the same order. "
                             "Pass the same --shards, --weights, --seed, --batch-rows and --shuffle-window, or start anew with "
                             f"--init {settings.out} --out ANOTHER")
    checkpoint.load_tensors(whole[step], model, optimizer)
    return Progress(step=step, samples=state["samples"], best=state["best"], watch=Watch(**state["watch"])), state["settings"]


def run(settings: Settings, directories: Sequence[ShardDirectory], place: Place) -> dict[str, Any]:
    """Set up this rank, train, and return the summary."""
    data = Data(settings, directories, place)  # forks the workers: before CUDA, before any thread
    lock = RunLock(settings.out) if place.rank == 0 else None
    try:
        if lock:
            if (whole := checkpoint.folders(settings.out)) and not settings.resume:
                raise ValueError(f"{settings.out} holds a run at step {max(whole)}: --resume goes on with it, "
                                 "--out ANOTHER starts a new one")
            checkpoint.prune(settings.out, settings.keep)
        this = Run(settings, data, place, place.join())
        with contextlib.closing(this.log):
            this.train()
        progress, seen = this.progress, this.progress.last_look
        return {"out": str(settings.out), "steps": progress.step, "samples": progress.samples, "best_loss": progress.best,
                "val_loss": seen and seen.loss, "blind_loss": seen and seen.blind_loss}
    finally:
        data.train.close()
        data.look.close()
        if dist.is_initialized():
            dist.destroy_process_group()
        if lock:
            lock.close()


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 cannot go on, 2 usage, 128 + n after signal n."""
    arguments = parser().parse_args(argv)
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    place = Place.find("cpu")
    try:
        place = Place.find(arguments.device)
        share = int(arguments.cache_gb * 1e9) // len(set(arguments.shards))  # each directory makes room among its own shards
        cache = Cache(folder=arguments.cache, bytes=share) if arguments.cache else None
        directories = [open_directory(where, cache) for where in arguments.shards]
        summary = run(resolve(arguments, directories), directories, place)
    except Stop as stop:
        message, code = stop.args
        if first:
            print(message, file=sys.stderr)
        return int(code)
    except (ValueError, OSError, WorkerDied, torch.OutOfMemoryError) as error:
        # OSError: a file that is missing, a full or read-only disk, a store that does not answer.
        more = ("\nA smaller --device-batch-size (same steps, more accumulation) or --recompute all takes less memory"
                if isinstance(error, torch.OutOfMemoryError) else "")
        if first or isinstance(error, DamagedRow) or not isinstance(error, ValueError):  # one rank's; others are everyone's
            print(f"error: {error}{more}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        if not (place.ranks > 1 and LOST_RANK.search(str(error))):
            raise
        print(f"rank {place.rank} ends because another rank has ended ({str(error).splitlines()[0][:200]})", file=sys.stderr)
        return 1
    if place.rank == 0:
        print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
