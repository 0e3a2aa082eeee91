"""The training loop: exact over ranks and accumulation, exact after a resume, plain in its errors."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tests.trainer.synthetic import TRAIN, make_directory, make_rows, write_directory
from trainer import monitor, runlog, train
from trainer.guard import Signals
from trainer.model.vlm import load_pretrained
from trainer.settings import DEFAULTS, parser, rate_at, resolve

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-two rows of 96 tokens, text and micro images."""
    return make_directory(tmp_path_factory.mktemp("train") / "shards", rows=22, val_rows=4, seq_len=96,
                          train={"batch_rows": 4, "lr": 4e-4})


@pytest.fixture(autouse=True)
def _threads() -> None:
    torch.set_num_threads(1)


def start(shards: Path, out: Path, *more: str) -> int:
    """A run in this process: its exit code."""
    return train.main(["--shards", str(shards), "--out", str(out), "--track", "none", "--device", "cpu", "--workers", "0", *more])


def launch(ranks: int, shards: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A run under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone",
               str(ROOT / "trainer" / "train.py"), "--shards", str(shards), "--out", str(out), "--track", "none",
               "--device", "cpu", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"})


def steps(out: Path) -> list[dict[str, Any]]:
    """The steps of a run's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    """The log's other lines that have that key."""
    return [entry for entry in map(json.loads, (out / "events.jsonl").read_text().splitlines()) if kind in entry]


def test_a_run_logs_evaluates_and_leaves_a_model(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert start(shards, out, "--max-steps", "6", "--eval-every", "3", "--save-every", "2", "--keep", "1") == 0
    summary = json.loads(capsys.readouterr().out)
    log = steps(out)
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert log[-1]["loss"] < log[0]["loss"]
    for entry in log:
        assert {"loss", "lr", "grad_norm", "sam_grad_norm", "tokens_per_s", "images_per_s", "mfu", "data_wait",
                "targets"} <= entry.keys()
        assert entry["tokens_per_s"] == pytest.approx(entry["targets"] / entry["seconds"])  # targets, not padding
    looks = [entry["eval"] for entry in events(out, "eval")]
    assert len(looks) == 2
    assert summary["val_loss"] == looks[-1]["loss"]
    assert {"gap", "vf_projector", "vf_compressor", "projected_rms", "blind_loss", "by_source"} <= looks[0].keys()
    model, meta = load_pretrained(out / "last")
    assert meta["mode"] == "micro"
    assert meta["size"] == "micro"
    assert sum(parameter.numel() for parameter in model.parameters()) < 4e6


def test_interrupted_and_resumed_is_bit_for_bit_undisturbed(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by a signal in the middle of an epoch, then resumed across its end; also once by SIGUSR1, which only saves."""
    options = ("--max-steps", "9", "--eval-every", "4", "--save-every", "3", "--device-batch-size", "2")
    assert start(shards, tmp_path / "whole", *options) == 0
    write = runlog.RunLog.write
    wanted = {4: signal.SIGTERM, 6: signal.SIGUSR1, 7: signal.SIGINT}

    def write_and_signal(self: runlog.RunLog, entry: dict[str, Any]) -> None:
        write(self, entry)
        if "loss" in entry and (number := wanted.pop(entry["step"], None)):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(runlog.RunLog, "write", write_and_signal)
    cut = tmp_path / "cut"
    assert start(shards, cut, *options) == 128 + signal.SIGTERM
    assert max(train.checkpoint.folders(cut)) == 4
    assert start(shards, cut, *options, "--resume") == 130
    assert max(train.checkpoint.folders(cut)) == 7
    assert start(shards, cut, *options, "--resume", "--workers", "2") == 0
    assert [(e["step"], e["loss"], e["grad_norm"]) for e in steps(cut)] == [
        (e["step"], e["loss"], e["grad_norm"]) for e in steps(tmp_path / "whole")]
    for name in ("model.safetensors", "training/optimizer.safetensors"):
        a, b = load_file(cut / "last" / name), load_file(tmp_path / "whole" / "last" / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_that_is_done_is_done(shards: Path, tmp_path: Path) -> None:
    assert start(shards, tmp_path / "run", "--max-steps", "2") == 0
    before = (tmp_path / "run" / "last" / "model.safetensors").read_bytes()
    assert start(shards, tmp_path / "run", "--max-steps", "2", "--resume") == 0
    assert (tmp_path / "run" / "last" / "model.safetensors").read_bytes() == before
    assert len(steps(tmp_path / "run")) == 2


def test_a_step_does_not_depend_on_ranks_accumulation_or_split(shards: Path, tmp_path: Path) -> None:
    """Loss and gradient of one rank with 4 rows at once; 1 row at once; and of 3 ranks, of which two have fewer rows."""
    options = ("--max-steps", "5", "--lr", "0.001")
    assert start(shards, tmp_path / "one", *options, "--device-batch-size", "4") == 0
    assert start(shards, tmp_path / "accumulated", *options, "--device-batch-size", "1") == 0
    done = launch(3, shards, tmp_path / "ranks", *options, "--device-batch-size", "1")
    assert done.returncode == 0, done.stderr
    expected = steps(tmp_path / "one")
    for name in ("accumulated", "ranks"):
        for a, b in zip(expected, steps(tmp_path / name), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
            assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-5)
            assert (a["targets"], a["images"], a["samples"]) == (b["targets"], b["images"], b["samples"])


def test_resuming_with_other_ranks_reads_on_in_the_same_order(shards: Path, tmp_path: Path) -> None:
    options = ("--max-steps", "6", "--save-every", "3")
    assert start(shards, tmp_path / "whole", *options) == 0
    out = tmp_path / "moved"
    out.mkdir()
    os.rename(tmp_path / "whole" / "step-00000003", out / "step-00000003")
    assert launch(2, shards, out, *options, "--resume").returncode == 0
    assert [e["loss"] for e in steps(out)] == pytest.approx([e["loss"] for e in steps(tmp_path / "whole")[3:]], rel=1e-5)


def test_text_alone_and_ranks_without_images_neither_hang_nor_skip(tmp_path: Path) -> None:
    """Batches of two rows over two ranks: text beside images, and steps of text alone."""
    rng = random.Random(4)
    rows = make_rows(rng, rows=8, seq_len=96, modes=(None,)) + make_rows(rng, rows=3, seq_len=96, modes=("micro",))
    made = write_directory(tmp_path / "s", {"train": [rows]}, seq_len=96, train={"batch_rows": 2})
    assert start(made, tmp_path / "one", "--max-steps", "6") == 0
    done = launch(2, made, tmp_path / "two", "--max-steps", "6")
    assert done.returncode == 0, done.stderr
    log = steps(tmp_path / "two")
    assert min(entry["images"] for entry in log) == 0 < max(entry["images"] for entry in log)
    assert [e["loss"] for e in log] == pytest.approx([e["loss"] for e in steps(tmp_path / "one")], rel=1e-5)


def test_text_alone_is_no_sign_that_vision_has_stopped_learning(tmp_path: Path) -> None:
    made = make_directory(tmp_path / "s", rows=6, val_rows=2, seq_len=96, modes=(None,))
    assert start(made, tmp_path / "run", "--max-steps", "4") == 0
    assert {entry["sam_grad_norm"] for entry in steps(tmp_path / "run")} == {None}
    assert not events(tmp_path / "run", "event")


def test_gradients_are_summed_over_ranks_once_a_step(shards: Path, tmp_path: Path) -> None:
    """Defect 5 of the known reproduction, no gradient-sync control: of four micro-batches, three must not sync."""
    script = ("import sys\nfrom trainer import train\n"
              "calls, plain = [], train.DistributedDataParallel.no_sync\n"
              "train.DistributedDataParallel.no_sync = lambda self: calls.append(1) or plain(self)\n"
              "code = train.main(sys.argv[1:])\nprint(len(calls))\nsys.exit(code)\n")
    one_rank = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script, "--shards", str(shards), "--out", str(tmp_path / "ddp"), "--track", "none",
                           "--device", "cpu", "--workers", "0", "--max-steps", "2", "--device-batch-size", "1"],
                          capture_output=True, text=True, timeout=200, env={**os.environ, **one_rank}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) == 2 * 3
    assert start(shards, tmp_path / "plain", "--max-steps", "2", "--device-batch-size", "4") == 0
    assert [e["loss"] for e in steps(tmp_path / "ddp")] == pytest.approx([e["loss"] for e in steps(tmp_path / "plain")], rel=1e-5)


def test_frozen_parts_stay_and_get_no_optimizer_state(shards: Path, tmp_path: Path) -> None:
    assert start(shards, tmp_path / "a", "--max-steps", "1") == 0
    assert start(shards, tmp_path / "b", "--max-steps", "3", "--init", str(tmp_path / "a"), "--freeze", "sam", "compressor",
                 "--group-lr", "clip=0", "--weight-decay", "0") == 0
    before, after = (load_file(tmp_path / name / "last" / "model.safetensors") for name in "ab")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(not key.startswith("encoder.") for key in changed)
    assert any(key.startswith("projector") for key in changed)
    state = load_file(tmp_path / "b" / "last" / "training" / "optimizer.safetensors")
    assert not [key for key in state if "encoder.sam" in key]
    assert steps(tmp_path / "b")[0]["sam_grad_norm"] is None


def test_init_prints_what_it_took(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(shards, tmp_path / "a", "--max-steps", "1") == 0
    assert start(shards, tmp_path / "b", "--max-steps", "1", "--init", str(tmp_path / "a")) == 0
    said = capsys.readouterr().err
    for part in ("sam", "compressor", "clip", "projector", "decoder"):
        assert re.search(rf"{part}: [\d.]+ M parameters loaded", said)


def test_a_loss_that_is_no_number_stops_and_names_the_rows(shards: Path, tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    code = start(shards, tmp_path / "run", "--max-steps", "9", "--lr", "1e30", "--warmup-steps", "0", "--clip", "0",
                 "--save-every", "0")
    assert code == 1
    said = capsys.readouterr().err
    event = events(tmp_path / "run", "rows")[0]
    assert "not a finite number" in said
    assert len(event["rows"]) == 4
    assert all(re.search(r"train-\d{6}\.tar at offset \d+", row) and row in said for row in event["rows"])
    assert max(train.checkpoint.folders(tmp_path / "run")) == event["step"] - 1  # saved then, since no other time was asked for


def test_one_ctrl_c_that_comes_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends it to the whole group, and torchrun passes its own on; a real second one breaks off."""
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.stop == signal.SIGINT
        monkeypatch.setattr("trainer.guard.ECHO_SECONDS", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_stop_after_saves_and_ends_well(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(shards, tmp_path / "run", "--max-steps", "500", "--stop-after", "0.0002") == 0
    assert 0 <= max(train.checkpoint.folders(tmp_path / "run")) < 500
    assert "--resume goes on" in capsys.readouterr().err


def test_a_collapse_stops_with_advice_or_warns(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(monitor, "STOP_VF", 2.0)  # nothing passes: every check finds a collapse
    options = ("--max-steps", "9", "--check-every", "2", "--save-every", "1")
    assert start(shards, tmp_path / "stop", *options) == 1
    assert steps(tmp_path / "stop")[-1]["step"] == 4
    said = capsys.readouterr().err
    assert "stopped looking at the pictures" in said
    assert "--lr 0.0002" in said
    assert f"--init {tmp_path / 'stop' / 'rollback'}" in said
    assert start(shards, tmp_path / "warn", *options, "--on-collapse", "warn") == 0


@pytest.mark.parametrize(("more", "message"), [
    (("--batch-rows", "99"), r"22 packed rows, fewer than one global batch of 99: pass --batch-rows 22"),
    (("--weights", "1", "2"), r"2 weights for 1 directories"),
    (("--freeze", "sam", "compressor", "clip", "projector", "decoder"), "leaves nothing to train"),
    (("--init", "nowhere"), "nowhere is neither a path"),
    (("--weights", "0"), "weights must be positive numbers"),
    (("--out", "/dev/null/run"), r"^error: .*'/dev/null/run"),
])
def test_errors_name_the_fix(shards: Path, tmp_path: Path, more: tuple[str, ...], message: str,
                             capsys: pytest.CaptureFixture[str]) -> None:
    assert start(shards, tmp_path / "run", "--max-steps", "1", *more) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_directory_without_its_tokenizer_is_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every checkpoint holds the tokenizer: better told now than at the first of them."""
    made = make_directory(tmp_path / "s", rows=6, val_rows=0, seq_len=96)
    (made / "tokenizer.json").unlink()
    assert start(made, tmp_path / "run", "--max-steps", "1") == 1
    assert "s/tokenizer.json" in capsys.readouterr().err
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_directories_share_the_cache(shards: Path, tmp_path: Path) -> None:
    other = make_directory(tmp_path / "other", rows=22, val_rows=0, seq_len=96, seed=9)
    size = max(path.stat().st_size for path in [*shards.glob("*.tar"), *other.glob("*.tar")])
    assert start(shards, tmp_path / "run", "--shards", str(other), "--epochs", "1", "--cache", str(tmp_path / "cache"),
                 "--cache-gb", str(2.1 * size / 1e9)) == 0
    cached = list((tmp_path / "cache").rglob("*.tar"))
    assert {path.parts[-3] for path in cached} == {"".join(c if c.isalnum() else "-" for c in str(d)).strip("-")[-80:]
                                                   for d in (shards, other)}
    assert sum(path.stat().st_size for path in cached) <= 2.1 * size


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="--track wandb needs the package wandb"):
        runlog.RunLog(tmp_path, {}, track="wandb")


def test_a_run_keeps_its_id_at_the_tracker_and_shares_it_with_no_namesake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def init(**given: Any) -> SimpleNamespace:
        seen.append(given)
        return SimpleNamespace(finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setattr(runlog.importlib.util, "find_spec", lambda _: True)
    for place in ("a", "a", "b"):
        (tmp_path / place / "run").mkdir(parents=True, exist_ok=True)
        runlog.RunLog(tmp_path / place / "run", {}, track="wandb").close()
    first, again, other = (given["id"] for given in seen)
    assert first == again != other
    assert {given["name"] for given in seen} == {"run"}


@pytest.mark.parametrize("more", [("--stop-after", "nan"), ("--cache-gb", "inf"), ("--cache-gb", "-1")])
def test_limits_are_finite(more: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--shards", "s", *more])
    assert "is not a finite number of at least 0" in capsys.readouterr().err


def test_a_run_is_not_overwritten_and_other_data_is_not_resumed(shards: Path, tmp_path: Path,
                                                                capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert start(shards, out, "--max-steps", "1") == 0
    assert start(shards, out, "--max-steps", "1") == 1
    assert "--resume goes on" in capsys.readouterr().err
    assert start(shards, out, "--max-steps", "2", "--resume", "--seed", "5") == 1
    assert "seed 0, not 5" in capsys.readouterr().err
    assert start(shards, out, "--max-steps", "2", "--resume", "--lr", "1e-5") == 0  # this one may do, but not in silence
    told = capsys.readouterr().err
    assert "with other settings: lr 0.0004 -> 1e-05, max_steps 1 -> 2" in told, told
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert {"step": 1, "event": "settings", "changed": {"lr": [0.0004, 1e-05], "max_steps": [1, 2]}} in events
    other = make_directory(tmp_path / "other", rows=22, seq_len=96, seed=9)
    assert start(other, out, "--max-steps", "2", "--resume") == 1
    assert "other rows" in capsys.readouterr().err
    assert start(shards, out, "--max-steps", "2", "--resume", "--shuffle-window", "1") == 1
    assert "shuffle_window 0, not 1" in capsys.readouterr().err
    assert start(shards, out, "--max-steps", "2", "--resume", "--model", "nano") == 1
    error = capsys.readouterr().err
    assert "another model than this run's" in error
    assert len(error.splitlines()) == 1


def test_a_run_that_is_stopped_before_its_first_step_goes_on(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start(shards, out, "--max-steps", "2", "--stop-after", "0") == 0
    assert list(train.checkpoint.folders(out)) == [0]
    assert start(shards, out, "--max-steps", "2", "--resume") == 0
    assert start(shards, tmp_path / "whole", "--max-steps", "2") == 0
    assert [step["loss"] for step in steps(out)] == [step["loss"] for step in steps(tmp_path / "whole")]


def test_a_full_disk_is_said(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                             monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(train.checkpoint, "save_file", full)
    assert start(shards, tmp_path / "run", "--max-steps", "1") == 1
    assert re.search(r"error: .*step-00000001 cannot be written \(No space left on device\)", capsys.readouterr().err)
    assert not list((tmp_path / "run").glob(".step-*"))


def test_an_evaluation_says_when_nothing_is_held_out() -> None:
    assert runlog.look_line(3, {"loss": 2.0, "split": "val"}) == "step 3: validation loss 2.0000"
    assert "training rows" in runlog.look_line(3, {"loss": 2.0, "split": "train"})


def test_several_directories_by_weight(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_directory(tmp_path / "other", rows=8, seq_len=96, seed=3)
    assert start(shards, tmp_path / "run", "--shards", str(other), "--weights", "0.75", "0.25", "--max-steps", "4") == 0
    for weights, code in ((("3", "1"), 0), (("1", "1"), 1)):
        more = ("--weights", *weights, "--max-steps", "5", "--resume")
        assert start(shards, tmp_path / "run", "--shards", str(other), *more) == code
    assert "weights [0.75, 0.25], not [0.5, 0.5]" in capsys.readouterr().err
    longer = make_directory(tmp_path / "longer", rows=8, seq_len=128)
    capsys.readouterr()
    assert start(shards, tmp_path / "no", "--shards", str(longer), "--max-steps", "4") == 1
    assert "another seq_len" in capsys.readouterr().err


def test_damaged_rows_are_skipped_only_when_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_directory(tmp_path / "s", rows=6, shards=1, val_rows=0, seq_len=96, train={"batch_rows": 2})
    with open(made / "train-000000.tar", "r+b") as file:
        file.seek(130)
        file.write(b"XX")
    assert start(made, tmp_path / "a", "--epochs", "1") == 1
    assert f"{made}/train-000000.tar: row at offset 0 is damaged" in capsys.readouterr().err
    assert start(made, tmp_path / "b", "--epochs", "1", "--skip-bad", "9") == 0
    assert steps(tmp_path / "b")[-1]["damaged_rows"] == 1
    said = capsys.readouterr().err  # once by the training rows' loader, once by the evaluation's
    assert said.count(f"left out: {made}/train-000000.tar: row at offset 0 is damaged") == 2


@pytest.mark.parametrize(("table", "message"), [
    ({"modle": "micro"}, "unknown key 'modle'.*did you mean 'model'"),
    ({"model": "huge"}, "model = 'huge'.*there are micro, nano, full"),
    ({"freeze": ["sam", "eyes"]}, "freeze = .*eyes.*there are sam"),
    ({"lr": "fast"}, "lr = 'fast'"),
    ({"batch_rows": 0}, "batch_rows = 0"),
    ({"betas": [0.9]}, "betas"),
    ({"warmup_steps": 1.5}, "warmup_steps"),
])
def test_a_bad_train_table_names_its_key(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    made = train.open_directory(str(make_directory(tmp_path / "s", rows=4, val_rows=0, train=table)))
    with pytest.raises(ValueError, match=message):
        resolve(parser().parse_args(["--shards", "x"]), [made])


def test_settings_come_from_the_command_line_then_the_manifest_then_the_defaults(shards: Path) -> None:
    made = train.open_directory(str(shards))
    chosen = resolve(parser().parse_args(["--shards", str(shards), "--lr", "0.5"]), [made])
    assert (chosen.lr, chosen.batch_rows, chosen.model) == (0.5, 4, "micro")
    assert chosen.out == Path("runs/shards")
    assert TRAIN.keys() == DEFAULTS.keys()


@pytest.mark.parametrize(("schedule", "expected"), [
    ("cosine", {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.55, 99: 0.1}), ("linear", {9: 1.0, 72: 1.0, 86: 0.55, 99: 0.13}),
    ("step", {50: 1.0, 81: 1.0, 83: 0.316, 92: 0.1})])
def test_schedules(schedule: str, expected: dict[int, float], shards: Path) -> None:
    arguments = parser().parse_args(["--shards", "x", "--schedule", schedule, "--warmup-steps", "10", "--min-lr-ratio", "0.1"])
    chosen = resolve(arguments, [train.open_directory(str(shards))])
    for step, share in expected.items():
        assert rate_at(step, 100, chosen) == pytest.approx(share, abs=0.02)
    assert all(math.isfinite(rate_at(step, 5, chosen)) for step in range(5))
