"""The collapse monitor: its numbers on models that look and that do not, its words and its verdict."""

import contextlib
import json
from pathlib import Path

import pytest
import torch

from tests.trainer.synthetic import make_directory
from trainer import runlog
from trainer.data.batch import Rules
from trainer.data.loader import Loader
from trainer.data.store import open_directory
from trainer.model.config import SIZES
from trainer.model.vlm import VLM
from trainer.monitor import Look, Watch, look, variance_fraction


def seen(**values: float | None) -> Look:
    """A look of a healthy model, but for these."""
    defaults: dict[str, float | None] = {"loss": 1.0, "blind_loss": 1.5, "gap": 0.5, "vf_compressor": 0.2, "vf_projector": 0.2,
                                         "projected_rms": 0.3}
    return Look(by_source={}, **{**defaults, **values})  # type: ignore[arg-type]


def test_variance_fraction() -> None:
    same = torch.randn(1, 4, 8).expand(5, 4, 8)
    assert variance_fraction(same) == pytest.approx(0, abs=1e-12)
    assert variance_fraction(torch.randn(2000, 4, 8)) == pytest.approx(1, abs=0.01)
    # Two images at m - d and m + d: variance d^2, mean square m^2 + d^2.
    pair = torch.tensor([3.0 - 1.0, 3.0 + 1.0]).view(2, 1, 1)
    assert variance_fraction(pair) == pytest.approx(1 / 10)


def test_a_look_counts_by_source_and_sees_a_blind_model(tmp_path: Path) -> None:
    folder = make_directory(tmp_path / "s", rows=6, val_rows=6)
    directory = open_directory(str(folder))
    rules = Rules.of(directory.manifest, "all")
    torch.manual_seed(0)
    model = VLM(SIZES["micro"].with_tokens(vocab_size=rules.vocab_size, image_token_id=rules.image_id))
    loader = Loader([directory], rules=rules, split="val", rows=3, workers=0)
    plan = [[(0, row) for row in range(at, at + 3)] for at in (0, 3)]
    sources = ["colours-micro", "text"]
    looking = look(model, loader.batches(plan), sources, contextlib.nullcontext)
    assert set(looking.by_source) == set(sources)
    total = count = 0.0
    for batch in loader.batches(plan):
        inputs, targets, media = batch
        with torch.no_grad():
            total += float(model(input_ids=inputs, targets=targets, **media).loss)
        count += batch.target_count
    assert looking.loss == pytest.approx(total / count, rel=1e-5)
    assert looking.vf_projector is not None
    assert looking.vf_projector > 0.01
    with torch.no_grad():
        model.projector.weight.zero_()  # now every picture gives the same vectors
        model.projector.bias.fill_(1.0)
    blind = look(model, loader.batches(plan), sources, contextlib.nullcontext)
    assert blind.gap == pytest.approx(0, abs=1e-6)
    assert blind.blind_loss == pytest.approx(blind.loss, rel=1e-6)
    assert blind.vf_projector is not None
    assert blind.vf_projector < 1e-6
    assert blind.projected_rms == pytest.approx(1.0)
    assert model.training


def test_warnings_are_said_once_and_in_plain_words() -> None:
    watch = Watch()
    assert watch.judge(seen(), sam_grad_norm=1.0, after_warmup=True, samples=50_000) == ([], False)
    assert watch.healthy
    said, stop = watch.judge(seen(vf_projector=5e-4), sam_grad_norm=0.01, after_warmup=True, samples=50_000)
    assert len(said) == 2
    assert not stop
    assert "hardly depend on the picture" in said[0]
    assert "gradient reaches SAM" in said[1]
    assert not watch.healthy
    again, _ = watch.judge(seen(vf_projector=5e-4), sam_grad_norm=0.01, after_warmup=True, samples=50_000)
    assert again == []
    watch.judge(seen(), sam_grad_norm=1.0, after_warmup=True, samples=50_000)
    back, _ = watch.judge(seen(gap=0.001), sam_grad_norm=1.0, after_warmup=True, samples=50_000)
    assert "exchanged pictures" in back[0]


def test_thresholds_wait_for_their_time() -> None:
    """No word on SAM's gradient in the warm-up or when SAM is frozen, none on the gap in the first 10,000 samples."""
    assert Watch().judge(seen(gap=0.0), sam_grad_norm=0.0, after_warmup=False, samples=9_999) == ([], False)
    assert Watch().judge(seen(), sam_grad_norm=None, after_warmup=True, samples=50_000) == ([], False)
    # Everything is learned: the whole gradient is small, and SAM's share of it is sound.
    assert Watch().judge(seen(), sam_grad_norm=0.005, grad_norm=0.07, after_warmup=True, samples=50_000) == ([], False)


def test_a_collapse_is_two_checks_running() -> None:
    watch = Watch()
    verdicts = [watch.judge(seen(vf_projector=vf), sam_grad_norm=1.0, after_warmup=True, samples=0)[1]
                for vf in (5e-5, 2e-3, 5e-5, 5e-5)]
    assert verdicts == [False, False, False, True]


def test_text_alone_is_no_collapse() -> None:
    watch, none = Watch(), seen(blind_loss=None, gap=None, vf_compressor=None, vf_projector=None, projected_rms=None)
    for _ in range(3):
        assert watch.judge(none, sam_grad_norm=None, after_warmup=True, samples=50_000) == ([], False)


def test_the_log_forgets_what_comes_after_the_step_resumed_at(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    runlog.rewind(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
